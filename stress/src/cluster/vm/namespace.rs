//! The private namespaces that a virtual cluster lives in.
//!
//! Two processes run the program. The first one stays outside, in the user's own network: it only passes signals on and
//! tidies up. The second one is the first process of a PID namespace, and alone in a network namespace: when it ends, for
//! whatever reason, the kernel ends every machine and every ssh connection that it started, and the network with its
//! bridge and taps is gone. No signal handler or destructor has to run for that.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use anyhow::{bail, Context, Result};
use nix::errno::Errno;
use nix::sched::{unshare, CloneFlags};
use nix::sys::prctl;
use nix::sys::signal::{kill, SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::unistd::{alarm, getgid, getuid, Pid};

/// Tells the second process that it is inside, and which directory the first one removes after it.
const INSIDE: &str = "MITOSIS_NAMESPACE";

/// How long the program may take to end after a signal; its machines end with it.
const GRACE_S: u32 = 20;

/// Goes into namespaces of one's own, and only returns there.
///
/// It starts the program a second time, with the same arguments, and exits with its exit code. To be called at the very
/// beginning of `main`, before there are threads. Signals that reach the first process are passed on as SIGTERM, those
/// of the terminal reach both: a handler may see two. Without a handler inside, a signal takes 20 s to end the program.
pub fn enter_namespace() -> Result<()> {
    if directory().is_some() {
        // Not even a SIGKILL of the first process leaves the second one running.
        return prctl::set_pdeathsig(Signal::SIGKILL)
            .context("cannot tie this process to the one that started it");
    }
    let directory = RunDirectory::new()?;
    let (uid, gid) = (getuid(), getgid());
    let namespaces = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWPID;
    if uid.is_root() {
        unshare(namespaces)
            .context("cannot make a network namespace (in a container, give it CAP_SYS_ADMIN)")?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | namespaces).context(
            "cannot make a user namespace; run as root, or allow it: sysctl -w kernel.unprivileged_userns_clone=1",
        )?;
        for (file, line) in [
            ("uid_map", format!("0 {uid} 1")),
            ("setgroups", "deny".into()),
            ("gid_map", format!("0 {gid} 1")),
        ] {
            fs::write(Path::new("/proc/self").join(file), line)
                .with_context(|| format!("/proc/self/{file}"))?;
        }
    }

    // Blocked from before the program starts, so that none is lost; Command starts it with none blocked.
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGCHLD,
        Signal::SIGALRM,
    ] {
        signals.add(signal);
    }
    signals.thread_block().context("cannot block signals")?;
    let signals = SignalFd::new(&signals).context("cannot receive signals")?;
    let program = Command::new(env::current_exe().context("cannot find this program")?)
        .args(env::args_os().skip(1))
        .env(INSIDE, &directory.0)
        .spawn()
        .context("cannot start this program in its namespace")?;
    let status = watch(program, &signals)?;
    drop(directory);
    std::process::exit(exit_code(status));
}

/// Whether [`enter_namespace`] has been through: false in the process that is still outside, with the user's network.
pub fn inside_namespace() -> bool {
    directory().is_some()
}

/// A directory below /tmp for sockets, whose paths must be short. Whoever entered the namespace removes it at the end.
pub(super) fn run_directory() -> Result<PathBuf> {
    match directory() {
        Some(directory) => Ok(directory.into()),
        None => bail!("a virtual cluster needs enter_namespace() first"),
    }
}

fn directory() -> Option<OsString> {
    env::var_os(INSIDE)
}

/// Waits for the program's end. Passes signals on, and ends the whole namespace when that does not end the program.
///
/// All in one thread: whoever has made a PID namespace cannot start threads any more.
fn watch(mut program: Child, signals: &SignalFd) -> Result<ExitStatus> {
    /// The terminal sent it, to both processes.
    const SI_KERNEL: i32 = 0x80;
    let pid = Pid::from_raw(i32::try_from(program.id()).context("not a process id")?);
    loop {
        if let Some(status) = program.try_wait().context("cannot wait for the program")? {
            return Ok(status);
        }
        let Some(signal) = signals.read_signal().context("cannot receive signals")? else {
            continue;
        };
        match i32::try_from(signal.ssi_signo)
            .ok()
            .and_then(|number| Signal::try_from(number).ok())
        {
            Some(Signal::SIGCHLD) => {}
            // The program is this process's child and was not waited for yet: both kills reach it or its corpse.
            Some(Signal::SIGALRM) => {
                kill(pid, Signal::SIGKILL).context("cannot end the program")?
            }
            _ => {
                if signal.ssi_code != SI_KERNEL {
                    kill(pid, Signal::SIGTERM).context("cannot pass a signal on")?;
                }
                alarm::set(GRACE_S);
            }
        }
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(1)
}

struct RunDirectory(PathBuf);

impl RunDirectory {
    fn new() -> Result<Self> {
        remove_orphans();
        for n in 0..1000 {
            let path = PathBuf::from(format!("/tmp/mitosis-{}-{n}", std::process::id()));
            match fs::DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.raw_os_error() == Some(Errno::EEXIST as i32) => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot make {}", path.display()))
                }
            }
        }
        bail!("cannot make a directory in /tmp: remove old /tmp/mitosis-*")
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Removes the directories of those that were killed before they could do it.
fn remove_orphans() {
    let Ok(entries) = fs::read_dir("/tmp") else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| {
            name.strip_prefix("mitosis-")?
                .split_once('-')?
                .0
                .parse::<u32>()
                .ok()
        });
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Another user's stays.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
