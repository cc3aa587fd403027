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
//! # What the other end may do
//!
//! It may die between any two instructions: a datagram whose first stamp is missing has not been sent, and neither end ever
//! waits for the other. It may write anything anywhere, at any time: each word is read once, as an atomic, into memory of
//! our own; a length is checked before it is used; a stamp that is wrong is a line that has not come; and a number of
//! consumed lines that cannot be is a ring that is full.

use super::prefetch;
use super::primitive::{fence, AtomicU64, Ordering};

/// Words in a line. loom tries the orderings of every atomic, so a line is shorter there.
const WORDS: usize = if cfg!(rdma_loom) { 2 } else { 8 };

/// Data words in a line.
const DATA_WORDS: usize = WORDS - 1;

/// Bytes of a datagram that a line carries.
pub const LINE_DATA_LEN: usize = DATA_WORDS * size_of::<u64>();

/// How far ahead of its datagram a sender asks for the lines that it will write, so that they are its own by then: as many
/// as make up for the way to another core and back.
const WRITE_AHEAD: usize = 16;

/// The same for a receiver that finds one datagram after the other, and therefore more written lines.
const READ_AHEAD: usize = 8;

/// The words of a datagram that are left out where they repeat the last one's: those of a header.
pub const LEAD_WORDS: usize = if cfg!(rdma_loom) { 1 } else { 5 };

/// Their bytes.
const LEAD_LEN: usize = LEAD_WORDS * size_of::<u64>();

// All of them lie in a datagram's first line.
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

/// The end that sends.
pub struct Sender<M> {
    memory: M,
    /// Number of the next line.
    next: u64,
    /// A count of consumed lines that the receiver has told.
    consumed_seen: u64,
    /// The last datagram's first words.
    last: [u64; LEAD_WORDS],
}

impl<M: Memory> Sender<M> {
    /// The sending end of a ring of zeros.
    pub fn new(memory: M) -> Self {
        Self {
            memory,
            next: 0,
            consumed_seen: 0,
            last: [0; LEAD_WORDS],
        }
    }

    /// Sends a datagram of `header` and, after it, `payload`. The receiver can see it at once, if it is looking.
    #[inline(always)]
    pub fn push(&mut self, header: &[u8], payload: &[u8]) -> Result<(), NoRoom> {
        match <&[u8; LEAD_LEN]>::try_from(header) {
            Ok(header) => {
                let message = Message {
                    len: LEAD_LEN.wrapping_add(payload.len()),
                    lead: core::array::from_fn(|index| word_of(header, index)),
                    lead_len: LEAD_WORDS,
                    rest_len: payload.len().div_ceil(size_of::<u64>()),
                };
                self.push_message(&message, |index| word_of(payload, index))
            }
            Err(_) => self.push_any(header, payload),
        }
    }

    /// The same for a header of any length.
    #[inline(never)]
    fn push_any(&mut self, header: &[u8], payload: &[u8]) -> Result<(), NoRoom> {
        let gather = Gather { header, payload };
        let len = header.len().wrapping_add(payload.len());
        let words = len.div_ceil(size_of::<u64>());
        let lead_len = words.min(LEAD_WORDS);
        let message = Message {
            len,
            lead: core::array::from_fn(|index| gather.word(index)),
            lead_len,
            rest_len: words.wrapping_sub(lead_len),
        };
        self.push_message(&message, |index| {
            gather.word(index.wrapping_add(LEAD_WORDS))
        })
    }

