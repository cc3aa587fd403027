//! What can go wrong, by name, and what to do about it.

use std::ffi::CStr;
use std::fmt;

use mitosis_core::descriptor::DescriptorError;

use crate::gid::Gid;
use crate::uapi::{Machine, SeedId};

/// What a process has that cannot be carried: `MITOSIS_REFUSED_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A writable shared mapping.
    SharedMemory,
    /// A mapping of a device.
    DeviceMemory,
    /// Explicit huge pages.
    HugePages,
    /// More VMAs, or open files, than a descriptor has.
    TooMany,
    /// More memory than a descriptor describes.
    TooLarge,
    /// An open file, which the caller wanted to be refused.
    File,
    /// More than one thread.
    Threads,
    /// A register or a setting that no descriptor can have.
    State,
    /// What this library does not know.
    Unknown(u32),
}

impl Refusal {
    /// The refusal with this number.
    pub const fn from_u32(number: u32) -> Self {
        match number {
            1 => Self::SharedMemory,
            2 => Self::DeviceMemory,
            3 => Self::HugePages,
            4 => Self::TooMany,
            5 => Self::TooLarge,
            6 => Self::File,
            7 => Self::Threads,
            8 => Self::State,
            _ => Self::Unknown(number),
        }
    }
}

/// Why a call failed.
///
/// Those that can happen in the copy of a process with many threads, where an allocation may never
/// return, own no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// There is no `/dev/mitosis`.
    NoDevice,
    /// `/dev/mitosis` is for root and the group `mitosis`.
    NoAccess,
    /// The process cannot be a seed.
    Refused {
        /// What it has that cannot be carried.
        what: Refusal,
        /// Where: an address, a file descriptor, or how many.
        at: u64,
    },
    /// The process that was to freeze ended before it did, or could not freeze.
    NotFrozen {
        /// What the kernel says.
        errno: i32,
    },
    /// The C library does not keep its thread's id where this library could renew it.
    NoThreadId,
    /// There is no such seed, or it is over.
    NoSuchSeed {
        /// Which.
        seed: SeedId,
    },
    /// The seed's process takes a minute and more to freeze.
    NotYet {
        /// Which.
        seed: SeedId,
    },
    /// The seed is not the caller's, or the capability is not the seed's.
    NotEntitled {
        /// Which.
        seed: SeedId,
    },
    /// The seed's machine has no room, or this one has none.
    Exhausted,
    /// Another machine does not answer as it should.
    Unreachable {
        /// Which.
        machine: Machine,
        /// What the kernel says.
        errno: i32,
    },
    /// Another machine has another cluster key.
    OtherKey {
        /// Which.
        machine: Machine,
    },
    /// The descriptor is damaged.
    Descriptor(DescriptorError),
    /// The seed's machine runs another kernel.
    OtherKernel(Box<Kernels>),
    /// The processor lacks what the seed was started with.
    OtherProcessor {
        /// Which word of descriptor.md §3.1.
        word: usize,
        /// Its bits that are missing.
        missing: u32,
    },
    /// The process has more than one thread, and cannot become another.
    Threads,
    /// The process has something where the seed has its vdso. Another process may not: addresses
    /// are drawn at random when a program starts.
    InTheWay {
        /// Where.
        at: u64,
    },
    /// The kernel's own mappings here are not like those of the seed.
    OtherVdso,
    /// A file that the seed has open cannot be opened here.
    File {
        /// Its number.
        fd: u32,
        /// Why.
        errno: i32,
    },
    /// The seed has a file open with a number that this process may not have: `ulimit -n`.
    FileLimit {
        /// Its number.
        fd: u32,
        /// Numbers are below.
        limit: u64,
    },
    /// The process is no longer what it was, and not the seed: it can only end.
    Late {
        /// What failed.
        what: &'static str,
        /// Why.
        errno: i32,
    },
    /// A system call failed.
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        errno: i32,
    },
}

impl Error {
    /// What C's `errno` becomes.
    pub const fn errno(&self) -> i32 {
        match *self {
            Self::NoDevice => libc::ENODEV,
            Self::NoAccess | Self::NotEntitled { .. } => libc::EACCES,
            Self::Refused { .. } | Self::OtherProcessor { .. } => libc::EOPNOTSUPP,
            Self::NotFrozen { errno }
            | Self::Unreachable { errno, .. }
            | Self::File { errno, .. }
            | Self::System { errno, .. } => errno,
            Self::NoThreadId => libc::ENOSYS,
            Self::OtherKey { .. } => libc::EKEYREJECTED,
            Self::NoSuchSeed { .. } => libc::ENOENT,
            Self::NotYet { .. } => libc::EINPROGRESS,
            Self::Exhausted => libc::ENOBUFS,
            Self::Descriptor(_) => libc::EBADMSG,
            Self::OtherKernel(_) | Self::OtherVdso => libc::ENOEXEC,
            Self::Threads => libc::EBUSY,
            Self::InTheWay { .. } => libc::EAGAIN,
            Self::FileLimit { .. } => libc::EMFILE,
            Self::Late { .. } => libc::EOWNERDEAD,
        }
    }

    /// What the kernel says of another machine.
    pub(crate) const fn of_machine(machine: Machine, errno: i32) -> Self {
        match errno {
            libc::EKEYREJECTED => Self::OtherKey { machine },
            errno => Self::Unreachable { machine, errno },
        }
    }

