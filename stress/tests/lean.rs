//! Lean containers on this machine, in which the C++ parent is begun as a program. They take root and a mounted cgroup2:
//! without these there is nothing to test, and the tests say so.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

const LEAN: &str = env!("CARGO_BIN_EXE_mitosis-lean");

/// Where the C++ parent was built; `None` where containers cannot be made.
fn programs() -> Option<&'static Path> {
    static PROGRAMS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let programs = PROGRAMS.get_or_init(|| {
        if groups().is_none() || !nix::unistd::geteuid().is_root() {
            return None;
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Containers do not see what is below /tmp.
        let hidden = target.starts_with("/tmp");
        let base = if hidden {
            Path::new("/var/tmp")
        } else {
            target
        };
        let out = base.join("mitosis-lean-programs");
        let built = Command::new("make")
            .arg("-C")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp"))
            .arg(format!("OUT={}", out.display()))
            .arg(format!("LIBMITOSIS={}", libmitosis().display()))
            .env_remove("MAKEFLAGS")
            .output()
            .unwrap();
        assert!(built.status.success(), "{built:?}");
        Some(out)
    });
    if programs.is_none() {
        eprintln!("not tested: it takes root, and a cgroup2 file system");
    }
    programs.as_deref()
}

/// Where cargo puts the library that the parent is linked with: the tests' own dependencies do not include its C half.
fn libmitosis() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--package", "libmitosis"])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .output()
        .unwrap();
    assert!(built.status.success(), "{built:?}");
    Path::new(LEAN).parent().unwrap().to_path_buf()
}

fn groups() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let line = mounts.lines().find(|line| line.contains(" cgroup2 "))?;
    line.split(' ').nth(1).map(PathBuf::from)
}

/// The program, with children of `secret` that have to prove `state`.
fn lean(programs: &Path, state: &str, secret: &str, more: &[&str]) -> Command {
    let parent = programs.join("lean-parent");
    let data = programs.join("lean-parent.data");
    let mut command = Command::new(LEAN);
    command
        .args([
            "run",
            "--cpu-percent",
            "0",
            "--memory-mib",
            "0",
            "--state",
            state,
            "--share",
        ])
        .arg(programs)
        .args(more)
        .arg("program")
        .arg(parent)
        .args(["--fresh", "--secret", secret, "--file"])
        .arg(data);
    command
}

fn state(programs: &Path, secret: &str) -> String {
    let output = Command::new(programs.join("lean-parent"))
        .args(["--state", "--secret", secret, "--file"])
        .arg(programs.join("lean-parent.data"))
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_string()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn what_containers_cannot_see_is_not_shared() {
    let Some(programs) = programs() else { return };
    let mut command = Command::new(LEAN);
    command.args(["run", "--state", "0", "--share", "/tmp", "program"]);
    let output = command.arg(programs.join("counter")).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(
        text.contains("/tmp: cannot be shared, as each container has a /tmp of its own"),
        "{text}"
    );
}

#[test]
fn children_that_prove_what_they_are_count_and_others_do_not() {
    let Some(programs) = programs() else { return };
    let right = state(programs, "abc");
    for pool in ["0", "3"] {
        let more = ["--containers", "5", "--threads", "2", "--pool", pool];
        let output = lean(programs, &right, "abc", &more).output().unwrap();
        let text = printed(&output);
        assert!(output.status.success(), "{output:?}");
        assert!(
            text.contains("total: containers 5, verified 5, errors 0"),
            "{text}"
        );
    }
    // One bit of the secret makes another memory.
    let output = lean(programs, &right, "abd", &["--containers", "3"])
        .output()
        .unwrap();
    let text = printed(&output);
    assert!(!output.status.success());
    assert!(
        text.contains("total: containers 3, verified 0, errors 3"),
        "{text}"
    );
    assert!(text.contains("not its parent's continuation"), "{text}");
}

#[test]
fn a_child_sees_its_container_and_nothing_else() {
    let Some(programs) = programs() else { return };
    // What it has to say takes the place of a proof.
    let look = |script: &str| {
        let mut command = Command::new(LEAN);
        command.args([
            "run",
            "--cpu-percent",
            "0",
            "--memory-mib",
            "0",
            "--state",
            "0",
        ]);
        command
            .arg("--share")
            .arg(programs)
            .args(["--containers", "1", "--pool", "0", "program"]);
        let output = command.args(["/bin/sh", "-c", script]).output().unwrap();
        printed(&output)
    };
    for (script, sees) in [
        ("echo $$", "said \"1\""),
        (
            "read -r n </proc/sys/kernel/hostname; echo $n",
            "said \"lean-0\"",
        ),
        (
            "while IFS=: read -r n c p; do [ $n != 0 ] || echo $n:$c:$p; done </proc/self/cgroup",
            "said \"0::/\"",
        ),
        ("echo /proc/[0-9]*", "said \"/proc/1\""),
        ("echo x 2>&1 >/usr/x", "Read-only file system"),
        ("echo x 2>&1 >/x", "Read-only file system"),
        ("echo x >/tmp/x && echo written", "said \"written\""),
        (
            "echo /root/* /home/* /etc/*",
            "said \"/root/* /home/* /etc/*\"",
        ),
        ("exit 7", "without a proof: exit status 7"),
        ("kill -SEGV $$; kill -KILL -1; echo alive", "said \"alive\""),
    ] {
        let text = look(script);
        assert!(text.contains(sees), "{script}: {text}");
    }
}

#[test]
fn nothing_is_left_of_a_program_that_was_killed() {
    let Some(programs) = programs() else { return };
    let right = state(programs, "1");
    let mut killed = lean(programs, &right, "1", &["--run-secs", "600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Its first line: containers are at work.
    let mut line = String::new();
    let mut lines = std::io::BufReader::new(killed.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
    let prefix = format!("mitosis-lean-{}-", killed.id());
    let own = || -> Vec<PathBuf> {
        let entries = std::fs::read_dir(groups().unwrap()).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        let ours = |path: &PathBuf| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with(&prefix)
        };
        paths.filter(ours).collect()
    };
    let before = own();
    assert_eq!(before.len(), 1, "{line}");
    killed.kill().unwrap();
    killed.wait().unwrap();
    // Whatever it left ends by itself; what is left of the groups, the next run removes.
    let output = lean(programs, &right, "1", &["--containers", "1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(own(), Vec::<PathBuf>::new());
}
