//! What verbs and the connection manager refuse, in words that say what to do.

use std::io;

use rustix::process::{getrlimit, Resource};

use crate::fabric::{FabricError, FabricErrorKind};

/// What the last call of libibverbs or librdmacm left in errno.
pub(super) fn errno() -> io::Error {
    io::Error::last_os_error()
}

/// A call of libibverbs that returns an errno, or 0.
pub(super) fn check(returned: i32, what: impl FnOnce() -> String) -> Result<(), FabricError> {
    match returned {
        0 => Ok(()),
        // Some providers return -1 and set errno.
        -1 => Err(failed(what(), errno())),
        number => Err(failed(what(), io::Error::from_raw_os_error(number.abs()))),
    }
}

/// `what` did not work because of `error`.
pub(super) fn failed(what: impl Into<String>, error: io::Error) -> FabricError {
    let (kind, advice) = match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => (
            FabricErrorKind::Denied,
            "run as root, or let this user read and write /dev/infiniband (udev rule or group of rdma-core)",
        ),
        Some(libc::ENOMEM | libc::EAGAIN) => (
            FabricErrorKind::Exhausted,
            "end other RDMA programs (`rdma resource` counts what they have), or ask for fewer buffers",
        ),
        Some(libc::EMFILE | libc::ENFILE) => (
            FabricErrorKind::Exhausted,
            "raise the limit of open files (ulimit -n)",
        ),
        Some(libc::ENODEV | libc::EIO | libc::ENXIO) => (
            FabricErrorKind::DeviceGone,
            "see whether `rdma link` still shows the device, and start again",
        ),
        Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EPROTONOSUPPORT) => (
            FabricErrorKind::Unsupported,
            "this device or kernel cannot do it",
        ),
        _ => (FabricErrorKind::System, ""),
    };
    FabricError::new(kind, what.into(), advice).because(error)
}

/// What keeps this process from opening a device file, or `error`: the libraries look elsewhere for a file that they may not
/// open, and then say that there is none.
pub(super) fn cause(path: &str, error: io::Error) -> io::Error {
    match std::fs::File::options().read(true).write(true).open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::PermissionDenied => cause,
        _ => error,
    }
}

/// Memory could not be pinned for the device.
pub(super) fn not_pinned(len: usize, error: io::Error) -> FabricError {
    let refused = matches!(
        error.raw_os_error(),
        Some(libc::ENOMEM | libc::EAGAIN | libc::EPERM)
    );
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        Some(limit) if refused => FabricError::new(
            FabricErrorKind::Denied,
            format!(
                "cannot pin {} KiB of buffers for the RDMA device: this process may lock {} KiB (RLIMIT_MEMLOCK)",
                len / 1024,
                limit / 1024
            ),
            "raise it: `ulimit -l unlimited`, a `memlock` line in /etc/security/limits.conf, or \
             LimitMEMLOCK=infinity in a systemd unit",
        )
        .because(error),
        _ => failed(format!("cannot pin {} KiB of buffers", len / 1024), error),
    }
}

/// The kernel knows no RDMA device, or none that processes may use.
pub(super) fn no_device() -> FabricError {
    let known: Vec<String> = std::fs::read_dir("/sys/class/infiniband")
        .map(|entries| {
            entries
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                .collect()
        })
        .unwrap_or_default();
    if known.is_empty() {
        return FabricError::new(
            FabricErrorKind::NotFound,
            "this machine has no RDMA device",
            "load its driver, or make one in software: `modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0`; \
             between processes of one machine shm://name needs none",
        );
    }
    FabricError::new(
        FabricErrorKind::NotFound,
        format!("the kernel has {}, but not for processes", known.join(", ")),
        "`modprobe ib_uverbs`, and install its library (Debian: ibverbs-providers)",
    )
}

/// There is no device of this name.
pub(super) fn unknown_device(name: &str, known: &[String]) -> FabricError {
    FabricError::new(
        FabricErrorKind::NotFound,
        format!(
            "no RDMA device is called '{}'; there is {}",
            name.escape_default(),
            known.join(", ")
        ),
        "choose one of these",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_says_what_to_do() {
        let error = failed(
            "cannot open rxe0",
            io::Error::from_raw_os_error(libc::EACCES),
        );
        assert_eq!(error.kind(), FabricErrorKind::Denied);
        assert!(
            error.to_string().starts_with("cannot open rxe0: "),
            "{error}"
        );
        assert!(error.to_string().contains("/dev/infiniband"), "{error}");
        let error = failed("x", io::Error::from_raw_os_error(libc::ENODEV));
        assert_eq!(error.kind(), FabricErrorKind::DeviceGone);
        let error = unknown_device("mlx5_9\n", &["rxe0".into(), "rxe1".into()]).to_string();
        assert!(
            error.contains(r"'mlx5_9\n'") && error.contains("rxe0, rxe1"),
            "{error}"
        );
    }

    #[test]
    fn errnos_come_in_three_ways() {
        assert!(check(0, || "x".into()).is_ok());
        for number in [libc::EACCES, -libc::EACCES] {
            let error = check(number, || "x".into()).unwrap_err();
            assert_eq!(error.kind(), FabricErrorKind::Denied);
        }
    }
}
