//! Kernel modules on this machine: where a build puts them, and what a module says about itself.

use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};

/// Where builds put modules: `out/modules/<release>/<name>.ko`, `release` as `uname -r` says it.
pub fn directory(out: &Path, release: &str) -> PathBuf {
    out.join("modules").join(release)
}

/// A built module.
#[derive(Debug)]
pub struct Module {
    /// Without `.ko`.
    pub name: String,
    /// The file.
    pub contents: Vec<u8>,
    /// The release that it was built for.
    pub release: String,
    /// The modules that must be loaded before it.
    pub depends: Vec<String>,
}

impl Module {
    /// Reads `name` as it was built for `release`.
    pub fn load(out: &Path, release: &str, name: &str) -> Result<Self> {
        let path = directory(out, release).join(format!("{name}.ko"));
        let contents = std::fs::read(&path).with_context(|| {
            format!(
                "no {} for kernel {release}: run `make build-rpc-bench` first",
                path.display()
            )
        })?;
        Self::parse(name, contents).with_context(|| format!("{}", path.display()))
    }

    /// Takes a module's own description out of it.
    pub fn parse(name: &str, contents: Vec<u8>) -> Result<Self> {
        if !contents.starts_with(b"\x7fELF") {
            bail!("not a kernel module: run `make clean`, then `make build-rpc-bench`");
        }
        let vermagic =
            modinfo(&contents, "vermagic").context("no vermagic: not a kernel module")?;
        let release = vermagic.split(' ').next().unwrap_or_default().to_string();
        let depends = modinfo(&contents, "depends").unwrap_or_default();
        let depends = depends
            .split(',')
            .filter(|name| !name.is_empty())
            .map(str::to_string)
            .collect();
        Ok(Self {
            name: name.to_string(),
            contents,
            release,
            depends,
        })
    }
}

/// The value of `key=` in a module's `.modinfo` section, which is a sequence of NUL-terminated strings.
///
/// The section's strings are looked for in the whole file: nothing else in a module has `vermagic=` after a NUL.
fn modinfo(contents: &[u8], key: &str) -> Option<String> {
    let label = format!("\0{key}=");
    let at = contents
        .windows(label.len())
        .position(|window| window == label.as_bytes())?;
    let value = contents
        .get(at + label.len()..)?
        .split(|&byte| byte == 0)
        .next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The least that [`Module::parse`] takes for a module.
    pub(crate) fn module_for(release: &str) -> Vec<u8> {
        format!("\x7fELF\0license=Dual MIT/GPL\0depends=rdma_cm,ib_core\0vermagic={release} SMP mod_unload \0").into_bytes()
    }

    #[test]
    fn a_module_says_what_it_is_for_and_what_it_needs() {
        let module = Module::parse("m", module_for("6.12.9-amd64")).unwrap();
        assert_eq!(module.release, "6.12.9-amd64");
        assert_eq!(module.depends, ["rdma_cm", "ib_core"]);
    }

    #[test]
    fn other_files_are_no_modules() {
        assert!(Module::parse("m", b"MZ".to_vec()).is_err());
        assert!(Module::parse("m", b"\x7fELF\0license=GPL\0".to_vec()).is_err());
        let error = Module::load(Path::new("nowhere"), "6.1", "m")
            .unwrap_err()
            .to_string();
        assert!(error.contains("make build-rpc-bench"), "{error}");
    }
}