    /// Whether the process is as it was before the call.
    pub const fn is_harmless(&self) -> bool {
        !matches!(self, Self::Late { .. })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NoDevice => f.write_str("there is no /dev/mitosis: load mitosis.ko (as root: insmod mitosis.ko)"),
            Self::NoAccess => f.write_str(
                "no access to /dev/mitosis: join the group mitosis (as root: usermod -aG mitosis $USER, then log in anew)",
            ),
            Self::Refused { what, at } => refused(f, what, at),
            Self::NotFrozen { errno } => {
                write!(f, "the copy of the process did not freeze: {}", Reason(errno))
            }
            Self::NoThreadId => f.write_str(
                "the C library does not keep the thread's id where PR_GET_TID_ADDRESS says: use glibc, and a kernel \
                 with CONFIG_CHECKPOINT_RESTORE",
            ),
            Self::NoSuchSeed { seed } => write!(
                f,
                "there is no seed {}.{}: it was unprepared, its lease is over, its owner ended, or its process did \
                 not freeze, of which the log of its machine says more",
                seed.id, seed.generation
            ),
            Self::NotYet { seed } => write!(
                f,
                "the process of seed {}.{} has not frozen yet: does something hold it up after fork()?",
                seed.id, seed.generation
            ),
            Self::NotEntitled { seed } => write!(
                f,
                "seed {}.{} is another's, or has another capability: give the one that prepare gave, or be root and give none",
                seed.id, seed.generation
            ),
            Self::Exhausted => f.write_str("this machine or the seed's has no room for it now: try again later"),
            Self::Unreachable { machine, errno } => write!(
                f,
                "{} does not answer at service {} ({}): is it up, and mitosis.ko loaded there?",
                Gid(&machine.gid),
                machine.service,
                Reason(errno)
            ),
            Self::OtherKey { machine } => write!(
                f,
                "{} has another cluster key than this machine, or one of the two has none: load mitosis.ko with the same \
                 cluster_key on both",
                Gid(&machine.gid)
            ),
            Self::Descriptor(error) => write!(f, "the descriptor is damaged: {error}"),
            Self::OtherKernel(ref kernels) => write!(
                f,
                "the seed's machine runs the kernel {}, and this one {}: they must be the same build",
                kernels.seed, kernels.here
            ),
            Self::OtherProcessor { word, missing } => write!(
                f,
                "this processor lacks what the seed's has (word {word} of the features in descriptor.md, bits \
                 {missing:#x}): start the seed on the lesser machine"
            ),
            Self::Threads => f.write_str("a process with more than one thread cannot become a seed's continuation"),
            Self::InTheWay { at } => write!(
                f,
                "this process has something of its own at {at:#x}, where the seed's vdso belongs: try again in a new \
                 process"
            ),
            Self::OtherVdso => f.write_str("the vdso here is not like that of the seed's machine"),
            Self::File { fd, errno } => write!(
                f,
                "the seed's open file {fd} cannot be opened here: {} (mitosis describe names it; --skip-files leaves \
                 it closed)",
                Reason(errno)
            ),
            Self::FileLimit { fd, limit } => write!(
                f,
                "the seed has a file open as {fd}, and the limit here is {limit}: raise it (ulimit -n)"
            ),
            Self::Late { what, errno } => {
                write!(f, "{what} failed too late to go on: {}", Reason(errno))
            }
            Self::System { what, errno } => write!(f, "{what}: {}", Reason(errno)),
        }
    }
}

impl std::error::Error for Error {}

fn refused(f: &mut fmt::Formatter<'_>, what: Refusal, at: u64) -> fmt::Result {
    f.write_str("this process cannot be a seed: ")?;
    match what {
        Refusal::SharedMemory => write!(f, "the mapping at {at:#x} is shared and can be written"),
        Refusal::DeviceMemory => write!(f, "the mapping at {at:#x} is a device's"),
        Refusal::HugePages => write!(f, "the mapping at {at:#x} has explicit huge pages"),
        Refusal::TooMany => write!(f, "it has more than {at} mappings or open files"),
        Refusal::TooLarge => write!(f, "its descriptor would be longer than 8 MiB"),
        Refusal::File => write!(
            f,
            "open file {at} cannot be carried: close it, or do without strict files"
        ),
        Refusal::Threads => write!(f, "it has {at} threads"),
        Refusal::State => write!(
            f,
            "it has a register or setting {at:#x} that is no 64-bit program's"
        ),
        Refusal::Unknown(number) => write!(f, "the module says {number}, at {at:#x}"),
    }
}

/// What an error number means, in the words of the C library.
struct Reason(i32);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 128];
        // SAFETY: `text` is valid for its length during the call, which leaves a NUL in it.
        let failed = unsafe { libc::strerror_r(self.0, text.as_mut_ptr().cast(), text.len()) };
        match CStr::from_bytes_until_nul(&text) {
            Ok(text) if failed == 0 => write!(f, "{}", text.to_string_lossy()),
            _ => write!(f, "error {}", self.0),
        }
    }
}

/// Two kernels that should be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// `uname -r` and `-v` of the seed's machine.
    pub seed: String,
    /// The same here.
    pub here: String,
}
