//! Error numbers of the kernel, and their names for the log.

use crate::log::{Line, Part};

/// A negative error number, as kernel functions return it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
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
            12 => "out of memory",
            16 => "busy",
            19 => "no such device",
            22 => "invalid argument",
            28 => "no room",
            98 => "address in use",
            99 => "address not available",
            101 => "network unreachable",
            104 => "connection reset",
            110 => "timed out",
            111 => "refused",
            113 => "no route to host",
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
