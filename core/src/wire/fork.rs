//! What the modules of two machines say to each other about seeds (docs/fork.md §4): the payloads of requests and replies,
//! and the private data of a connection.

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The hint that the module's queue goes by.
pub const QUEUE_HINT: u32 = 0x464f_524b;

/// The RPC ids of a module.
pub mod rpc_id {
    /// Nothing: answers that the module is there.
    pub const PING: u32 = 0x100;
    /// Announces a connection: the reply is a [`Token`](super::Token).
    pub const ATTACH: u32 = 0x101;
    /// [`SeedName`](super::SeedName) to a descriptor.
    pub const DESCRIBE: u32 = 0x102;
    /// [`Place`](super::Place), of a chunk, to a [`Chunk`](super::Chunk).
    pub const CHUNK: u32 = 0x103;
    /// [`Place`](super::Place), of a page, to the page's bytes.
    pub const PAGE: u32 = 0x104;
    /// [`Place`](super::Place), of no number, to [`Recent`](super::Recent)s.
    pub const RECENT: u32 = 0x105;
}

/// Pages in a chunk, and bits in its bitmaps.
pub const CHUNK_PAGES: usize = 512;

/// Most chunks in a reply to `RECENT`.
pub const MAX_RECENT: usize = 16;

/// Bytes in a page.
pub const PAGE_LEN: usize = 4096;

/// How a request about a seed ended; the first word of every reply about one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// It succeeded.
    Done = 0,
    /// There is no such seed, or not any more.
    NoSuchSeed = 1,
    /// The capability is not the seed's.
    NotEntitled = 2,
    /// The request cannot be read.
    BadRequest = 3,
    /// The seed has nothing at this place.
    NoSuchPlace = 4,
    /// The connection that the request names is not there.
    NotAttached = 5,
    /// The machine has no memory, or its device no room.
    Exhausted = 6,
    /// The seed's process has not frozen yet.
    NotYet = 7,
}

impl Status {
    /// The status with this number, if there is one.
    pub const fn from_u32(status: u32) -> Option<Self> {
        Some(match status {
            0 => Self::Done,
            1 => Self::NoSuchSeed,
            2 => Self::NotEntitled,
            3 => Self::BadRequest,
            4 => Self::NoSuchPlace,
            5 => Self::NotAttached,
            6 => Self::Exhausted,
            7 => Self::NotYet,
            _ => return None,
        })
    }

    /// For a log.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::NoSuchSeed => "there is no such seed",
            Self::NotEntitled => "the capability is not the seed's",
            Self::BadRequest => "the request cannot be read",
            Self::NoSuchPlace => "the seed has nothing there",
            Self::NotAttached => "the connection is gone",
            Self::Exhausted => "the seed's machine is out of memory",
            Self::NotYet => "its process has not frozen yet",
        }
    }
}

/// Names a seed, and proves that one may resume it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SeedName {
    /// Its id.
    pub id: U32,
    /// Its generation; 0 for whichever it is.
    pub generation: U32,
    /// Its capability; zeros where `by_id` is 1.
    pub capability: [u8; 16],
    /// 1: a machine's administrator asks, who needs no capability.
    pub by_id: U32,
    /// 0.
    pub reserved: U32,
}

const _: () = assert!(size_of::<SeedName>() == 32);

/// A chunk, or a page, of a seed.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Place {
    /// The seed.
    pub seed: SeedName,
    /// The token of the connection over which it will be read.
    pub token: U64,
    /// Number of the chunk (an address shifted right by 21) or of the page (by 12).
    pub number: U64,
}

const _: () = assert!(size_of::<Place>() == 48);

/// The reply to `ATTACH`: what the connection's private data must be.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Token {
    /// Unguessable.
    pub token: U64,
}

/// The reply to `CHUNK`: where a chunk's pages can be read.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Chunk {
    /// A [`Status`]; if it is not `Done`, the rest is 0.
    pub status: U32,
    /// Key for READ; 0 if no page is present.
    pub rkey: U32,
    /// Address of the first page that is present; the others follow in order.
    pub address: U64,
    /// Pages that are present, a bit each.
    pub present: [U64; 8],
    /// Pages that exist and must be asked for.
    pub elsewhere: [U64; 8],
}

