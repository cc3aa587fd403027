//! System calls with their errors.

use std::ffi::c_void;
use std::os::fd::RawFd;

use crate::error::Error;

/// `errno` of the system call that has just failed.
pub(crate) fn errno() -> i32 {
    // SAFETY: the C library gives the address of the thread's own variable.
    unsafe { *libc::__errno_location() }
}

/// What a system call returned, or why it failed. Does not allocate.
pub(crate) fn checked(what: &'static str, returned: i64) -> Result<i64, Error> {
    if returned < 0 {
        Err(Error::System {
            what,
            errno: errno(),
        })
    } else {
        Ok(returned)
    }
}

/// An `ioctl` whose argument is a structure.
///
/// # Safety
/// `T` is what `command` takes.
pub(crate) unsafe fn ioctl<T>(fd: RawFd, command: u32, argument: &mut T) -> Result<i32, i32> {
    let argument: *mut c_void = std::ptr::from_mut(argument).cast();
    // SAFETY: the structure is valid during the call, and the right one by this function's contract.
    let returned = unsafe { libc::ioctl(fd, command.into(), argument) };
    if returned < 0 {
        Err(errno())
    } else {
        Ok(returned)
    }
}

/// Closes a file whatever the state it is in.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: closing a number that this library got has no effect on memory.
    unsafe { libc::close(fd) };
}
