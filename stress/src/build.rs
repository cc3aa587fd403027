//! Build templates: modules for every kernel of the cluster, and cleaning up.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::cluster::remote;
use crate::cluster::shell::{quote, Limit};
use crate::modules;
use crate::parameters;
use crate::refusal::Refusal;
use crate::settings::{Assignments, Machines, Settings};
use crate::template::{fill, BuildPass, Each, Template};

/// Finds a kernel's headers, fetching them if it must.
const KERNELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels.sh");
/// In a release's module directory, after a module's name: the template that made it.
const MADE_BY: &str = "made-by";
/// For one command on a host.
const HOST_TIMEOUT: Duration = Duration::from_secs(60);

/// A kernel that modules are built for.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// As `uname -r` says it.
    pub release: String,
    /// For `make KDIR=`.
    pub headers: PathBuf,
}

/// The kernels of the cluster, each once. Asks a real cluster's hosts.
pub fn kernels(settings: &Settings) -> Result<Vec<Kernel>> {
    let mut wanted = Vec::new();
    match &settings.machines {
        Machines::Virtual(machines) => wanted.push(machines.kernel.clone()),
        Machines::Real(real) => {
            for host in remote::hosts(real) {
                let limit = Limit {
                    timeout: HOST_TIMEOUT,
                    interrupt: None,
                };
                let release = host.ask("uname -r", limit)?.trim().to_string();
                if !wanted.contains(&release) {
                    wanted.push(release);
                }
            }
        }
    }
    wanted.iter().map(|kernel| find(kernel)).collect()
}

fn find(kernel: &str) -> Result<Kernel> {
    let output = local(&format!("{} {}", quote(KERNELS), quote(kernel)))
        .stdout(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("cannot run {KERNELS}"))?;
    if !output.status.success() {
        bail!(
            "{KERNELS} {kernel}: {}; its own lines above say why",
            output.status
        );
    }
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let release = std::fs::read_to_string(directory.join("release"))
        .with_context(|| format!("{}: no file `release` there", directory.display()))?;
    Ok(Kernel {
        release: release.trim().to_string(),
        headers: directory.join("headers"),
    })
}

/// Does what the template at `path` says, for `kernels` where a pass is for each kernel.
pub fn execute(
    path: &Path,
    assignments: &Assignments,
    settings: &Settings,
    out: &Path,
) -> Result<()> {
    let template = Template::<BuildPass>::load(path)?;
    let values = parameters::of(&template, assignments)?;
    let per_kernel = template.passes.iter().any(|pass| pass.each == Each::Kernel);
    let kernels = if per_kernel {
        kernels(settings)?
    } else {
        Vec::new()
    };
    let site = Site {
        settings,
        out,
        quiet: false,
    };
    make(&template, &kernels, &site, |name| {
        values.get(name).map(u64::to_string)
    })
}

/// Brings the modules of `kernels` up to date: with the template that made `module` as it is there, because the last
/// `make build-…` says what a run is to load, and with `default` where there is none.
pub fn update(
    default: &Path,
    module: Option<&str>,
    kernels: &[Kernel],
    settings: &Settings,
    out: &Path,
) -> Result<()> {
    for kernel in kernels {
        let made_by = module.map_or(Err(std::io::ErrorKind::NotFound.into()), |module| {
            std::fs::read_to_string(made_by(&modules::directory(out, &kernel.release), module))
        });
        let path =
            made_by.map_or_else(|_| default.to_path_buf(), |text| PathBuf::from(text.trim()));
        let path = if path.is_file() {
            path
        } else {
            default.to_path_buf()
        };
        let template = Template::<BuildPass>::load(&path)?;
        let kernels = std::slice::from_ref(kernel);
        println!("# bringing the modules for {} up to date", kernel.release);
        let site = Site {
            settings,
            out,
            quiet: true,
        };
        make(&template, kernels, &site, |name| {
            template.parameters.get(name).map(u64::to_string)
        })?;
    }
    Ok(())
}

/// Brings the programs up to date that the template at `path` makes.
pub fn update_programs(path: &Path, settings: &Settings, out: &Path) -> Result<()> {
    let template = Template::<BuildPass>::load(path)?;
    println!("# bringing the programs up to date");
    let site = Site {
        settings,
        out,
        quiet: true,
    };
    make(&template, &[], &site, |name| {
        template.parameters.get(name).map(u64::to_string)
    })
}

/// The file that says which template made `module`.
fn made_by(directory: &Path, module: &str) -> PathBuf {
    directory.join(format!("{module}.{MADE_BY}"))
}

/// Where a build takes place.
struct Site<'a> {
    settings: &'a Settings,
    out: &'a Path,
    /// Shows what a command prints only where the command fails.
    quiet: bool,
}