const _: () = assert!(size_of::<Chunk>() == 144);

impl Default for Chunk {
    fn default() -> Self {
        Self::refused(Status::Done)
    }
}

impl Chunk {
    /// A reply that says why not.
    pub fn refused(status: Status) -> Self {
        Self {
            status: U32::new(status as u32),
            rkey: U32::ZERO,
            address: U64::ZERO,
            present: [U64::ZERO; 8],
            elsewhere: [U64::ZERO; 8],
        }
    }
}

/// One of the chunks in the reply to `RECENT`: pages of it that the seed's process touched between its birth and its freezing,
/// which its continuation is likely to touch first.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Recent {
    /// The chunk's number.
    pub number: U64,
    /// Pages that were touched, a bit each.
    pub touched: [U64; 8],
    /// Where the chunk's pages can be read, or why not.
    pub chunk: Chunk,
}

const _: () = assert!(size_of::<Recent>() == 216);

/// What precedes the bytes in the replies to `DESCRIBE`, `PAGE` and `RECENT`.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Preamble {
    /// A [`Status`]; if it is not `Done`, nothing follows.
    pub status: U32,
    /// 0.
    pub reserved: U32,
}

/// Length of a [`Preamble`].
pub const PREAMBLE_LEN: usize = size_of::<Preamble>();

/// Whether a bitmap has a bit.
#[inline]
pub fn has_bit(bitmap: &[u64; 8], bit: usize) -> bool {
    bitmap
        .get(bit / 64)
        .is_some_and(|word| word >> (bit % 64) & 1 != 0)
}

/// How many bits are set below `bit`: a page's place among those that are present.
#[inline]
pub fn rank(bitmap: &[u64; 8], bit: usize) -> usize {
    let mut count = 0u32;
    for (index, word) in bitmap.iter().enumerate() {
        let first = index.saturating_mul(64);
        let below = bit.saturating_sub(first).min(64) as u32;
        let mask = 1u64
            .checked_shl(below)
            .map_or(u64::MAX, |bit| bit.wrapping_sub(1));
        count = count.saturating_add((word & mask).count_ones());
    }
    count as usize
}

/// How many bits are set.
pub fn count(bitmap: &[u64; 8]) -> usize {
    rank(bitmap, CHUNK_PAGES)
}

/// A bitmap in the machine's byte order.
pub fn native(bitmap: &[U64; 8]) -> [u64; 8] {
    bitmap.map(U64::get)
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_what_lies_before() {
        let mut bitmap = [0; 8];
        for bit in [0, 3, 63, 64, 200, 511] {
            bitmap[bit / 64] |= 1 << (bit % 64);
        }
        let expected = [
            (0, 0),
            (1, 1),
            (3, 1),
            (4, 2),
            (64, 3),
            (65, 4),
            (511, 5),
            (512, 6),
        ];
        for (bit, count) in expected {
            assert_eq!(rank(&bitmap, bit), count, "{bit}");
        }
        assert!(has_bit(&bitmap, 200) && !has_bit(&bitmap, 201) && !has_bit(&bitmap, 512));
        assert_eq!(count(&[u64::MAX; 8]), CHUNK_PAGES);
    }

    #[test]
    fn bitmaps_travel_with_the_low_byte_first() {
        let mut words = [U64::ZERO; 8];
        words[1] = U64::from_bytes([1, 0, 0, 0, 0, 0, 0, 0x80]);
        let bitmap = native(&words);
        assert_eq!(bitmap, [0, 1 << 63 | 1, 0, 0, 0, 0, 0, 0]);
        assert!(has_bit(&bitmap, 64) && has_bit(&bitmap, 127));
    }

    #[test]
    fn statuses_have_their_numbers() {
        for number in 0..8 {
            assert_eq!(
                Status::from_u32(number).map(|status| status as u32),
                Some(number)
            );
        }
        assert_eq!(Status::from_u32(8), None);
    }
}
