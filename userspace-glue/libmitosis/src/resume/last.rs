//! The last stretch: nothing here needs memory that goes away, nor comes back.

use std::arch::asm;
use std::os::fd::RawFd;

use crate::uapi::{self, Resume};

/// What glibc registers with: what stands before each abort handler on x86-64.
const RSEQ_SIGNATURE: u32 = 0x5305_3053;
/// Length of the area that glibc registers in bytes.
const RSEQ_LEN: u32 = 32;
const RSEQ_UNREGISTER: i32 = 1;

/// Where the C library has its threads' restartable-sequences areas, relative to what FS points to, if
/// it registers any. Not to be asked in the copy of a process with many threads: it takes a lock.
pub(super) fn rseq_offset() -> Option<isize> {
    // SAFETY: the names are C strings; the symbols, if they exist, are variables of these types.
    unsafe {
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr());
        size.cast::<u32>().as_ref().filter(|size| **size > 0)?;
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr());
        offset.cast::<isize>().as_ref().copied()
    }
}

/// Takes back the thread's restartable-sequences area: it goes away with the memory around it, and
/// the kernel writes to it whenever it likes. Returns whether it was registered.
pub(super) fn unregister_rseq(offset: isize) -> bool {
    let thread: usize;
    // SAFETY: the first word of what FS points to is its own address, on x86-64 with ELF's
    // thread-local storage.
    unsafe { asm!("mov {}, fs:[0]", out(reg) thread, options(nostack, pure, readonly)) };
    let area = thread.wrapping_add_signed(offset);
    // SAFETY: the kernel compares the arguments with those of the registration, and does nothing if
    // they differ.
    let failed = unsafe {
        libc::syscall(
            libc::SYS_rseq,
            area,
            RSEQ_LEN,
            RSEQ_UNREGISTER,
            RSEQ_SIGNATURE,
        )
    };
    failed == 0
}

/// `MITOSIS_RESUME`. Returns only an error number.
///
/// # Safety
/// The process has one thread, and is ready for the seed's memory.
pub(super) unsafe fn resume(image: RawFd, child: u64, gs_base: u64) -> i32 {
    const ARCH_SET_GS: i64 = 0x1001;
    let call = Resume {
        child,
        flags: 0,
        reserved: 0,
    };
    // SAFETY: GS is of no use to 64-bit programs unless they set it.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, gs_base) };
    let mut returned = libc::SYS_ioctl;
    // SAFETY: `call` is what the system call reads before it changes anything. If it succeeds, it
    // returns elsewhere, and nothing of this function exists any more. Neither the instruction nor
    // what follows it touches thread-local storage: an error is in the register.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") returned,
            in("rdi") image,
            in("rsi") u64::from(uapi::RESUME),
            in("rdx") &raw const call,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    (-returned) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::special::tests::in_a_child;

    /// glibc has registered one, and after that there is none any more.
    #[test]
    fn rseq_is_unregistered_once() {
        let offset = rseq_offset().expect("glibc from 2.35 on");
        in_a_child(move || unregister_rseq(offset) && !unregister_rseq(offset));
    }

    #[test]
    fn a_resumption_that_fails_says_why() {
        in_a_child(|| {
            // SAFETY: no file has this number, so the call does nothing.
            unsafe { resume(-1, 0, 0) == libc::EBADF }
        });
    }
}
