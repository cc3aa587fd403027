//! The seed's machine: a process copies itself, the copy freezes, and goes on elsewhere.

use std::arch::asm;
use std::os::fd::RawFd;

use mitosis_core::descriptor::Capability;

use crate::device::Device;
use crate::error::{Error, Refusal};
use crate::resume::told;
use crate::system::{checked, close, errno, ioctl};
use crate::uapi::{self, Freeze, SeedId};

/// How a seed is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct PrepareOptions {
    /// How long it lives, in ms; 0: as long as this process.
    pub lease_ms: u64,
    /// Refuses open files that no child could have, instead of leaving them out. Waits as well.
    pub strict_files: bool,
    /// Returns when the seed has frozen, or with the reason why there is none.
    pub wait: bool,
}

/// A seed that this process has prepared. It lives until [`Seed::unprepare`], its lease's end, or
/// the end of this process.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Its name.
    pub id: SeedId,
    /// Who knows it may resume the seed.
    pub capability: Capability,
    /// The frozen process.
    pub pid: i32,
    /// Length of its descriptor in bytes; 0 if it had not frozen yet.
    pub descriptor_len: u64,
    /// How many mappings it has; likewise.
    pub vmas: u32,
    /// In how many chunks of 2 MiB it has pages; likewise.
    pub chunks: u32,
}

impl Seed {
    /// Ends the seed.
    pub fn unprepare(self) -> Result<(), Error> {
        let ended = Device::open()?.unprepare(self.id);
        if ended.is_ok() || matches!(ended, Err(Error::NoSuchSeed { .. })) {
            reap(self.pid);
        }
        ended
    }
}

/// Who a child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Child {
    /// The number that it was resumed with.
    pub number: u32,
}

/// Where [`prepare`] has returned.
#[derive(Clone, Debug)]
pub enum Prepared {
    /// In the process that called it.
    Parent(Seed),
    /// In a child of the seed, on whatever machine.
    Child(Child),
}

/// Makes a seed of the calling process: a copy by `fork()`, with its handlers, which freezes.
/// Returns here with the seed, and again in each of its children.
///
/// As `fork()`, it does not wait until the copy has run, unless that has something that cannot be
/// carried, or the options say so. Whoever opens the seed, or queries it, waits for it.
///
/// The seed is a child process of the caller, but the kernel hides it from a plain `wait()`.
///
/// # Safety
/// As of `fork()`: where the process has other threads, a child has only this one, and whatever the
/// others held is held for ever.
pub unsafe fn prepare(options: &PrepareOptions) -> Result<Prepared, Error> {
    let device = Device::open()?;
    let token = token()?;
    // The copy's is at the same place: what it cannot do is said here.
    thread_id_place()?;
    // SAFETY: by this function's contract.
    let pid = checked("fork", i64::from(unsafe { libc::fork() }))? as i32;
    if pid == 0 {
        // SAFETY: this is the copy, of one thread.
        match unsafe { freeze(token, options.strict_files) } {
            Ok(child) => return Ok(Prepared::Child(child)),
            // SAFETY: ends the process, without the handlers that are the original's.
            Err(error) => unsafe { libc::_exit(error.errno()) },
        }
    }
    await_frozen(device, token, pid, options).map(Prepared::Parent)
}

/// The parent's half: the seed that the process `pid` becomes, a child of this one that calls [`freeze`]
/// with `token`.
pub fn await_frozen(
    device: Device,
    token: u64,
    pid: i32,
    options: &PrepareOptions,
) -> Result<Seed, Error> {
    let mut call = uapi::Prepare {
        token,
        pid,
        flags: if options.wait || options.strict_files {
            uapi::PREPARE_WAIT
        } else {
            0
        },
        lease_ms: options.lease_ms,
        ..uapi::Prepare::default()
    };
    // SAFETY: the structure is the one that the call takes.
    let frozen = unsafe { ioctl(device.fd, uapi::PREPARE, &mut call) };
    if let Err(errno) = frozen {
        // SAFETY: the process is a child that nobody has waited for yet, so the number is its own.
        unsafe { libc::kill(pid, libc::SIGKILL) };
        let status = reap(pid);
        return Err(match (errno, call.refused) {
            (libc::EOPNOTSUPP, what) if what != 0 => Error::Refused {
                what: Refusal::from_u32(what),
                at: call.refused_at,
            },
            _ => match status {
                Some(status) if status == libc::ENOSYS => Error::NoThreadId,
                Some(status) if status != 0 => Error::NotFrozen { errno: status },
                _ => Error::NotFrozen { errno },
            },
        });
    }
    Ok(Seed {
        id: call.seed,
        capability: Capability(call.capability),
        pid,
        descriptor_len: call.descriptor_len,
        vmas: call.vmas,
        chunks: call.chunks,
    })
}

/// A number that no other seed has. Opens the device, so that the copy which is made next freezes
/// through this process's open file and lives as long.
pub fn token() -> Result<u64, Error> {
    Device::open()?;
    let mut token = 0u64;
    while token == 0 {
        // SAFETY: the buffer is a number, valid for its length.
        let len = unsafe { libc::getrandom((&raw mut token).cast(), size_of::<u64>(), 0) };
        checked("drawing a random number", len as i64)?;
    }
    Ok(token)
}