    #[inline(always)]
    fn push_message(
        &mut self,
        message: &Message,
        rest: impl Fn(usize) -> u64,
    ) -> Result<(), NoRoom> {
        let mut left_out = 0_u64;
        let mut travel = message.rest_len;
        let lead = message.lead.iter().zip(&self.last).enumerate();
        for (index, (word, last)) in lead.take(message.lead_len) {
            let same = word == last;
            left_out |= u64::from(same) << index;
            travel = travel.wrapping_add(usize::from(!same));
        }
        let count = match travel {
            0..=DATA_WORDS => 1,
            _ => travel.div_ceil(DATA_WORDS),
        };
        if message.len > MAX_LEN || !self.has_room(count) {
            return Err(NoRoom);
        }
        let lines = self.memory.lines();
        let Some(first) = line(lines, self.next) else {
            return Err(NoRoom);
        };
        let kind = left_out << LEN_BITS | message.len as u64;
        #[cfg(rdma_loom)]
        first.witness.with_mut(|_| ());
        let mut places = first.data.iter();
        let lead = message.lead.iter().zip(&mut self.last).enumerate();
        for (index, (&word, last)) in lead.take(message.lead_len) {
            if left_out >> index & 1 == 0 {
                *last = word;
                if let Some(place) = places.next() {
                    // Relaxed, as all words: the first line's stamp publishes them.
                    place.store(word, Ordering::Relaxed);
                }
            }
        }
        let mut index = 0;
        for place in places.take(message.rest_len) {
            place.store(rest(index), Ordering::Relaxed);
            index = index.wrapping_add(1);
        }
        for number in 1..count as u64 {
            let number = self.next.wrapping_add(number);
            let Some(line) = line(lines, number) else {
                return Err(NoRoom);
            };
            #[cfg(rdma_loom)]
            line.witness.with_mut(|_| ());
            let left = message.rest_len.wrapping_sub(index);
            for place in line.data.iter().take(left) {
                place.store(rest(index), Ordering::Relaxed);
                index = index.wrapping_add(1);
            }
            // Relaxed: nobody waits for it. It keeps what lies in the line from being taken for a stamp later on.
            line.stamp.store(stamp(number, kind), Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `Receiver::pop`, so that who sees the first stamp sees every line.
        first.stamp.store(stamp(self.next, kind), Ordering::Release);
        for index in 0..count.min(WRITE_AHEAD) {
            let ahead = WRITE_AHEAD.wrapping_add(index) as u64;
            prefetch::to_write(line(lines, self.next.wrapping_add(ahead)));
        }
        self.next = self.next.wrapping_add(count as u64);
        Ok(())
    }

    #[inline(always)]
    fn has_room(&mut self, count: usize) -> bool {
        let size = self.memory.lines().len() as u64;
        let end = self.next.wrapping_add(count as u64);
        if end.wrapping_sub(self.consumed_seen) <= size {
            return true;
        }
        // Acquire: pairs with the Release in `Receiver::pop`, so that the lines were read before they are written again.
        self.consumed_seen = self.memory.control().consumed.0.load(Ordering::Acquire);
        end.wrapping_sub(self.consumed_seen) <= size
    }

    /// Whether the receiver sleeps and has to be woken, which is the caller's duty then: nobody is told so twice. To be asked
    /// once everything that is to be seen has been pushed.
    #[inline]
    pub fn must_wake(&self) -> bool {
        // SeqCst: pairs with the fence in `Receiver::fall_asleep`. Of this end, which pushes and then looks for a sleeper, and
        // the other, which says that it sleeps and then looks for datagrams, at least one sees what the other has done.
        fence(Ordering::SeqCst);
        let asleep = &self.memory.control().asleep.0;
        // Relaxed: nothing is read by it; the fence orders it.
        if asleep.load(Ordering::Relaxed) == 0 {
            return false;
        }
        // Relaxed: it saves a second waking and nothing else.
        asleep.store(0, Ordering::Relaxed);
        true
    }
}

/// The end that receives.
pub struct Receiver<M> {
    memory: M,
    /// Number of the next line.
    next: u64,
    /// The last look found a datagram.
    found: bool,
    /// The last datagram's first words.
    last: [u64; LEAD_WORDS],
}

impl<M: Memory> Receiver<M> {
    /// The receiving end of a ring of zeros.
    pub fn new(memory: M) -> Self {
        Self {
            memory,
            next: 0,
            found: false,
            last: [0; LEAD_WORDS],
        }
    }

    /// Copies the oldest datagram to the start of `words`, in the bytes' order, and returns its length in bytes.
    #[inline(always)]
    pub fn pop(&mut self, words: &mut [u64]) -> Result<Option<usize>, Broken> {
        let lines = self.memory.lines();
        let Some(first) = line(lines, self.next) else {
            return Ok(None);
        };
        // Acquire: pairs with the Release in `Sender::push`, so that all lines were written before they are read.
        let said = first.stamp.load(Ordering::Acquire);
        if said != stamp(self.next, kind_of(said)) {
            self.found = false;
            return Ok(None);
        }
        let len = (said & MAX_LEN as u64) as usize;
        let Some(words) = words.get_mut(..len.div_ceil(size_of::<u64>())) else {
            return Err(Broken { len });
        };
        let left_out = kind_of(said) >> LEN_BITS;
        let mut places = first.data.iter();
        let rest = match words.split_first_chunk_mut::<LEAD_WORDS>() {
            Some((lead, rest)) => {
                read_lead(&mut places, left_out, &mut self.last, lead);
                rest
            }
            None => {
                read_lead(&mut places, left_out, &mut self.last, words);
                &mut []
            }
        };
        let here = rest.len().min(places.len());
        let (here, elsewhere) = rest.split_at_mut(here);
        for (word, place) in here.iter_mut().zip(places) {
            *word = place.load(Ordering::Relaxed);
        }
        #[cfg(rdma_loom)]
        first.witness.with(|_| ());
        let mut count = 1;
        if !elsewhere.is_empty() {
            count = elsewhere.len().div_ceil(DATA_WORDS).wrapping_add(1);
            if count > lines.len() {
                return Err(Broken { len });
            }
            read_lines(lines, self.next.wrapping_add(1), elsewhere);
        }
        self.next = self.next.wrapping_add(count as u64);
        // Release: pairs with the Acquire in `Sender::has_room`, so that the lines are written again only after these reads.
        let consumed = &self.memory.control().consumed.0;
        consumed.store(self.next, Ordering::Release);
        let ahead = match self.found {
            true => READ_AHEAD.saturating_sub(count)..READ_AHEAD,
            false => 0..0,
        };
        for index in ahead {
            prefetch::to_read(line(lines, self.next.wrapping_add(index as u64)));
        }
        self.found = true;
        Ok(Some(len))
    }

    /// Whether the awaited line has been written.
    fn is_ready(&self) -> bool {
        let Some(first) = line(self.memory.lines(), self.next) else {
            return false;
        };
        // Relaxed: what it announces is read by `pop`, which looks again.
        let said = first.stamp.load(Ordering::Relaxed);
        said == stamp(self.next, kind_of(said))
    }

    /// Says that this end is going to sleep. Only if it returns true may it do so, and what is pushed from then on makes
    /// [`Sender::must_wake`] true.
    pub fn fall_asleep(&self) -> bool {
        // Relaxed: the fence orders it.
        self.memory.control().asleep.0.store(1, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `Sender::must_wake`.
        fence(Ordering::SeqCst);
        let ready = self.is_ready();
        if ready {
            self.wake_up();
        }
        !ready
    }

    /// Says that this end is awake.
    pub fn wake_up(&self) {
        // Relaxed: a sender that sees it late wakes one that is awake.
        self.memory.control().asleep.0.store(0, Ordering::Relaxed);
    }
}

/// The place of the line with this number.
#[inline(always)]
fn line(lines: &[Line], number: u64) -> Option<&Line> {
    lines.get(number as usize & lines.len().wrapping_sub(1))
}

/// Reads a datagram's first words: those that travel from the line, and the others from the last datagram.
#[inline(always)]
fn read_lead(
    places: &mut core::slice::Iter<'_, AtomicU64>,
    left_out: u64,
    last: &mut [u64; LEAD_WORDS],
    words: &mut [u64],
) {
    for (index, (word, last)) in words.iter_mut().zip(last).enumerate() {
        if left_out >> index & 1 == 0 {
            if let Some(place) = places.next() {
                // Relaxed, as all words: the stamp has published them. Should the sender write at the same time, the word is
                // one that it wrote.
                *last = place.load(Ordering::Relaxed);
            }
        }
        *word = *last;
    }
}

/// Reads what a datagram has in the lines from `number` on.
#[inline(never)]
fn read_lines(lines: &[Line], number: u64, words: &mut [u64]) {
    for (words, ahead) in words.chunks_mut(DATA_WORDS).zip(0..) {
        if let Some(line) = line(lines, number.wrapping_add(ahead)) {
            for (word, place) in words.iter_mut().zip(&line.data) {
                *word = place.load(Ordering::Relaxed);
            }
            #[cfg(rdma_loom)]
            line.witness.with(|_| ());
        }
    }
}

/// A datagram as words: the first ones, and how many follow.
struct Message {
    /// Length in bytes.
    len: usize,
    lead: [u64; LEAD_WORDS],
    /// How many first words there are: fewer than `LEAD_WORDS` in a short datagram.
    lead_len: usize,
    rest_len: usize,
}

/// A word of the bytes, the last one filled up with zeros.
#[inline(always)]
fn word_of(bytes: &[u8], index: usize) -> u64 {
    let at = index.wrapping_mul(size_of::<u64>());
    let bytes = bytes.get(at..).unwrap_or_default();
    match bytes.first_chunk() {
        Some(bytes) => u64::from_ne_bytes(*bytes),
        None => last_word(bytes.iter()),
    }
}

/// Fewer bytes than a word has, filled up with zeros; or the first ones of more.
#[inline(never)]
fn last_word<'d>(from: impl Iterator<Item = &'d u8>) -> u64 {
    let mut bytes = [0; size_of::<u64>()];
    for (to, from) in bytes.iter_mut().zip(from) {
        *to = *from;
    }
    u64::from_ne_bytes(bytes)
}

/// Header and payload as a sequence of words.
struct Gather<'d> {
    header: &'d [u8],
    payload: &'d [u8],
}

impl Gather<'_> {
    fn word(&self, index: usize) -> u64 {
        let at = index.wrapping_mul(size_of::<u64>());
        if let Some(bytes) = self.header.get(at..).and_then(<[u8]>::first_chunk) {
            return u64::from_ne_bytes(*bytes);
        }
        last_word(self.header.iter().chain(self.payload).skip(at))
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests;
