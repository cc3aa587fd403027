//! Names: where a server's socket lies, who holds the name, and what a dead server left.
//!
//! In the runtime directory a server called `name` has a socket `name` and a file `name.lock`, on which it holds a lock as
//! long as it lives. The lock is what makes the name its own; the socket of a server without a lock is stale.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{flock, fstat, open, stat, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    bind, connect, listen, socket_with, sockopt, AddressFamily, SocketAddrUnix, SocketFlags,
    SocketType,
};
use rustix::process::geteuid;

use crate::address::ShmName;
use crate::fabric::{FabricError, FabricErrorKind as Kind};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Names the runtime directory.
const VARIABLE: &str = "MITOSIS_RUNTIME_DIR";

/// The directory of this user's names.
pub fn runtime_dir() -> PathBuf {
    let named = |variable| std::env::var_os(variable).filter(|value| !value.is_empty());
    if let Some(dir) = named(VARIABLE) {
        return dir.into();
    }
    match named("XDG_RUNTIME_DIR") {
        Some(dir) => Path::new(&dir).join("mitosis"),
        None => PathBuf::from(format!("/tmp/mitosis-{}", geteuid().as_raw())),
    }
}

/// A name that is ours, and the socket that listens under it. Both are given up when it is dropped.
pub struct Held {
    path: PathBuf,
    lock_path: PathBuf,
    listener: OwnedFd,
    /// Closing it ends the lock.
    _lock: OwnedFd,
}

impl Held {
    /// Takes the name in `dir`, also after a server that has died.
    pub fn take(dir: &Path, name: &ShmName) -> Result<Self, FabricError> {
        make_dir(dir)?;
        let path = dir.join(name.as_str());
        let lock_path = dir.join(format!("{name}.lock"));
        let lock = lock(&lock_path, name)?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(cannot("replace the stale socket", &path, error));
            }
            _ => {}
        }
        let listener = unix_socket()?;
        let address = socket_address(&path)?;
        bind(&listener, &address)
            .and_then(|()| listen(&listener, BACKLOG))
            .map_err(|errno| cannot("create the socket", &path, errno.into()))?;
        Ok(Self {
            path,
            lock_path,
            listener,
            _lock: lock,
        })
    }

    /// The socket that listens; it does not block.
    pub fn listener(&self) -> &OwnedFd {
        &self.listener
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // While the lock is held, nobody else has put anything there.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

fn make_dir(dir: &Path) -> Result<(), FabricError> {
    let made = fs::DirBuilder::new()
        .mode(0o700)
        .recursive(true)
        .create(dir);
    made.map_err(|error| cannot("create the runtime directory", dir, error))?;
    let metadata = fs::symlink_metadata(dir)
        .map_err(|error| cannot("look at the runtime directory", dir, error))?;
    let ours = metadata.uid() == geteuid().as_raw() || metadata.uid() == 0;
    if !metadata.is_dir() || !ours || metadata.mode() & 0o002 != 0 {
        let what = format!(
            "the runtime directory {} is not a directory of yours that others cannot write",
            dir.display()
        );
        let advice = format!("remove it, or name another one in {VARIABLE}");
        return Err(FabricError::new(Kind::Denied, what, advice));
    }
    Ok(())
}

/// The lock on the name.
fn lock(path: &Path, name: &ShmName) -> Result<OwnedFd, FabricError> {
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    loop {
        let file = open(path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| cannot("open the lock", path, errno.into()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let what = format!("shm://{name} is served by another process that lives");
                let advice = format!(
                    "stop it or take another name; `fuser {}` tells its number",
                    path.display()
                );
                return Err(FabricError::new(Kind::InUse, what, advice));
            }
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(cannot("lock", path, errno.into())),
        }
        // A server that ended in between has removed the file: then we hold a lock on nothing.
        let locked =
            fstat(&file).map_err(|errno| cannot("look at the lock", path, errno.into()))?;
        match stat(path) {
            Ok(there) if (there.st_dev, there.st_ino) == (locked.st_dev, locked.st_ino) => {
                return Ok(file);
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(cannot("look at the lock", path, errno.into())),
        }
    }
}

/// A socket that is connected to the server of this name, and blocks for `timeout` at most.
pub fn reach(dir: &Path, name: &ShmName, timeout: Duration) -> Result<OwnedFd, FabricError> {
    let path = dir.join(name.as_str());
    let address = socket_address(&path)?;
    let socket = unix_socket()?;
    rustix::io::ioctl_fionbio(&socket, false)
        .and_then(|()| {
            let timeout = Some(timeout.max(Duration::from_millis(1)));
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, timeout)?;
            sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, timeout)
        })
        .map_err(|errno| cannot("set up a socket for", &path, errno.into()))?;
    match connect(&socket, &address) {
        Ok(()) => Ok(socket),
        Err(Errno::NOENT) => {
            let what = format!("there is no server shm://{name}");
            let advice = format!(
                "start it first, as the same user and with the same {VARIABLE}: it was looked for in {}",
                dir.display()
            );
            Err(FabricError::new(Kind::NotFound, what, advice))
        }
        Err(Errno::CONNREFUSED) => {
            let what = format!(
                "the server shm://{name} is dead, and has left its socket {} behind",
                path.display()
            );
            let advice = "start it again: it takes the name over";
            Err(FabricError::new(Kind::PeerGone, what, advice))
        }
        Err(Errno::AGAIN) => Err(silent(name)),
        Err(errno) => Err(cannot("connect to", &path, errno.into())),
    }
}

/// The server is there and does not answer.
pub fn silent(name: &ShmName) -> FabricError {
    let what = format!("the server shm://{name} lives but does not answer");
    let advice = "it may be stopped, or too busy to poll: look at it";
    FabricError::new(Kind::PeerGone, what, advice)
}

/// Packets, so that a greeting comes as a whole; the connection is what tells of a death.
fn unix_socket() -> Result<OwnedFd, FabricError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(|errno| {
        let what = "cannot create a Unix socket";
        let advice = "raise the limit of open files (ulimit -n)";
        FabricError::new(Kind::Exhausted, what, advice).because(errno)
    })
}

fn socket_address(path: &Path) -> Result<SocketAddrUnix, FabricError> {
    SocketAddrUnix::new(path).map_err(|errno| {
        let what = format!("the socket's path {} is too long", path.display());
        let advice = format!("name a shorter directory in {VARIABLE}");
        FabricError::new(Kind::Misuse, what, advice).because(errno)
    })
}

fn cannot(verb: &str, path: &Path, error: io::Error) -> FabricError {
    let what = format!("cannot {verb} {}", path.display());
    let (kind, advice) = match error.kind() {
        io::ErrorKind::PermissionDenied => (
            Kind::Denied,
            format!(
                "run as the user whose it is, or name a directory of your own in {VARIABLE}, for client and server alike"
            ),
        ),
        io::ErrorKind::NotFound => (
            Kind::NotFound,
            format!("name a directory that can be made in {VARIABLE}"),
        ),
        _ => (
            Kind::System,
            format!("look at it, or name another directory in {VARIABLE}"),
        ),
    };
    FabricError::new(kind, what, advice).because(error)
}

/// The descriptor of a listener, for those who wait for it.
impl AsFd for Held {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
