//! Where the seed has pages, in units of 2 MiB (descriptor.md §8).

use zerocopy::byteorder::little_endian::U32;

use super::{check, Wrong, USER_END};

/// Length of a record in bytes.
pub const LEN: usize = 4;

/// Length of a chunk in bytes, as a power of two: 2 MiB, the 512 pages of one fast-registration
/// region.
pub const SHIFT: u32 = 21;

/// A record's bytes: the chunk's first address shifted right by [`SHIFT`].
pub(super) type Fields = U32;

/// The record of a chunk that follows `last`, if there was one.
#[inline]
pub(super) fn fields(chunk: u64, last: Option<u32>) -> Result<Fields, Wrong> {
    let within = chunk <= (USER_END - 1) >> SHIFT;
    let follows = last.is_none_or(|last| chunk > u64::from(last));
    check(within && follows, "chunk", chunk)?;
    Ok(U32::new(chunk as u32))
}

/// Whether the chunk that an address lies in is listed.
#[inline]
pub(super) fn contains(chunks: &[Fields], address: u64) -> bool {
    let chunk = address >> SHIFT;
    chunks
        .binary_search_by(|listed| u64::from(listed.get()).cmp(&chunk))
        .is_ok()
}