/// Waits for the end of a process that a plain wait() does not see. Returns its exit status, if it
/// has one.
fn reap(pid: i32) -> Option<i32> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is valid during the call.
        let ended = unsafe { libc::waitpid(pid, &mut status, libc::__WALL) };
        if ended == pid {
            return libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
        }
        if errno() != libc::EINTR {
            return None;
        }
    }
}

/// The seed's half: the calling process freezes, and returns only in its children, or with an
/// error. Neither allocates nor takes a lock.
///
/// # Safety
/// The caller is a copy of the process that prepares the seed, made by `fork()`, and ends itself
/// if this fails.
pub unsafe fn freeze(token: u64, strict_files: bool) -> Result<Child, Error> {
    let device = Device::open()?;
    let thread_id = thread_id_place()?;
    let call = Freeze {
        token,
        flags: if strict_files {
            uapi::FREEZE_STRICT_FILES
        } else {
            0
        },
        reserved: 0,
    };
    // SAFETY: the structure is the one that the call takes, and lies in memory that a child has too.
    let (returned, child) = unsafe { freeze_call(device.fd, &call) };
    if returned != 1 {
        return Err(Error::System {
            what: "freezing",
            errno: (-returned) as i32,
        });
    }
    // From here on this is a child.
    // SAFETY: `thread_id_place` has seen that it is the C library's note of the thread's id, which
    // this makes true again.
    unsafe { thread_id.write_volatile(libc::syscall(libc::SYS_gettid) as i32) };
    Device::forget();
    let (image, number) = told(child);
    close(image);
    Ok(Child { number })
}

/// Where the C library keeps the thread's id: it is what the kernel clears when the thread ends.
fn thread_id_place() -> Result<*mut i32, Error> {
    const PR_GET_TID_ADDRESS: i32 = 40;
    let mut place: *mut i32 = std::ptr::null_mut();
    // SAFETY: the kernel writes an address to `place`.
    let failed = unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut place) };
    if failed != 0 || place.is_null() {
        return Err(Error::NoThreadId);
    }
    // SAFETY: the kernel will write there when the thread ends, as the C library told it to; the
    // memory is the library's own for as long.
    let noted = unsafe { place.read_volatile() };
    // SAFETY: has no arguments.
    let id = unsafe { libc::syscall(libc::SYS_gettid) } as i32;
    if noted == id {
        Ok(place)
    } else {
        Err(Error::NoThreadId)
    }
}

/// The control words of SSE and x87, of which the kernel carries nothing: a child has those of the
/// process that resumed it until it takes these.
#[repr(C)]
struct Control {
    mxcsr: u32,
    x87: u16,
}

/// `MITOSIS_FREEZE`. Returns what the kernel left in rax, and in rdx.
///
/// # Safety
/// `fd` is the device's.
unsafe fn freeze_call(fd: RawFd, call: &Freeze) -> (i64, u64) {
    let mut control = Control { mxcsr: 0, x87: 0 };
    let returned: i64;
    let child: u64;
    // SAFETY: `call` is what the system call reads, `control` what lies on the stack for the child
    // to find. A child gets all registers of the seed but rax, rdx and the two that every system call
    // changes; all vector and x87 registers are named as changed, as theirs are the resumer's. r12 is
    // none of those that a call changes, so it still points to `control`. The x87 stack is empty
    // here, as the calling convention has it, so `fninit` loses nothing.
    unsafe {
        asm!(
            "stmxcsr [r12]",
            "fnstcw [r12 + 4]",
            "syscall",
            "cmp rax, 1",
            "jne 2f",
            "fninit",
            "fldcw [r12 + 4]",
            "ldmxcsr [r12]",
            "2:",
            in("r12") &raw mut control,
            inlateout("rax") libc::SYS_ioctl => returned,
            in("rdi") fd,
            in("rsi") u64::from(uapi::FREEZE),
            inlateout("rdx") std::ptr::from_ref(call) => child,
            clobber_abi("sysv64"),
        );
    }
    (returned, child)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_id_is_where_the_kernel_says() {
        // The thread of a test is not the first, which makes no difference.
        let place = thread_id_place().unwrap();
        // SAFETY: the place is the C library's, and the thread lives.
        assert_eq!(unsafe { *place }, unsafe { libc::gettid() });
    }

    #[test]
    fn control_words_survive_a_call_that_fails() {
        let call = Freeze::default();
        // SAFETY: no file has this number, so the call does nothing.
        let (returned, _) = unsafe { freeze_call(-1, &call) };
        assert_eq!(returned, -i64::from(libc::EBADF));
        assert!((1.0f64 / 3.0 - 0.333_333).abs() < 1e-5);
    }

    #[test]
    fn without_the_module_the_device_is_named() {
        if std::path::Path::new("/dev/mitosis").exists() {
            return;
        }
        // SAFETY: fails before it forks.
        let error = unsafe { prepare(&PrepareOptions::default()) }.unwrap_err();
        assert_eq!(error, Error::NoDevice);
        assert!(error.to_string().contains("load mitosis.ko"));
    }
}
