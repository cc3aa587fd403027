//! The open files of a seed (descriptor.md §9).

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::paths::{self, Reference};
use super::{check, Wrong};

/// Length of a record in bytes.
pub const LEN: usize = 24;

/// What is carried of the status flags: the access mode, `O_APPEND`, `O_NONBLOCK`, `O_DSYNC`,
/// `O_DIRECT`, `O_DIRECTORY`, `O_NOATIME`, `O_SYNC`, `O_PATH`. Others are the kernel's own, or have
/// done their work when the file was opened.
pub const STATUS_FLAGS: u32 = 0o3
    | 0o2_000
    | 0o4_000
    | 0o10_000
    | 0o40_000
    | 0o200_000
    | 0o1_000_000
    | 0o4_010_000
    | 0o10_000_000;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Fields {
    position: U64,
    fd: U32,
    status_flags: U32,
    path_back_bytes: U32,
    path_len_bytes: U16,
    close_on_exec: u8,
    kind: u8,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// What an open file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// A regular file.
    Regular = 1,
    /// A directory.
    Directory = 2,
    /// A character device.
    CharDevice = 3,
    /// A pipe or FIFO.
    Pipe = 4,
    /// A socket.
    Socket = 5,
    /// Anything else.
    Other = 6,
}

impl FileKind {
    /// The kind with this discriminant, if there is one.
    pub const fn from_u8(kind: u8) -> Option<Self> {
        Some(match kind {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::Pipe,
            5 => Self::Socket,
            6 => Self::Other,
            _ => return None,
        })
    }
}

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFile<'d> {
    /// Its number.
    pub fd: u32,
    /// What it is.
    pub kind: FileKind,
    /// How it was opened, as `fcntl(F_GETFL)` has it: those of [`STATUS_FLAGS`].
    pub status_flags: u32,
    /// Whether `exec` closes it.
    pub close_on_exec: bool,
    /// Where it is read and written next, in bytes.
    pub position: u64,
    /// Its path on the seed's machine; `None` if it has none, as when it was removed.
    pub path: Option<&'d [u8]>,
}

impl Fields {
    pub(super) fn of(file: &OpenFile<'_>, path: Reference) -> Self {
        Self {
            position: U64::new(file.position),
            fd: U32::new(file.fd),
            status_flags: U32::new(file.status_flags & STATUS_FLAGS),
            path_back_bytes: U32::new(path.back),
            path_len_bytes: U16::new(path.len),
            close_on_exec: u8::from(file.close_on_exec),
            kind: file.kind as u8,
        }
    }

    /// Checks the record against the number of the one before it.
    pub(super) fn check(&self, last: Option<u32>) -> Result<(), Wrong> {
        let fd = self.fd.get();
        let follows = last.is_none_or(|last| fd > last);
        check(
            follows && i32::try_from(fd).is_ok(),
            "number of an open file",
            u64::from(fd),
        )?;
        let position = self.position.get();
        check(
            i64::try_from(position).is_ok(),
            "position of an open file",
            position,
        )?;
        let kind = FileKind::from_u8(self.kind);
        check(kind.is_some(), "kind of an open file", u64::from(self.kind))?;
        let flags = self.status_flags.get();
        check(
            flags & !STATUS_FLAGS == 0,
            "status flags of an open file",
            u64::from(flags),
        )?;
        check(
            self.close_on_exec <= 1,
            "close-on-exec of an open file",
            u64::from(self.close_on_exec),
        )
    }

    pub(super) fn fd(&self) -> u32 {
        self.fd.get()
    }

    pub(super) fn path(&self) -> Reference {
        Reference {
            back: self.path_back_bytes.get(),
            len: self.path_len_bytes.get(),
        }
    }

    pub(super) fn record<'d>(&self, paths: &'d [u8]) -> OpenFile<'d> {
        OpenFile {
            fd: self.fd.get(),
            kind: FileKind::from_u8(self.kind).unwrap_or(FileKind::Other),
            status_flags: self.status_flags.get(),
            close_on_exec: self.close_on_exec == 1,
            position: self.position.get(),
            path: paths::resolve(paths, self.path()),
        }
    }
}