fn make(
    template: &Template<BuildPass>,
    kernels: &[Kernel],
    site: &Site<'_>,
    value: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let out = std::path::absolute(site.out).context("no current directory")?;
    for pass in &template.passes {
        let place = format!("{}: pass {:?}", template.path.display(), pass.name);
        match pass.each {
            Each::Kernel => {
                for kernel in kernels {
                    let directory = modules::directory(&out, &kernel.release);
                    std::fs::create_dir_all(&directory)
                        .with_context(|| format!("cannot make {}", directory.display()))?;
                    let command = fill(&pass.command, |name| match name {
                        "release" => Some(quote(&kernel.release)),
                        "headers" => Some(quote(&kernel.headers.to_string_lossy())),
                        "out" => Some(quote(&directory.to_string_lossy())),
                        _ => value(name),
                    })
                    .map_err(|name| Refusal::of(format!("{place}: no value for {{{name}}}")))?;
                    shell(&command, site.quiet)
                        .with_context(|| format!("{place} for kernel {}", kernel.release))?;
                    for module in &pass.makes {
                        let made_by = made_by(&directory, module);
                        std::fs::write(&made_by, format!("{}\n", template.path.display()))
                            .with_context(|| format!("cannot write {}", made_by.display()))?;
                    }
                }
            }
            Each::Once => {
                let command = fill_without_kernel(&pass.command, &out, &value, &place)?;
                shell(&command, site.quiet).with_context(|| place.clone())?;
            }
            Each::Host => {
                let Machines::Real(real) = &site.settings.machines else {
                    continue;
                };
                let command = fill_without_kernel(&pass.command, &out, &value, &place)?;
                // One machine that is down must not keep the others from being cleaned.
                let mut failed = Vec::new();
                for host in remote::hosts(real) {
                    let limit = Limit {
                        timeout: HOST_TIMEOUT,
                        interrupt: None,
                    };
                    match host.run(&command, limit) {
                        Ok(output) => output
                            .lines()
                            .for_each(|line| println!("@{:<9} {line}", host.name)),
                        Err(error) => failed.push(format!("{error:#}")),
                    }
                }
                if !failed.is_empty() {
                    bail!("{place}: {}", failed.join("\n"));
                }
            }
        }
    }
    Ok(())
}

fn fill_without_kernel(
    command: &str,
    out: &Path,
    value: &impl Fn(&str) -> Option<String>,
    place: &str,
) -> Result<String, Refusal> {
    fill(command, |name| match name {
        "out" => Some(quote(&out.to_string_lossy())),
        _ => value(name),
    })
    .map_err(|name| Refusal::of(format!("{place}: no value for {{{name}}}")))
}

fn shell(command: &str, quiet: bool) -> Result<()> {
    let status = if quiet {
        let output = local(&format!("exec 2>&1; {command}"))
            .output()
            .context("cannot start sh")?;
        if !output.status.success() {
            eprint!("{}", String::from_utf8_lossy(&output.stdout));
        }
        output.status
    } else {
        local(command).status().context("cannot start sh")?
    };
    if !status.success() {
        bail!("`{command}` failed ({status}); its own lines above say why");
    }
    Ok(())
}

/// A shell command here. What an outer `make` was told on its command line is not meant for an inner one.
fn local(command: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).stdin(Stdio::null());
    for name in [
        "MAKEFLAGS",
        "MFLAGS",
        "MAKEOVERRIDES",
        "MAKELEVEL",
        "MAKEFILES",
    ] {
        shell.env_remove(name);
    }
    shell
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIRTUAL: &[String] = &[];

    fn settings() -> Settings {
        Assignments::parse(VIRTUAL).unwrap().settings().unwrap()
    }

    fn template(directory: &Path, name: &str, command: &str) -> PathBuf {
        let path = directory.join(name);
        let text =
            format!("[[pass]]\nname = \"m\"\neach = \"kernel\"\nmakes = [\"m\"]\ncommand = '''{command}'''\n");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn the_last_build_decides_what_a_run_brings_up_to_date() {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out");
        let bench = template(
            directory.path(),
            "bench.toml",
            "echo bench {release} {headers} >>{out}/log",
        );
        let checksum = template(
            directory.path(),
            "checksum.toml",
            "echo checksum >>{out}/log",
        );
        let kernel = Kernel {
            release: "6.12.9".into(),
            headers: "/h h".into(),
        };
        let kernels = std::slice::from_ref(&kernel);
        let settings = settings();
        let site = Site {
            settings: &settings,
            out: &out,
            quiet: true,
        };
        update(&bench, Some("m"), kernels, &settings, &out).unwrap();
        make(&Template::load(&checksum).unwrap(), kernels, &site, |_| {
            None
        })
        .unwrap();
        update(&bench, Some("m"), kernels, &settings, &out).unwrap();
        std::fs::remove_file(&checksum).unwrap();
        update(&bench, Some("m"), kernels, &settings, &out).unwrap();
        let log = std::fs::read_to_string(modules::directory(&out, "6.12.9").join("log")).unwrap();
        assert_eq!(
            log,
            "bench 6.12.9 /h h\nchecksum\nchecksum\nbench 6.12.9 /h h\n"
        );
    }

    #[test]
    fn a_failed_build_names_the_template_the_pass_and_the_kernel() {
        let directory = tempfile::tempdir().unwrap();
        let path = template(directory.path(), "b.toml", "exit 3");
        let kernel = Kernel {
            release: "6.1.0".into(),
            headers: "/h".into(),
        };
        let error = update(&path, Some("m"), &[kernel], &settings(), directory.path()).unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.contains("b.toml: pass \"m\" for kernel 6.1.0: `exit 3` failed"),
            "{error}"
        );
    }

    #[test]
    fn cleaning_takes_no_parameters() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.toml");
        std::fs::write(
            &path,
            "[[pass]]\nname = \"r\"\neach = \"once\"\ncommand = \"rm -rf {out}\"\n",
        )
        .unwrap();
        let out = directory.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let words = ["thread_count=3".to_string()];
        let error = execute(
            &path,
            &Assignments::parse(&words).unwrap(),
            &settings(),
            &out,
        )
        .unwrap_err();
        assert!(error.downcast_ref::<Refusal>().is_some(), "{error:#}");
        assert!(out.exists());
        execute(&path, &Assignments::default(), &settings(), &out).unwrap();
        assert!(!out.exists());
    }
}
