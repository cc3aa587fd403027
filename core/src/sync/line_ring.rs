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

/// The words of a datagram that are left out where they repeat the last one's.
pub const LEAD_WORDS: usize = if cfg!(rdma_loom) { 1 } else { 5 };

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
        let len = header.len().wrapping_add(payload.len());
        let message = Message::new(header, payload, &self.last);
        let count = message.words().div_ceil(DATA_WORDS).max(1);
        if len > MAX_LEN || !self.has_room(count) {
            return Err(NoRoom);
        }
        let kind = message.left_out << LEN_BITS | len as u64;
        let lines = self.memory.lines();
        // The first line comes last: who sees its stamp finds the others written.
        for index in (1..count).rev() {
            let number = self.next.wrapping_add(index as u64);
            if let Some(line) = line(lines, number) {
                message.write(line, index.wrapping_mul(DATA_WORDS));
                // Relaxed: nobody waits for it. It keeps what lies in the line from being taken for a stamp later on.
                line.stamp.store(stamp(number, kind), Ordering::Relaxed);
            }
        }
        let Some(first) = line(lines, self.next) else {
            return Err(NoRoom);
        };
        message.write(first, 0);
        // Release: pairs with the Acquire in `Receiver::pop`, so that who sees the first stamp sees every line.
        first.stamp.store(stamp(self.next, kind), Ordering::Release);
        message.remember(&mut self.last);
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
        let left_out = kind_of(said) >> LEN_BITS;
        let Some(words) = words.get_mut(..len.div_ceil(size_of::<u64>())) else {
            return Err(Broken { len });
        };
        // Words that there are not are not left out of an honest datagram.
        let travelled = words.len().saturating_sub(left_out.count_ones() as usize);
        let count = travelled.div_ceil(DATA_WORDS).max(1);
        if count > lines.len() {
            return Err(Broken { len });
        }
        let mut reader = Reader {
            lines,
            number: self.next,
            line: first,
            place: 0,
        };
        let (lead, rest) = words.split_at_mut(words.len().min(LEAD_WORDS));
        for (index, (word, last)) in lead.iter_mut().zip(&mut self.last).enumerate() {
            if left_out >> index & 1 == 0 {
                *last = reader.word();
            }
            *word = *last;
        }
        for word in rest {
            *word = reader.word();
        }
        reader.close();
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

/// Reads the words of a datagram, line by line.
struct Reader<'m> {
    lines: &'m [Line],
    number: u64,
    line: &'m Line,
    place: usize,
}

impl Reader<'_> {
    #[inline(always)]
    fn word(&mut self) -> u64 {
        if self.place == DATA_WORDS {
            self.close();
            self.place = 0;
            self.number = self.number.wrapping_add(1);
            if let Some(line) = line(self.lines, self.number) {
                self.line = line;
            }
        }
        // Relaxed: the stamp has published it. Should the sender write at the same time, the word is one that it wrote.
        let place = self.line.data.get(self.place);
        let word = place.map_or(0, |place| place.load(Ordering::Relaxed));
        self.place = self.place.wrapping_add(1);
        word
    }

    /// The line has been read.
    #[inline(always)]
    fn close(&self) {
        #[cfg(rdma_loom)]
        self.line.witness.with(|_| ());
    }
}

/// What travels of a datagram: those of its first words that are not left out, and the others.
struct Message<'d> {
    gather: Gather<'d>,
    /// The first words, and of them those that travel.
    first: [u64; LEAD_WORDS],
    lead: [u64; LEAD_WORDS],
    lead_len: usize,
    /// How many first words there are: fewer than `LEAD_WORDS` in a short datagram.
    first_len: usize,
    left_out: u64,
}

impl<'d> Message<'d> {
    #[inline(always)]
    fn new(header: &'d [u8], payload: &'d [u8], last: &[u64; LEAD_WORDS]) -> Self {
        let gather = Gather { header, payload };
        let mut message = Self {
            first_len: gather.words().min(LEAD_WORDS),
            gather,
            first: *last,
            lead: [0; LEAD_WORDS],
            lead_len: 0,
            left_out: 0,
        };
        for (index, place) in message.first.iter_mut().enumerate() {
            if index >= message.first_len {
                break;
            }
            let word = message.gather.word(index);
            let same = word == *place;
            *place = word;
            if let Some(lead) = message.lead.get_mut(message.lead_len) {
                *lead = word;
            }
            message.lead_len = message.lead_len.wrapping_add(usize::from(!same));
            message.left_out |= u64::from(same) << index;
        }
        message
    }

    /// How many words travel.
    #[inline(always)]
    fn words(&self) -> usize {
        let all = self.gather.words().wrapping_add(self.lead_len);
        all.wrapping_sub(self.first_len)
    }

    #[inline(always)]
    fn remember(&self, last: &mut [u64; LEAD_WORDS]) {
        *last = self.first;
    }

    /// Writes the words from `at` on to a line, as many as it has.
    #[inline(always)]
    fn write(&self, line: &Line, at: usize) {
        #[cfg(rdma_loom)]
        line.witness.with_mut(|_| ());
        for (place, index) in line.data.iter().zip(at..self.words()) {
            let word = match self.lead.get(index) {
                Some(&word) if index < self.lead_len => word,
                _ => {
                    let behind = index.wrapping_sub(self.lead_len);
                    self.gather.word(behind.wrapping_add(self.first_len))
                }
            };
            // Relaxed: the stamp publishes it.
            place.store(word, Ordering::Relaxed);
        }
    }
}

/// Header and payload as a sequence of words, the last one filled up with zeros.
struct Gather<'d> {
    header: &'d [u8],
    payload: &'d [u8],
}

impl<'d> Gather<'d> {
    #[inline(always)]
    fn words(&self) -> usize {
        let len = self.header.len().wrapping_add(self.payload.len());
        len.div_ceil(size_of::<u64>())
    }

    #[inline(always)]
    fn word(&self, index: usize) -> u64 {
        let at = index.wrapping_mul(size_of::<u64>());
        let in_header = self.header.get(at..).and_then(<[u8]>::first_chunk);
        if let Some(bytes) = in_header {
            return u64::from_ne_bytes(*bytes);
        }
        let in_payload = at
            .checked_sub(self.header.len())
            .and_then(|at| self.payload.get(at..))
            .and_then(<[u8]>::first_chunk);
        match in_payload {
            Some(bytes) => u64::from_ne_bytes(*bytes),
            None => self.torn_word(at),
        }
    }

    /// A word that lies in both, or at the end.
    #[inline(never)]
    fn torn_word(&self, at: usize) -> u64 {
        let mut bytes = [0; size_of::<u64>()];
        let all = self.header.iter().chain(self.payload);
        for (to, from) in bytes.iter_mut().zip(all.skip(at)) {
            *to = *from;
        }
        u64::from_ne_bytes(bytes)
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests;
