//! Which seed it is, and where it can be resumed (descriptor.md §3).

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{check, Wrong};

/// Length of the section in bytes.
pub const LEN: usize = 208;

/// Longest name of a program in bytes: the kernel's `TASK_COMM_LEN` without the NUL.
pub const MAX_COMM: usize = 15;

/// Longest release or version of a kernel in bytes: the kernel's `__NEW_UTS_LEN`.
pub const MAX_UTSNAME: usize = 64;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Fields {
    id: U32,
    generation: U32,
    capability: [u8; 16],
    server_epoch: U64,
    owner_uid: U32,
    comm: [u8; MAX_COMM + 1],
    kernel_release: [u8; MAX_UTSNAME],
    kernel_version: [u8; MAX_UTSNAME],
    cpu_features: [U32; CpuFeatures::WORDS],
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// Names a seed of a machine. The generation, which is never 0, tells apart seeds that had the
/// same id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SeedId {
    /// Place in the machine's table of seeds.
    pub id: u32,
    /// Which of the seeds that were in this place.
    pub generation: u32,
}

/// 128 bits that nobody can guess: who knows them may resume the seed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Capability(pub [u8; 16]);

impl core::fmt::Debug for Capability {
    /// Says nothing: a log is no place for it.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Capability(..)")
    }
}

/// What the processor offers to programs, which choose their instructions by it when they start
/// (descriptor.md §3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuFeatures(pub [u32; CpuFeatures::WORDS]);

impl CpuFeatures {
    /// How many words there are.
    pub const WORDS: usize = 7;

    /// Where the words but the last come from. The last is the low half of XCR0, what the kernel
    /// has enabled, or 0 where there is no XGETBV.
    pub const SOURCES: [CpuidWord; Self::WORDS - 1] = [
        CpuidWord::new(1, 0, CpuidRegister::Ecx, 0x76d8_3203),
        CpuidWord::new(7, 0, CpuidRegister::Ebx, 0xfdaf_0939),
        CpuidWord::new(7, 0, CpuidRegister::Ecx, 0x1a40_5f63),
        CpuidWord::new(7, 0, CpuidRegister::Edx, 0x03c1_410c),
        CpuidWord::new(7, 1, CpuidRegister::Eax, 0x0080_0037),
        CpuidWord::new(0x8000_0001, 0, CpuidRegister::Ecx, 0x0021_8961),
    ];

    /// The first word of which `self` lacks something that `seed` has, with the missing bits: what
    /// was started there may not run here.
    pub fn lacks(&self, seed: &Self) -> Option<(usize, u32)> {
        self.0
            .iter()
            .zip(&seed.0)
            .map(|(here, there)| there & !here)
            .enumerate()
            .find(|(_, missing)| *missing != 0)
    }
}

/// A word that CPUID gives; 0 where the processor does not have the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidWord {
    /// What is asked for in EAX.
    pub leaf: u32,
    /// What is asked for in ECX.
    pub subleaf: u32,
    /// Where the answer stands.
    pub register: CpuidRegister,
    /// The bits that count: the instructions of programs, and nothing that only a kernel uses, that
    /// changes by itself, or that is about speed alone.
    pub mask: u32,
}

impl CpuidWord {
    const fn new(leaf: u32, subleaf: u32, register: CpuidRegister, mask: u32) -> Self {
        Self {
            leaf,
            subleaf,
            register,
            mask,
        }
    }
}

/// A register in which CPUID answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are what their names say")]
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// Which seed it is, and where it can be resumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'d> {
    /// The seed.
    pub seed: SeedId,
    /// What entitles to resume it.
    pub capability: Capability,
    /// Which incarnation of the seed's machine.
    pub server_epoch: u64,
    /// The user that prepared it.
    pub owner_uid: u32,
    /// The program's name as `ps` shows it, at most [`MAX_COMM`] bytes.
    pub comm: &'d [u8],
    /// `uname -r` of the seed's machine, at most [`MAX_UTSNAME`] bytes.
    pub kernel_release: &'d [u8],
    /// `uname -v` of the seed's machine, at most [`MAX_UTSNAME`] bytes. A child needs the same
    /// build, as it brings its vdso's data and its system calls with it.
    pub kernel_version: &'d [u8],
    /// What the seed's processor has. A child needs at least that.
    pub cpu_features: CpuFeatures,
}

impl Fields {
    pub(super) fn of(identity: &Identity<'_>) -> Result<Self, Wrong> {
        let fields = Self {
            id: U32::new(identity.seed.id),
            generation: U32::new(identity.seed.generation),
            capability: identity.capability.0,
            server_epoch: U64::new(identity.server_epoch),
            owner_uid: U32::new(identity.owner_uid),
            comm: padded("name of the program", identity.comm, MAX_COMM)?,
            kernel_release: padded("kernel release", identity.kernel_release, MAX_UTSNAME)?,
            kernel_version: padded("kernel version", identity.kernel_version, MAX_UTSNAME)?,
            cpu_features: identity.cpu_features.0.map(U32::new),
        };
        fields.check()?;
        Ok(fields)
    }

    pub(super) fn check(&self) -> Result<(), Wrong> {
        check(self.generation.get() != 0, "generation of the seed", 0)?;
        check_padding("name of the program", &self.comm, MAX_COMM)?;
        check_padding("kernel release", &self.kernel_release, MAX_UTSNAME)?;
        check_padding("kernel version", &self.kernel_version, MAX_UTSNAME)
    }

    pub(super) fn record(&self) -> Identity<'_> {
        Identity {
            seed: SeedId {
                id: self.id.get(),
                generation: self.generation.get(),
            },
            capability: Capability(self.capability),
            server_epoch: self.server_epoch.get(),
            owner_uid: self.owner_uid.get(),
            comm: text(&self.comm),
            kernel_release: text(&self.kernel_release),
            kernel_version: text(&self.kernel_version),
            cpu_features: CpuFeatures(self.cpu_features.map(|word| word.get())),
        }
    }
}

/// The text in an array that is filled up with NULs.
fn text(padded: &[u8]) -> &[u8] {
    padded.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn padded<const N: usize>(
    what: &'static str,
    text: &[u8],
    longest: usize,
) -> Result<[u8; N], Wrong> {
    check(text.len() <= longest, what, text.len() as u64)?;
    let mut padded = [0; N];
    for (place, byte) in padded.iter_mut().zip(text) {
        check(*byte != 0, what, 0)?;
        *place = *byte;
    }
    Ok(padded)
}

/// A text of at most `longest` bytes, and after it nothing but NULs.
fn check_padding(what: &'static str, padded: &[u8], longest: usize) -> Result<(), Wrong> {
    let len = text(padded).len();
    check(len <= longest, what, len as u64)?;
    let stray = padded.iter().skip(len).find(|byte| **byte != 0);
    check(
        stray.is_none(),
        what,
        u64::from(stray.copied().unwrap_or(0)),
    )
}
