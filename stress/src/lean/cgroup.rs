//! Control groups (version 2): one for the program, one below it for each container.
//!
//! The program's group is locked for as long as the program lives, so that whoever comes later can tell the groups of a
//! program that was killed: [`Groups::create`] ends what still runs in them and removes them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use nix::fcntl::{Flock, FlockArg};
use nix::libc;

/// Begins the names of programs' groups.
const PREFIX: &str = "mitosis-lean-";
/// More than a child has any use for.
const PIDS_MAX: u32 = 64;

/// What each container may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of one processor's time; 0: no limit.
    pub cpu_percent: u32,
    /// Memory; 0: no limit.
    pub memory_mib: u64,
}

impl Limits {
    fn controllers(self) -> impl Iterator<Item = &'static str> {
        let cpu = (self.cpu_percent > 0).then_some("cpu");
        let memory = (self.memory_mib > 0).then_some("memory");
        cpu.into_iter().chain(memory)
    }
}

/// The program's group. Dropping it removes it with all that is in it.
#[derive(Debug)]
pub struct Groups {
    path: PathBuf,
    limits: Limits,
    pids: bool,
    _lock: Flock<File>,
}

impl Groups {
    /// Makes the program's group, after removing those of programs that were killed.
    pub fn create(id: &str, limits: Limits) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
        let base = hierarchy(&mounts)
            .context("no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")?;
        sweep(&base).with_context(|| format!("{}: cannot remove old groups", base.display()))?;

        let there = fs::read_to_string(base.join("cgroup.controllers"))
            .with_context(|| format!("{}/cgroup.controllers", base.display()))?;
        let there: Vec<&str> = there.split_whitespace().collect();
        for wanted in limits.controllers() {
            if !there.contains(&wanted) {
                bail!(
                    "{}: no {wanted} controller, which limits {wanted} (version 1 may have it): run without a {wanted} limit",
                    base.display()
                );
            }
        }
        let pids = there.contains(&"pids");
        let used: Vec<&str> = limits.controllers().chain(pids.then_some("pids")).collect();
        let path = base.join(format!("{PREFIX}{}-{id}", std::process::id()));
        let groups = Self {
            _lock: make_locked(&path).with_context(|| format!("cannot make {}", path.display()))?,
            path,
            limits,
            pids,
        };
        for directory in [&base, &groups.path] {
            enable(directory, &used)
                .with_context(|| format!("{}: cannot pass {used:?} on", directory.display()))?;
        }
        Ok(groups)
    }

    /// Makes a container's group.
    pub fn group(&self, name: &str) -> io::Result<Group> {
        let path = self.path.join(name);
        fs::create_dir(&path)?;
        let directory = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&path)?;
        let group = Group { path, directory };
        let set = |file: &str, value: String| fs::write(group.path.join(file), value);
        if self.limits.cpu_percent > 0 {
            // Microseconds of each tenth of a second.
            set(
                "cpu.max",
                format!("{} 100000", u64::from(self.limits.cpu_percent) * 1_000),
            )?;
        }
        if self.limits.memory_mib > 0 {
            set("memory.max", format!("{}", self.limits.memory_mib << 20))?;
            set("memory.oom.group", "1".into())?;
        }
        if self.pids {
            set("pids.max", PIDS_MAX.to_string())?;
        }
        Ok(group)
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // What cannot be removed is the next program's to sweep.
        let _ = remove(&self.path);
    }
}

/// A container's group. Dropping it ends what runs there and removes it.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    directory: File,
}

impl Group {
    /// For CLONE_INTO_CGROUP.
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Ends all that runs there.
    pub fn kill(&self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if fs::remove_dir(&self.path).is_err() {
            let _ = remove(&self.path);
        }
    }
}

/// Where the version 2 hierarchy is mounted.
fn hierarchy(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

fn enable(directory: &Path, controllers: &[&str]) -> io::Result<()> {
    let file = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file)?;
    for controller in controllers {
        if !enabled.split_whitespace().any(|word| word == *controller) {
            fs::write(&file, format!("+{controller}"))?;
        }
    }
    Ok(())
}

/// Makes a group and locks it. Between the two, another program may take it for one that was left behind, and remove it.
fn make_locked(path: &Path) -> io::Result<Flock<File>> {
    const ATTEMPTS: u32 = 10;
    for _ in 0..ATTEMPTS {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        match lock(path) {
            Ok(Some(lock)) if path.exists() => return Ok(lock),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("other programs keep removing it"))
}

/// `None` where another program has it.
fn lock(path: &Path) -> io::Result<Option<Flock<File>>> {
    match Flock::lock(File::open(path)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, nix::Error::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

/// Removes the groups of programs that are gone.
fn sweep(base: &Path) -> io::Result<()> {
    for entry in fs::read_dir(base)? {
        let path = entry?.path();
        let ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(PREFIX));
        if !ours || !path.is_dir() {
            continue;
        }
        match lock(&path) {
            Ok(Some(_lock)) => remove(&path)?,
            Ok(None) => {}
            // Its own program was just about to remove it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Ends all that runs in a group and in those below it, waits until it is gone, and removes them.
fn remove(path: &Path) -> io::Result<()> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if gone(&error) => return Ok(()),
        other => other?,
    }
    await_empty(path)?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if gone(&error) => Ok(()),
        other => other,
    }
}

/// A change of `cgroup.events` is an exceptional condition on it.
fn await_empty(path: &Path) -> io::Result<()> {
    use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
    use std::io::{Read, Seek};
    let mut events = File::open(path.join("cgroup.events"))?;
    loop {
        let mut text = String::new();
        events.rewind()?;
        events.read_to_string(&mut text)?;
        if text.lines().any(|line| line == "populated 0") {
            return Ok(());
        }
        let changed = PollFd::new(events.as_fd(), PollFlags::POLLPRI);
        let timeout = PollTimeout::from(5_000u16);
        if poll(&mut [changed], timeout)? == 0 {
            return Err(io::Error::other(format!(
                "{}: what runs there does not end",
                path.display()
            )));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_beside_version_1() {
        let mounts = "proc /proc proc rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            hierarchy(mounts),
            Some(PathBuf::from("/sys/fs/cgroup/unified"))
        );
        assert_eq!(
            hierarchy("cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"),
            None
        );
    }
}
