//! The end that sends.

use super::words::{write_common, write_lead, write_words};
use super::{
    line, stamp, Line, Memory, NoRoom, COMMON, COMMON_PAYLOAD, DATA_WORDS, LEAD_LEN, LEAD_WORDS,
    LEN_BITS, LINE_DATA_LEN, MAX_LEN, WORD,
};
use crate::sync::prefetch;
use crate::sync::primitive::{fence, Ordering};

/// How far ahead of its datagram a sender asks for the lines that it will write, so that they are its own by then: as many
/// as make up for the way to another core and back.
const WRITE_AHEAD: u64 = 2;

/// The end that sends.
pub struct Sender<M> {
    memory: M,
    /// Number of the next line.
    pub(super) next: u64,
    /// A count of consumed lines that the receiver has told.
    pub(super) consumed_seen: u64,
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
