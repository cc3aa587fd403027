//! A ring of cache lines that carries datagrams from one process to another through memory that both can write.
//!
//! # Layout
//!
//! A datagram lies in as many neighbouring lines as it needs. Each line begins with a stamp, which says the line's number
//! since the start and the length of the datagram, and carries [`LINE_DATA_LEN`] bytes of it. The first line's stamp is
//! written last: it is what the reader waits for. So there is no counter of what was sent, which would be one more line to
//! fetch.
//!
//! Of a datagram's first [`LEAD_WORDS`] words only those travel that differ from the last datagram's: the stamp says which.
//! Nothing is known here of what they mean, but in headers most of them repeat themselves, and so a short call fits into one
//! line: one transfer between two caches.
//!
//! A reader that has nothing to do looks at the next line again and again, and each look takes it from the one that is writing it.
//! Where many datagrams follow each other, the first of a group is therefore written last: the others' lines are left alone until
//! then.
//!
//! # What the other end may do
//!
//! It may die between any two instructions: a datagram whose first stamp is missing has not been sent, and neither end ever
//! waits for the other. It may write anything anywhere, at any time: each word is read once, as an atomic, into memory of
//! our own; a length is checked before it is used; a stamp that is wrong is a line that has not come; and a number of
//! consumed lines that cannot be is a ring that is full.

mod receiver;
mod sender;
mod words;

pub use self::receiver::Receiver;
pub use self::sender::Sender;

use super::primitive::AtomicU64;

/// Words in a line. loom tries the orderings of every atomic, so a line is shorter there.
const WORDS: usize = if cfg!(rdma_loom) { 2 } else { 8 };

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Data words in a line.
const DATA_WORDS: usize = WORDS - 1;

/// Bytes of a datagram that a line carries.
pub const LINE_DATA_LEN: usize = DATA_WORDS * WORD;

/// The words of a datagram that are left out where they repeat the last one's: those of a header.
pub const LEAD_WORDS: usize = if cfg!(rdma_loom) { 1 } else { 5 };

/// Their bytes.
const LEAD_LEN: usize = LEAD_WORDS * WORD;

/// The first words that the commonest datagrams leave out, a bit each: in calls of one kind the request's number and the word
/// with its slot are new each time, and the others seldom are.
const COMMON: u64 = if cfg!(rdma_loom) { 0 } else { 0b01011 };

/// How many first words travel then.
const COMMON_LEAD: usize = LEAD_WORDS - COMMON.count_ones() as usize;

/// How many words of a payload there is room for beside them in one line.
const COMMON_PAYLOAD: usize = DATA_WORDS - COMMON_LEAD;

// All first words lie in the first line.
const _: () = assert!(LEAD_WORDS <= DATA_WORDS);

/// The low bits of a stamp, which hold a length, and above them the words that are left out, a bit each.
const LEN_BITS: u32 = 13;
const NUMBER_SHIFT: u32 = LEN_BITS + LEAD_WORDS as u32;

/// The longest datagram in bytes.
pub const MAX_LEN: usize = (1 << LEN_BITS) - 1;

/// How many lines a datagram takes at most.
#[inline(always)]
pub const fn lines_of(datagram_len: usize) -> usize {
    if datagram_len <= LINE_DATA_LEN {
        1
    } else {
        datagram_len.div_ceil(LINE_DATA_LEN)
    }
}

/// One line. A line of zeros has never been written.
#[repr(C, align(64))]
pub struct Line {
    stamp: AtomicU64,
    data: [AtomicU64; DATA_WORDS],
    /// Lets loom see who has the line when: it checks that a read and a write of it are always ordered.
    #[cfg(rdma_loom)]
    witness: super::primitive::UnsafeCell<()>,
}

#[cfg(not(rdma_loom))]
const _: () = assert!(size_of::<Line>() == 64);

/// What the receiver tells the sender. Zeros are the state of an empty ring.
#[repr(C)]
pub struct Control {
    /// How many lines have been consumed since the start.
    consumed: Apart<AtomicU64>,
    /// Whether the receiver sleeps. Apart from the count, which is written all the time.
    asleep: Apart<AtomicU64>,
}

#[cfg(not(rdma_loom))]
const _: () = assert!(size_of::<Control>() == 256);

/// A cache line of its own, and the one that is prefetched with it.
#[repr(C, align(128))]
struct Apart<T>(T);

/// The ring's memory: the same at every call, and shared by no more than one [`Sender`] and one [`Receiver`]. A memory that
/// breaks this loses and garbles datagrams, and does no other harm.
pub trait Memory {
    /// The lines, a power of two of them.
    fn lines(&self) -> &[Line];
    /// What the receiver tells the sender.
    fn control(&self) -> &Control;
}

impl Line {
    /// A line that has not been written.
    pub fn new() -> Self {
        Self {
            stamp: AtomicU64::new(0),
            data: core::array::from_fn(|_| AtomicU64::new(0)),
            #[cfg(rdma_loom)]
            witness: super::primitive::UnsafeCell::new(()),
        }
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Control {
    /// Of an empty ring.
    pub fn new() -> Self {
        Self {
            consumed: Apart(AtomicU64::new(0)),
            asleep: Apart(AtomicU64::new(0)),
        }
    }
}

impl Default for Control {
    fn default() -> Self {
        Self::new()
    }
}

/// The stamp of the line with this number; `kind` is the datagram's length and which words are left out. Never 0 for a number
/// that a ring comes to in the first weeks at a line each 10 ns; and a line that was written as long ago has been written
/// since.
#[inline(always)]
const fn stamp(number: u64, kind: u64) -> u64 {
    number.wrapping_add(1) << NUMBER_SHIFT | kind
}

/// What a stamp says besides the number.
#[inline(always)]
const fn kind_of(stamp: u64) -> u64 {
    stamp & ((1 << NUMBER_SHIFT) - 1)
}

/// There is no room for a datagram; the receiver is slow, or dead, or the datagram too long for the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

/// The sender does not keep to the format: its datagram is longer than any may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// The length that it says, in bytes.
    pub len: usize,
}

/// The place of the line with this number.
#[inline(always)]
fn line(lines: &[Line], number: u64) -> Option<&Line> {
    lines.get(number as usize & lines.len().wrapping_sub(1))
}

#[cfg(all(test, not(rdma_loom)))]
mod tests;
