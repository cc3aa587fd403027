//! What a seed is, apart from its pages, as `docs/descriptor.md` specifies the bytes.
//!
//! The kernel of the seed's machine writes a descriptor with an [`Encoder`] into a buffer of its
//! own. The child's machine checks its transfer with [`verify`], and its contents with
//! [`Descriptor::parse`], once and completely; afterwards it is read where it lies, and nothing that
//! is asked of it can fail. Whatever parses, encodes to the identical bytes.
//!
//! One file a section: [`identity`], [`registers`], [`layout`], [`task`], [`vma`], [`chunks`],
//! [`file`], [`action`], and [`paths`], which the records of VMAs and files refer to. [`header`]
//! stands before them.
//!
//! A descriptor says what its maker liked to say. That it parses means that no register, address
//! or flag in it is one that user space could not have set; it does not mean that the process it
//! describes makes sense.

#[macro_use]
mod words;
pub mod action;
pub mod chunks;
mod encoder;
mod error;
pub mod file;
pub mod header;
pub mod identity;
pub mod layout;
mod parser;
pub mod paths;
pub mod registers;
pub mod task;
pub mod vma;

pub use action::{SignalAction, SIGNALS};
pub use encoder::Encoder;
pub use error::{DescriptorError, EncodeError};
pub use file::{FileKind, OpenFile};
pub use header::verify;
pub use identity::{Capability, CpuFeatures, CpuidRegister, CpuidWord, Identity, SeedId};
pub use layout::Layout;
pub use parser::Descriptor;
pub use registers::Registers;
pub use task::Task;
pub use vma::{Vma, VmaFlags, VmaKind};

/// Longest descriptor in bytes: it travels as one message.
pub const MAX_DESCRIPTOR: usize = crate::wire::MAX_MESSAGE as usize;

/// Most VMAs: the power of two above 65,530, the kernel's default of `vm.max_map_count`.
pub const MAX_VMAS: usize = 65_536;

/// Most chunks: 1 TiB of touched memory where it is dense, and 2 MiB of descriptor.
pub const MAX_CHUNKS: usize = 524_288;

/// Most open files: 64 times the usual soft limit (1024). The usual hard limit, a million, would
/// leave no room for anything else.
pub const MAX_FILES: usize = 65_536;

/// Longest path in bytes: the kernel's `PATH_MAX` without the NUL.
pub const MAX_PATH: usize = 4095;

/// Where user space ends: `TASK_SIZE_MAX` of x86-64 with four levels of page tables. Neither a
/// mapping nor an instruction pointer lies beyond.
pub const USER_END: u64 = (1 << 47) - PAGE;

/// Length of a page in bytes.
pub const PAGE: u64 = 4096;

/// Length in bytes of a descriptor with so many VMAs, chunks and files, not counting their paths.
pub const fn len_without_paths(vmas: usize, chunks: usize, files: usize) -> usize {
    (header::LEN + identity::LEN + registers::LEN + layout::LEN + task::LEN)
        .saturating_add(SIGNALS * action::LEN)
        .saturating_add(vmas.saturating_mul(vma::LEN))
        .saturating_add(chunks.saturating_mul(chunks::LEN))
        .saturating_add(files.saturating_mul(file::LEN))
}

// A process at all three limits is not refused for its length, unless its paths are longer than
// 2 MiB together.
const _: () =
    assert!(len_without_paths(MAX_VMAS, MAX_CHUNKS, MAX_FILES) + (2 << 20) <= MAX_DESCRIPTOR);

/// A value that its field does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wrong {
    what: &'static str,
    found: u64,
}

/// `Ok` if `right`.
#[inline]
const fn check(right: bool, what: &'static str, found: u64) -> Result<(), Wrong> {
    if right {
        Ok(())
    } else {
        Err(Wrong { what, found })
    }
}

/// An address of user space, or 0.
#[inline]
const fn check_address(what: &'static str, address: u64) -> Result<(), Wrong> {
    check(address < USER_END, what, address)
}
