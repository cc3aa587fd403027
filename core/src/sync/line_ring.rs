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

mod words;

use self::words::{read_common, read_lead, read_lines, write_common, write_lead, write_words};
use super::prefetch;
use super::primitive::{fence, AtomicU64, Ordering};

/// Words in a line. loom tries the orderings of every atomic, so a line is shorter there.
const WORDS: usize = if cfg!(rdma_loom) { 2 } else { 8 };

/// Bytes of a word.
const WORD: usize = size_of::<u64>();

/// Data words in a line.
const DATA_WORDS: usize = WORDS - 1;

/// Bytes of a datagram that a line carries.
pub const LINE_DATA_LEN: usize = DATA_WORDS * WORD;

/// How far ahead of its datagram a sender asks for the lines that it will write, so that they are its own by then: as many
/// as make up for the way to another core and back.
const WRITE_AHEAD: u64 = 2;

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

/// The end that sends.
pub struct Sender<M> {
    memory: M,
    /// Number of the next line.
    next: u64,
    /// A count of consumed lines that the receiver has told.
    consumed_seen: u64,
    /// The last datagram's first words.
    last: [u64; LEAD_WORDS],
    /// How many datagrams are a group.
    group: u64,
    /// The first line of a group, which is written last, and its number. There is none if its stamp is 0.
    held: Line,
    held_number: u64,
}

impl<M: Memory> Sender<M> {
    /// The sending end of a ring of zeros.
    pub fn new(memory: M) -> Self {
        Self {
            memory,
            next: 0,
            consumed_seen: 0,
            last: [0; LEAD_WORDS],
            group: 1,
            held: Line::new(),
            held_number: 0,
        }
    }

    /// A datagram will be sent soon: its line is asked for, which the receiver may have fetched by looking at it, so that it is
    /// this end's own by then.
    #[inline(always)]
    pub fn prepare(&self) {
        prefetch::to_write(line(self.memory.lines(), self.next));
    }

    /// From now on, others follow each datagram soon: the receiver sees so many at once, if each takes one line, and what there is
    /// of a group after [`Sender::show`] at the latest. With one or none, as it is at first, it sees each at once.
    #[inline(always)]
    pub fn group(&mut self, datagrams: u64) {
        if self.group != datagrams {
            self.group = datagrams;
            if datagrams <= 1 {
                self.show();
            }
        }
    }

    /// Sends a datagram of `header` and, after it, `payload`.
    #[inline(always)]
    pub fn push(&mut self, header: &[u8], payload: &[u8]) -> Result<(), NoRoom> {
        match <&[u8; LEAD_LEN]>::try_from(header) {
            Ok(&lead) => self.push_words(zerocopy::transmute!(lead), payload),
            Err(_) => self.push_any(header, payload),
        }
    }

    /// [`Sender::push`] with a header of these words.
    #[inline(always)]
    pub fn push_words(&mut self, lead: [u64; LEAD_WORDS], payload: &[u8]) -> Result<(), NoRoom> {
        match self.push_common(lead, payload) {
            true => Ok(()),
            // Its own copy, or the words would have to be in memory for the short way as well.
            false => self.push_parts(lead.map(core::convert::identity), LEAD_LEN, payload),
        }
    }

    /// Shows the receiver what there is of a group.
    #[inline(always)]
    pub fn show(&mut self) {
        if self.holds() {
            self.write_held();
        }
    }

    /// Whether a line is held back.
    #[inline(always)]
    fn holds(&self) -> bool {
        // Relaxed, as all of this line: nobody else has it.
        self.held.stamp.load(Ordering::Relaxed) != 0
    }

