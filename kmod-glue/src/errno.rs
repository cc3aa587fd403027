//! Error numbers of the kernel, and their names for the log.

use crate::log::{Line, Part};

/// A negative error number, as kernel functions return it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// -EPERM
    pub const NOT_PERMITTED: Errno = Errno(-1);
    /// -ENOENT
    pub const NO_ENTRY: Errno = Errno(-2);
    /// -ESRCH
    pub const NO_PROCESS: Errno = Errno(-3);
    /// -EINTR
    pub const INTERRUPTED: Errno = Errno(-4);
    /// -EIO
    pub const IO: Errno = Errno(-5);
    /// -ENOEXEC
    pub const EXEC_FORMAT: Errno = Errno(-8);
    /// -EACCES
    pub const NO_ACCESS: Errno = Errno(-13);
    /// -EFAULT
    pub const FAULT: Errno = Errno(-14);
    /// -EBUSY
    pub const BUSY: Errno = Errno(-16);
    /// -ENOTTY
    pub const NO_SUCH_CALL: Errno = Errno(-25);
    /// -ENOSPC
    pub const NO_ROOM: Errno = Errno(-28);
    /// -EPROTO
    pub const PROTOCOL: Errno = Errno(-71);
    /// -EINPROGRESS
    pub const IN_PROGRESS: Errno = Errno(-115);
    /// -EOPNOTSUPP
    pub const NOT_SUPPORTED: Errno = Errno(-95);
    /// -ECONNRESET
    pub const CONNECTION_RESET: Errno = Errno(-104);
    /// -ENOBUFS
    pub const NO_BUFFER: Errno = Errno(-105);
    /// -ENOTCONN
    pub const NOT_CONNECTED: Errno = Errno(-107);
    /// -ECONNREFUSED
    pub const CONNECTION_REFUSED: Errno = Errno(-111);
    /// -EHOSTUNREACH
    pub const HOST_UNREACHABLE: Errno = Errno(-113);
    /// -ESTALE
    pub const STALE: Errno = Errno(-116);
    /// -ECANCELED
    pub const CANCELED: Errno = Errno(-125);
    /// -EKEYREJECTED
    pub const KEY_REJECTED: Errno = Errno(-129);
    /// -EOWNERDEAD
    pub const OWNER_DEAD: Errno = Errno(-130);
    /// -ENOMEM
    pub const NO_MEMORY: Errno = Errno(-12);
    /// -EINVAL
    pub const INVALID: Errno = Errno(-22);
    /// -ENODEV
    pub const NO_DEVICE: Errno = Errno(-19);
    /// -ETIMEDOUT
    pub const TIMED_OUT: Errno = Errno(-110);

    /// `Ok` for what is not negative.
    pub fn check(value: i32) -> Result<(), Errno> {
        if value < 0 {
            Err(Errno(value))
        } else {
            Ok(())
        }
    }

    fn name(self) -> &'static str {
        match -self.0 {
            1 => "not permitted",
            2 => "no such entry",
            5 => "input or output error",
            8 => "built for another kernel",
            13 => "not entitled",
            12 => "out of memory",
            16 => "busy",
            19 => "no such device",
            22 => "invalid argument",
            28 => "no room",
            98 => "address in use",
            99 => "address not available",
            101 => "network unreachable",
            18 => "another device",
            104 => "connection reset",
            105 => "no buffer space",
            107 => "not connected",
            110 => "timed out",
            111 => "refused",
            113 => "no route to host",
            128 => "key was revoked",
            129 => "key was rejected",
            _ => "failed",
        }
    }
}

impl Part for Errno {
    fn put(&self, line: &mut Line) {
        self.name().put(line);
        " (".put(line);
        self.0.put(line);
        ")".put(line);
    }
}
