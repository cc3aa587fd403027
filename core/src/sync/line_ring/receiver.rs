//! The end that receives.

use super::words::{read_common, read_lead, read_lines};
use super::{
    kind_of, line, stamp, Broken, Memory, COMMON, COMMON_PAYLOAD, DATA_WORDS, LEAD_LEN, LEAD_WORDS,
    LEN_BITS, MAX_LEN, WORD,
};
use crate::sync::primitive::{fence, Ordering};

/// The end that receives, datagrams of so many words at most.
pub struct Receiver<M, const WORDS: usize> {
    memory: M,
    /// Number of the next line.
    pub(super) next: u64,
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
    pub(super) fn is_ready(&self) -> bool {
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