    fn write_held(&mut self) {
        if let Some(first) = line(self.memory.lines(), self.held_number) {
            #[cfg(rdma_loom)]
            first.witness.with_mut(|_| ());
            for (place, word) in first.data.iter().zip(&self.held.data) {
                place.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            let said = self.held.stamp.load(Ordering::Relaxed);
            // Release: pairs with the Acquire in `Receiver::pop`, so that who sees the stamp sees the line.
            first.stamp.store(said, Ordering::Release);
        }
        self.held.stamp.store(0, Ordering::Relaxed);
    }

    /// Sends a datagram that takes one line and leaves out the [`COMMON`] words and no others, if this can be one. Almost without
    /// a choice, as it is on the way of every small call, twice.
    #[inline(always)]
    fn push_common(&mut self, lead: [u64; LEAD_WORDS], payload: &[u8]) -> bool {
        let taken = self.next.wrapping_sub(self.consumed_seen);
        let lines = self.memory.lines();
        let mut others = 0;
        for (index, (word, last)) in lead.iter().zip(&self.last).enumerate() {
            if COMMON >> index & 1 != 0 {
                others |= word ^ last;
            }
        }
        if others != 0 || taken >= lines.len() as u64 || payload.len() > COMMON_PAYLOAD * WORD {
            return false;
        }
        let Some(first) = line(lines, self.next) else {
            return false;
        };
        let len = LEAD_LEN.wrapping_add(payload.len());
        let said = stamp(self.next, COMMON << LEN_BITS | len as u64);
        if self.group > 1 {
            self.push_to_group(lead, payload, said);
        } else {
            write_common(first, &mut self.last, &lead, payload, said);
        }
        let lines = self.memory.lines();
        prefetch::to_write(line(lines, self.next.wrapping_add(WRITE_AHEAD)));
        self.next = self.next.wrapping_add(1);
        true
    }

    /// Writes a datagram of the common kind that belongs to a group: the first of one where nobody looks yet.
    #[inline(never)]
    fn push_to_group(&mut self, lead: [u64; LEAD_WORDS], payload: &[u8], said: u64) {
        let first = !self.holds();
        let place = match first {
            true => Some(&self.held),
            false => line(self.memory.lines(), self.next),
        };
        if let Some(place) = place {
            write_common(place, &mut self.last, &lead, payload, said);
        }
        if first {
            self.held_number = self.next;
        } else if self.next.wrapping_sub(self.held_number).wrapping_add(1) >= self.group {
            self.show();
        }
    }

    /// Sends a datagram with a header of any other length.
    #[inline(never)]
    fn push_any(&mut self, header: &[u8], payload: &[u8]) -> Result<(), NoRoom> {
        let len = header.len().wrapping_add(payload.len());
        let mut bytes = [0; MAX_LEN.next_multiple_of(WORD)];
        let Some(datagram) = bytes.get_mut(..len) else {
            return Err(NoRoom);
        };
        for (to, from) in datagram.iter_mut().zip(header.iter().chain(payload)) {
            *to = *from;
        }
        let (lead, rest) = bytes.split_at(LEAD_LEN);
        let Some(&lead) = lead.first_chunk::<LEAD_LEN>() else {
            return Err(NoRoom);
        };
        let rest = rest.get(..len.saturating_sub(LEAD_LEN));
        self.push_parts(
            zerocopy::transmute!(lead),
            len.min(LEAD_LEN),
            rest.unwrap_or_default(),
        )
    }

    /// Sends `lead_len` bytes of `lead`, and if those are all of them, `rest`.
    #[inline(never)]
    fn push_parts(
        &mut self,
        lead: [u64; LEAD_WORDS],
        lead_len: usize,
        rest: &[u8],
    ) -> Result<(), NoRoom> {
        let lead = lead.get(..lead_len.div_ceil(WORD)).unwrap_or(&lead);
        let same = lead
            .iter()
            .zip(&self.last)
            .filter(|(word, last)| word == last);
        let travel = lead.len().wrapping_sub(same.count());
        let travel = travel.wrapping_add(rest.len().div_ceil(WORD));
        let count = travel.div_ceil(DATA_WORDS).max(1);
        let len = lead_len.wrapping_add(rest.len());
        if len > MAX_LEN || !self.has_room(count) {
            // Lest the receiver wait for it while this end waits for room.
            self.show();
            return Err(NoRoom);
        }
        let Some(first) = line(self.memory.lines(), self.next) else {
            return Err(NoRoom);
        };
        #[cfg(rdma_loom)]
        first.witness.with_mut(|_| ());
        let mut places = first.data.iter();
        let left_out = write_lead(&mut places, &mut self.last, lead);
        let kind = left_out << LEN_BITS | len as u64;
        self.write_long(places.len(), kind, rest);
        self.publish(kind, count);
        Ok(())
    }

    /// Writes what follows a datagram's first words: to as many places of the first line as are left, and to the lines after
    /// it.
    #[inline(never)]
    fn write_long(&self, left: usize, kind: u64, bytes: &[u8]) {
        let lines = self.memory.lines();
        let here = left.wrapping_mul(WORD);
        let (here, elsewhere) = bytes.split_at_checked(here).unwrap_or((bytes, &[]));
        if let Some(first) = line(lines, self.next) {
            let places = first.data.get(DATA_WORDS.wrapping_sub(left)..);
            write_words(places.unwrap_or_default(), here);
        }
        for (bytes, ahead) in elsewhere.chunks(LINE_DATA_LEN).zip(1..) {
            let number = self.next.wrapping_add(ahead);
            if let Some(line) = line(lines, number) {
                #[cfg(rdma_loom)]
                line.witness.with_mut(|_| ());
                write_words(&line.data, bytes);
                // Relaxed: nobody waits for it. It keeps what lies in the line from being taken for a stamp later on.
                line.stamp.store(stamp(number, kind), Ordering::Relaxed);
            }
        }
    }

    /// The datagram's lines have been written, `count` of them, apart from the first one's stamp, by which the receiver sees
    /// them.
    #[inline(always)]
    fn publish(&mut self, kind: u64, count: usize) {
        let lines = self.memory.lines();
        if let Some(first) = line(lines, self.next) {
            // Release: pairs with the Acquire in `Receiver::pop`, so that who sees the first stamp sees every line.
            first.stamp.store(stamp(self.next, kind), Ordering::Release);
        }
        self.show();
        let lines = self.memory.lines();
        let ahead = self.next.wrapping_add(WRITE_AHEAD);
        match count {
            1 => prefetch::to_write(line(lines, ahead)),
            _ => (0..WRITE_AHEAD.min(count as u64))
                .for_each(|index| prefetch::to_write(line(lines, ahead.wrapping_add(index)))),
        }
        self.next = self.next.wrapping_add(count as u64);
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

/// The end that receives, datagrams of so many words at most.
pub struct Receiver<M, const WORDS: usize> {
    memory: M,
    /// Number of the next line.
    next: u64,
    /// The last datagram: of its first words, the next one carries only those that differ.
    words: [u64; WORDS],
}

impl<M: Memory, const WORDS: usize> Receiver<M, WORDS> {
    /// The receiving end of a ring of zeros.
    pub fn new(memory: M) -> Self {
        const { assert!(WORDS >= LEAD_WORDS + COMMON_PAYLOAD) };
        Self {
            memory,
            next: 0,
            words: [0; WORDS],
        }
    }

    /// Takes the oldest datagram, and returns its length in bytes. [`Receiver::words`] begins with it then.
    #[inline(always)]
    pub fn pop(&mut self) -> Result<Option<usize>, Broken> {
        let lines = self.memory.lines();
        let Some(first) = line(lines, self.next) else {
            return Ok(None);
        };
        // Acquire: pairs with the Release in `Sender::push`, so that all lines were written before they are read.
        let said = first.stamp.load(Ordering::Acquire);
        let kind = said.wrapping_sub(stamp(self.next, 0));
        // A length that is shorter than a header or longer than a line is out of the ordinary, if it is one at all.
        let payload_len = kind.wrapping_sub(COMMON << LEN_BITS | LEAD_LEN as u64);
        let place = self
            .words
            .first_chunk_mut::<{ LEAD_WORDS + COMMON_PAYLOAD }>();
        match place {
            Some(place) if payload_len <= (COMMON_PAYLOAD * WORD) as u64 => {
                read_common(first, place);
                #[cfg(rdma_loom)]
                first.witness.with(|_| ());
                self.taken(1);
                Ok(Some(LEAD_LEN.wrapping_add(payload_len as usize)))
            }
            _ if kind > kind_of(u64::MAX) => Ok(None),
            _ => self.pop_any(kind),
        }
    }

    /// The last datagram, in the bytes' order, and after it what is left of older ones.
    #[inline(always)]
    pub fn words(&self) -> &[u64; WORDS] {
        &self.words
    }

    /// Copies a datagram of any kind that has come.
    #[inline(never)]
    fn pop_any(&mut self, kind: u64) -> Result<Option<usize>, Broken> {
        let lines = self.memory.lines();
        let Some(first) = line(lines, self.next) else {
            return Ok(None);
        };
        let len = (kind & MAX_LEN as u64) as usize;
        let Some(words) = self.words.get_mut(..len.div_ceil(WORD)) else {
            return Err(Broken { len });
        };
        let (lead, rest) = words.split_at_mut(words.len().min(LEAD_WORDS));
        let mut places = first.data.iter();
        read_lead(&mut places, kind >> LEN_BITS, lead);
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
        self.taken(count as u64);
        Ok(Some(len))
    }

    /// So many lines have been read.
    #[inline(always)]
    fn taken(&mut self, count: u64) {
        self.next = self.next.wrapping_add(count);
        // Release: pairs with the Acquire in `Sender::has_room`, so that the lines are written again only after these reads.
        let consumed = &self.memory.control().consumed.0;
        consumed.store(self.next, Ordering::Release);
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

#[cfg(all(test, not(rdma_loom)))]
mod tests;
