//! The root file system that all containers see: this machine's own programs, and nothing to write to.
//!
//! It is made in a mount namespace of the program's own, so it is gone with the program, however that ends.

use std::ffi::CString;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use nix::libc;
use nix::mount::{mount, MsFlags};
use nix::sched::{unshare, CloneFlags};

/// Where the program's namespace has it; on every Linux there is a directory of this name.
const AT: &str = "/mnt";
/// Programs, libraries, and the names that they go by at the root.
const SYSTEM: &[&str] = &["usr", "bin", "sbin", "lib", "lib64"];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom"];

/// The finished root.
pub struct Root {
    path: CString,
}

impl Root {
    /// Moves the process into a mount namespace and makes the root there. `shared` are seen by containers under the same
    /// names as here, to be read.
    ///
    /// Only for a process of one thread: others would stay where they are.
    pub fn make(shared: &[PathBuf]) -> Result<Self> {
        for path in shared {
            if !path.is_absolute() || path.parent().is_none() {
                bail!("{}: not an absolute path below the root", path.display());
            }
            if path.starts_with("/tmp") {
                bail!(
                    "{}: cannot be shared, as each container has a /tmp of its own; put it elsewhere",
                    path.display()
                );
            }
        }
        unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace; it takes root")?;
        let none: Option<&str> = None;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(none, "/", none, private, none).context("cannot make mounts private")?;

        // Opened before anything is mounted over them.
        let mut sources = Vec::new();
        let mut links = Vec::new();
        for name in SYSTEM {
            let path = Path::new("/").join(name);
            match fs::symlink_metadata(&path) {
                Ok(there) if there.is_symlink() => {
                    links.push((PathBuf::from(name), fs::read_link(&path)?));
                }
                Ok(_) => sources.push(path),
                Err(_) => {}
            }
        }
        let devices = DEVICES.iter().map(|name| Path::new("/dev").join(name));
        sources.extend(devices);
        sources.extend(shared.iter().cloned());
        let opened: Vec<(PathBuf, File)> = sources
            .into_iter()
            .map(|path| {
                let file = File::options()
                    .read(true)
                    .custom_flags(libc::O_PATH)
                    .open(&path)
                    .with_context(|| format!("cannot open {}", path.display()))?;
                Ok((path, file))
            })
            .collect::<Result<_>>()?;

        let at = Path::new(AT);
        mount(
            Some("lean"),
            at,
            Some("tmpfs"),
            MsFlags::MS_NOSUID,
            Some("mode=755,size=1m"),
        )
        .with_context(|| format!("cannot mount a tmpfs on {AT}; is there such a directory?"))?;
        for name in ["proc", "tmp", "dev", "etc"] {
            fs::create_dir(at.join(name))?;
        }
        for (name, target) in links {
            std::os::unix::fs::symlink(&target, at.join(name))?;
        }
        for (path, file) in opened {
            bind(&path, &file, at)
                .with_context(|| format!("cannot bind {} below {AT}", path.display()))?;
        }
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(none, at, none, read_only, none).context("cannot make the root read-only")?;
        Ok(Self {
            path: CString::new(AT)?,
        })
    }

    /// As the program's namespace names it.
    pub fn path(&self) -> &std::ffi::CStr {
        &self.path
    }
}

/// Binds what `file` is open on to the same path below `root`.
fn bind(path: &Path, file: &File, root: &Path) -> Result<()> {
    let none: Option<&str> = None;
    let target = root.join(path.strip_prefix("/")?);
    if file.metadata()?.is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        File::create(&target)?;
    }
    let source = format!("/proc/self/fd/{}", file.as_raw_fd());
    let source = std::ffi::OsStr::from_bytes(source.as_bytes());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), &target, none, flags, none)?;
    if path.starts_with("/dev") {
        return Ok(());
    }
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    mount(none, &target, none, flags, none)?;
    Ok(())
}
