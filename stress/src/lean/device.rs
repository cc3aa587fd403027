//! `/dev/mitosis`, as far as a container needs it; `kmod-glue/uapi/mitosis.h` has the whole interface.

use std::os::fd::RawFd;

use nix::errno::Errno;

/// `struct mitosis_resume`
#[repr(C)]
struct Resume {
    child: u64,
    flags: u32,
    reserved: u32,
}

nix::ioctl_write_ptr!(mitosis_resume, 0xb5, 7, Resume);

/// Replaces this process by the child of this number of `image`. Returns only why it could not.
///
/// Neither allocates nor panics.
pub(super) fn resume(image: RawFd, child: u64) -> Errno {
    let resume = Resume {
        child,
        flags: 0,
        reserved: 0,
    };
    // SAFETY: the struct is the one that the call takes, and lives beyond it. If the call succeeds, this code does not
    // go on.
    match unsafe { mitosis_resume(image, &raw const resume) } {
        Err(errno) => errno,
        // The call does not return without an error.
        Ok(_) => Errno::EPROTO,
    }
}
