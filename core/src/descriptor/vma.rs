//! The mappings of a seed (descriptor.md §7).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::paths::{self, Reference};
use super::{check, Wrong, PAGE, USER_END};

/// Length of a record in bytes.
pub const LEN: usize = 36;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Fields {
    start: U64,
    end: U64,
    page_offset: U64,
    flags: U32,
    path_back_bytes: U32,
    path_len_bytes: U16,
    kind: u8,
    reserved: u8,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// Properties of a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmaFlags(pub u32);

impl VmaFlags {
    /// Pages can be read.
    pub const READ: Self = Self(1);
    /// Pages can be written.
    pub const WRITE: Self = Self(2);
    /// Pages can be executed.
    pub const EXEC: Self = Self(4);
    /// A stack: it grows downwards where it is touched.
    pub const GROWSDOWN: Self = Self(8);
    /// No memory is reserved for it: `MAP_NORESERVE`.
    pub const NORESERVE: Self = Self(16);
    /// Not inherited by `fork()`: `MADV_DONTFORK`.
    pub const DONTFORK: Self = Self(32);
    /// Zeros after `fork()`: `MADV_WIPEONFORK`.
    pub const WIPEONFORK: Self = Self(64);
    /// `MAP_SHARED`, and never written: the child has what the seed saw.
    pub const SHARED: Self = Self(128);

    const ALL: u32 = 255;

    /// Whether all of `flags` are set.
    #[inline]
    pub const fn contains(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// These and those.
    #[inline]
    #[must_use]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }
}

/// What is behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum VmaKind {
    /// Nothing: zeros until it is written.
    Anonymous = 1,
    /// A file. What was not touched is the file's.
    File = 2,
    /// The kernel's: vvar and vdso. The child brings its own.
    Special = 3,
}

impl VmaKind {
    /// The kind with this discriminant, if there is one.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Anonymous,
            2 => Self::File,
            3 => Self::Special,
            _ => return None,
        })
    }
}

/// A mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vma<'d> {
    /// First address; a multiple of [`PAGE`].
    pub start: u64,
    /// The address after the last; a multiple of [`PAGE`].
    pub end: u64,
    /// Its properties.
    pub flags: VmaFlags,
    /// What is behind it.
    pub kind: VmaKind,
    /// Of a file, the page that is mapped first; otherwise 0.
    pub page_offset: u64,
    /// Of a file, its path on the seed's machine, if it has one; otherwise `None`.
    pub path: Option<&'d [u8]>,
}

impl Fields {
    #[inline]
    pub(super) fn of(vma: &Vma<'_>, path: Reference) -> Self {
        Self {
            start: U64::new(vma.start),
            end: U64::new(vma.end),
            page_offset: U64::new(vma.page_offset),
            flags: U32::new(vma.flags.0),
            path_back_bytes: U32::new(path.back),
            path_len_bytes: U16::new(path.len),
            kind: vma.kind as u8,
            reserved: 0,
        }
    }

    /// Checks the record against the end of the one before it, or 0.
    #[inline]
    pub(super) fn check(&self, after: u64) -> Result<(), Wrong> {
        let (start, end) = (self.start.get(), self.end.get());
        check(start >= after && start % PAGE == 0, "VMA start", start)?;
        check(
            end > start && end <= USER_END && end % PAGE == 0,
            "VMA end",
            end,
        )?;
        let kind = VmaKind::from_u8(self.kind);
        let file = matches!(kind, Some(VmaKind::File));
        check(kind.is_some(), "VMA kind", u64::from(self.kind))?;
        let flags = VmaFlags(self.flags.get());
        let known = flags.0 & !VmaFlags::ALL == 0;
        // A shared page that is written is seen by others, which a child on another machine
        // cannot do. Only anonymous memory grows.
        let possible = !flags.contains(VmaFlags::SHARED.with(VmaFlags::WRITE))
            && (!flags.contains(VmaFlags::SHARED) || file)
            && (!flags.contains(VmaFlags::GROWSDOWN) || matches!(kind, Some(VmaKind::Anonymous)));
        check(known && possible, "VMA flags", u64::from(flags.0))?;
        let offset = self.page_offset.get();
        // A file's last byte has a number that fits 63 bits.
        let pages = u64::MAX / PAGE / 2;
        check(
            if file { offset <= pages } else { offset == 0 },
            "VMA page offset",
            offset,
        )?;
        let path = u64::from(self.path_len_bytes.get());
        check(file || path == 0, "length of the path of a VMA", path)?;
        check(self.reserved == 0, "VMA reserved", u64::from(self.reserved))
    }

    #[inline]
    pub(super) fn end(&self) -> u64 {
        self.end.get()
    }

    #[inline]
    pub(super) fn path(&self) -> Reference {
        Reference {
            back: self.path_back_bytes.get(),
            len: self.path_len_bytes.get(),
        }
    }

    #[inline]
    pub(super) fn record<'d>(&self, paths: &'d [u8]) -> Vma<'d> {
        Vma {
            start: self.start.get(),
            end: self.end.get(),
            flags: VmaFlags(self.flags.get()),
            kind: VmaKind::from_u8(self.kind).unwrap_or(VmaKind::Special),
            page_offset: self.page_offset.get(),
            path: paths::resolve(paths, self.path()),
        }
    }
}
