//! Becoming a seed's continuation.
//!
//! [`Resumption::new`] does all that can be refused with the process still whole, and all that needs
//! memory. [`Resumption::run`] neither allocates nor takes a lock, so that a copy of a process with
//! many threads can do it; first it opens the seed's files, which can still be refused; then it
//! gives up what it was, and ends in the one system call that does not return.

mod actions;
pub mod files;
mod last;
pub mod special;

use std::os::fd::RawFd;

use mitosis_core::descriptor::{Descriptor, SignalAction, SIGNALS};

use self::files::Files;
use self::special::Relocation;
use crate::cpu;
use crate::error::{Error, Kernels};
use crate::system::checked;

/// What a child is told is 64 bits: its number, and above it the number of the image's file, which it
/// closes first of all.
pub(crate) fn tell(image: RawFd, number: u32) -> u64 {
    u64::from(image as u32) << 32 | u64::from(number)
}

/// What [`tell`] made.
pub(crate) fn told(child: u64) -> (RawFd, u32) {
    ((child >> 32) as RawFd, child as u32)
}

/// All that it takes to become the continuation of a seed, as often as wanted: once in each copy of
/// this process.
#[derive(Debug)]
pub struct Resumption {
    files: Files,
    relocation: Relocation,
    actions: [SignalAction; SIGNALS],
    personality: u32,
    gs_base: u64,
    rseq_offset: Option<isize>,
    /// With a NUL.
    comm: [u8; 16],
}

impl Resumption {
    /// Checks a seed against this machine and this process.
    pub fn new(descriptor: &Descriptor<'_>) -> Result<Self, Error> {
        let identity = descriptor.identity();
        same_kernel(identity.kernel_release, identity.kernel_version)?;
        if let Some((word, missing)) = cpu::features().lacks(&identity.cpu_features) {
            return Err(Error::OtherProcessor { word, missing });
        }
        let mut comm = [0; 16];
        for (place, byte) in comm.iter_mut().zip(identity.comm) {
            *place = *byte;
        }
        Ok(Self {
            files: Files::new(descriptor),
            relocation: Relocation::new(descriptor)?,
            actions: descriptor.actions(),
            personality: descriptor.task().personality,
            gs_base: descriptor.registers().gs_base,
            rseq_offset: last::rseq_offset(),
            comm,
        })
    }

    /// What becomes of the seed's open files.
    pub fn files(&self) -> &Files {
        &self.files
    }

    /// Leaves files closed that cannot be opened here, instead of failing.
    pub fn skip_files(&mut self) {
        self.files.skip();
    }

    /// Replaces this process by the child of this number of the seed whose image is open as `image`.
    /// Returns only why it could not. Unless that [is harmless](Error::is_harmless), the process can
    /// only end.
    ///
    /// Standard input, output and error stay what they are; every other open file is closed.
    ///
    /// # Safety
    /// The process has one thread, and no file that is closed behind its owner's back matters any
    /// more if this fails.
    pub unsafe fn run(&mut self, image: RawFd, number: u32) -> Error {
        // SAFETY: by this function's contract.
        match unsafe { self.try_run(image, number) } {
            Err(error) => error,
            Ok(never) => match never {},
        }
    }

    unsafe fn try_run(
        &mut self,
        image: RawFd,
        number: u32,
    ) -> Result<std::convert::Infallible, Error> {
        alone()?;
        let mut image = image;
        self.files.open(&mut image)?;
        // The moves can be undone; what follows them cannot. glibc calls into the vdso for the
        // time, so from here on nobody may ask for it.
        let before = actions::block_all();
        if let Err(error) = self.relocation.run() {
            actions::restore(before);
            self.files.give_up();
            return Err(error);
        }
        let late = |what| {
            move |error: Error| Error::Late {
                what,
                errno: error.errno(),
            }
        };
        self.files
            .place(image)
            .map_err(late("placing the seed's open files"))?;
        actions::set(&self.actions).map_err(late("setting the seed's signal actions"))?;
        // SAFETY: these change what the kernel keeps for this process, which gives itself up.
        unsafe {
            let interval: libc::itimerval = std::mem::zeroed();
            for timer in [libc::ITIMER_REAL, libc::ITIMER_VIRTUAL, libc::ITIMER_PROF] {
                libc::syscall(libc::SYS_setitimer, timer, &raw const interval, 0);
            }
            libc::prctl(libc::PR_SET_NAME, self.comm.as_ptr());
            let set = libc::personality(libc::c_ulong::from(self.personality));
            checked("personality", i64::from(set))
                .map_err(late("setting the seed's personality"))?;
        }
        if let Some(offset) = self.rseq_offset {
            last::unregister_rseq(offset);
        }
        // SAFETY: the process has one thread, and has been made ready.
        let errno = unsafe { last::resume(image, tell(image, number), self.gs_base) };
        Err(Error::Late {
            what: "MITOSIS_RESUME",
            errno,
        })
    }
}

/// Refuses a process of many threads before anything is given up. Where there is no /proc, the
/// kernel refuses it later.
fn alone() -> Result<(), Error> {
    // SAFETY: a structure of integers, which the call fills.
    let mut tasks: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, and `tasks` valid during the call.
    let failed = unsafe { libc::stat(c"/proc/self/task".as_ptr(), &mut tasks) };
    // A directory has two links, and one more for each that is in it.
    if failed == 0 && tasks.st_nlink > 3 {
        return Err(Error::Threads);
    }
    Ok(())
}

/// Refuses another kernel than that of the seed's machine, with both names.
fn same_kernel(release: &[u8], version: &[u8]) -> Result<(), Error> {
    // SAFETY: a structure of characters, which the call fills.
    let mut here: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: `here` is valid during the call.
    checked("uname", i64::from(unsafe { libc::uname(&mut here) }))?;
    let text = |characters: &[libc::c_char; 65]| characters.map(|character| character as u8);
    let (release_here, version_here) = (text(&here.release), text(&here.version));
    let until_nul = |bytes: &[u8; 65]| bytes.iter().position(|byte| *byte == 0).unwrap_or(65);
    let release_here = &release_here[..until_nul(&release_here)];
    let version_here = &version_here[..until_nul(&version_here)];
    if release_here == release && version_here == version {
        return Ok(());
    }
    let name = |release, version| {
        let [release, version] = [release, version].map(String::from_utf8_lossy);
        format!("{release} ({version})")
    };
    Err(Error::OtherKernel(Box::new(Kernels {
        seed: name(release, version),
        here: name(release_here, version_here),
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_told_its_number_and_the_images() {
        for (image, number) in [(3, 0), (1023, u32::MAX), (i32::MAX, 7)] {
            assert_eq!(told(tell(image, number)), (image, number));
        }
    }

    #[test]
    fn another_kernel_is_refused_with_both_names() {
        let error = same_kernel(b"6.1.0-28-amd64", b"#1 SMP").unwrap_err();
        let text = error.to_string();
        let here = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
        assert!(
            text.contains("6.1.0-28-amd64 (#1 SMP)") && text.contains(here.trim()),
            "{text}"
        );
        assert_eq!(error.errno(), libc::ENOEXEC);
    }

    #[test]
    fn threads_are_refused() {
        std::thread::scope(|scope| {
            let (hold, held) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || held.recv());
            assert_eq!(alone(), Err(Error::Threads));
            drop(hold);
        });
    }
}
