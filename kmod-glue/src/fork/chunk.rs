//! What is known of a chunk of an image: where its pages can be read, those that have been, and the READs under way.

use mitosis_core::wire::fork::{has_bit, native, rank, Chunk as Answer, CHUNK_PAGES};

use super::link::{Link, Read, READ_PAGES};
use super::lost::PageError;
use super::memory::PageRef;
use crate::errno::Errno;
use crate::lock::Shared;
use crate::memory::{Table, PAGE_LEN};

/// READs under way in a chunk at a time: as many as a connection may have unanswered; of the longest, a MiB. With eight, touching
/// all of a seed over soft-RoCE took a fourth longer.
const AHEAD: usize = 16;

/// Pages of a chunk, a bit each.
type Bitmap = [u64; 8];

fn set(bitmap: &mut Bitmap, slot: usize, value: bool) {
    if let Some(word) = bitmap.get_mut(slot / 64) {
        let bit = 1 << (slot % 64);
        *word = if value { *word | bit } else { *word & !bit };
    }
}

/// A READ under way.
struct Ahead {
    read: Read,
    /// Where its pages belong.
    slots: [u16; READ_PAGES],
    count: usize,
    /// Whether the seed's machine had it read, and not the order of faults.
    advised: bool,
}

impl Ahead {
    fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        let slots = self.slots.iter().take(self.count);
        slots.map(|&slot| usize::from(slot))
    }
}

/// READs in the order in which they were begun, which is the one in which they end.
struct Queue {
    /// AHEAD places, not on the stack of whoever makes a chunk in a page fault.
    reads: Table<Option<Ahead>>,
    head: usize,
    len: usize,
}

impl Queue {
    fn new() -> Result<Queue, Errno> {
        Ok(Queue {
            reads: Table::try_new(AHEAD, |_| Ok(None))?,
            head: 0,
            len: 0,
        })
    }

    fn get(&self, at: usize) -> Option<&Ahead> {
        self.reads.get((self.head + at) % AHEAD)?.as_ref()
    }

    /// There is room for it.
    fn push(&mut self, ahead: Ahead) {
        if let Some(place) = self.reads.get_mut((self.head + self.len) % AHEAD) {
            *place = Some(ahead);
            self.len += 1;
        }
    }

    fn pop(&mut self) -> Option<Ahead> {
        let first = self.reads.get_mut(self.head)?.take()?;
        self.head = (self.head + 1) % AHEAD;
        self.len -= 1;
        Some(first)
    }
}

/// What is known of a chunk.
pub struct Chunk {
    /// Whether the seed's machine has been asked.
    pub known: bool,
    rkey: u32,
    address: u64,
    /// Pages that can be read.
    pub present: Bitmap,
    /// Pages that exist and must be asked for.
    pub elsewhere: Bitmap,
    /// Those that are here.
    pub pages: Table<Option<PageRef>>,
    /// Those that are being read.
    coming: Bitmap,
    queue: Queue,
    /// Where the last READ begun leaves off: the next page that can be read.
    next: Option<usize>,
    /// How many READs are to be under way beyond the one that is waited for.
    pub depth: usize,
}

impl Chunk {
    /// Nothing is known.
    pub fn new() -> Result<Chunk, Errno> {
        Ok(Chunk {
            known: false,
            rkey: 0,
            address: 0,
            present: [0; 8],
            elsewhere: [0; 8],
            pages: Table::try_new(CHUNK_PAGES, |_| Ok(None))?,
            coming: [0; 8],
            queue: Queue::new()?,
            next: None,
            depth: 0,
        })
    }

    /// Takes over what the seed's machine says.
    pub fn learn(&mut self, answer: &Answer) {
        self.rkey = answer.rkey.get();
        self.address = answer.address.get();
        self.present = native(&answer.present);
        self.elsewhere = native(&answer.elsewhere);
        self.known = true;
    }

    /// Whether a page is here.
    pub fn has(&self, slot: usize) -> bool {
        self.pages.get(slot).is_some_and(Option::is_some)
    }

    /// Whether a page is here, or being read.
    pub fn is_here_or_comes(&self, slot: usize) -> bool {
        self.has(slot) || has_bit(&self.coming, slot)
    }

    /// The first page at or after `slot` that can be read.
    pub fn present_from(&self, slot: usize) -> Option<usize> {
        (slot..CHUNK_PAGES).find(|&slot| has_bit(&self.present, slot))
    }

    /// Whether a fault there goes on where READs leave off.
    pub fn goes_on(&self, slot: usize) -> bool {
        self.next == Some(slot)
    }

    /// Faults go on in order: more is read ahead.
    pub fn deepen(&mut self) {
        self.depth = (self.depth * 2).clamp(1, AHEAD - 1);
    }

    /// Faults are on their way to the chunk's first page: whether it is to be read.
    pub fn lead_from_start(&mut self, depth: usize) -> bool {
        let first = self.present_from(0);
        let wanted = first.is_some_and(|first| !self.is_here_or_comes(first));
        if !wanted || self.under_way() > 0 {
            return false;
        }
        self.next = first;
        self.depth = depth;
        true
    }

    /// How many READs are under way.
    pub fn under_way(&self) -> usize {
        self.queue.len
    }

    /// Whether no further READ can be begun before one is over.
    pub fn is_busy(&self) -> bool {
        self.queue.len >= AHEAD
    }

    /// The READ that brings a page, if one is under way: how many are before it, and whether it was advised.
    pub fn awaited(&self, slot: usize) -> Option<(usize, bool)> {
        if !has_bit(&self.coming, slot) {
            return None;
        }
        (0..self.queue.len).find_map(|at| {
            let ahead = self.queue.get(at)?;
            ahead
                .slots()
                .any(|coming| coming == slot)
                .then_some((at, ahead.advised))
        })
    }

    /// A connection that READs are under way on.
    pub fn link(&self) -> Option<Shared<Link>> {
        self.queue.get(0).map(|ahead| ahead.read.link())
    }

    /// Begins to read `slot` and the pages after it that can be read, up to `most`; none beyond `within`, if that is given.
    /// It may not be busy.
    pub fn begin(
        &mut self,
        link: Shared<Link>,
        slot: usize,
        most: usize,
        within: Option<&Bitmap>,
    ) -> Result<usize, PageError> {
        let mut slots = [0; READ_PAGES];
        let mut count = 0;
        let mut next = Some(slot);
        while let (Some(slot), true) = (next, count < most.min(READ_PAGES)) {
            let wanted = within.is_none_or(|within| has_bit(within, slot));
            if self.is_here_or_comes(slot) || !wanted {
                break;
            }
            if let Some(place) = slots.get_mut(count) {
                *place = slot as u16;
                count += 1;
            }
            next = self.present_from(slot + 1);
        }
        let offset = rank(&self.present, slot) * PAGE_LEN;
        let address = self.address.wrapping_add(offset as u64);
        let read = Read::begin(link, count, address, self.rkey).map_err(|errno| {
            if errno == Errno::NO_MEMORY {
                PageError::NoMemory
            } else {
                PageError::Read(errno)
            }
        })?;
        let ahead = Ahead {
            read,
            slots,
            count,
            advised: within.is_some(),
        };
        for slot in ahead.slots() {
            set(&mut self.coming, slot, true);
        }
        self.queue.push(ahead);
        self.next = next;
        Ok(count)
    }

    /// Begins READs where the last leaves off, until `depth` are under way beyond `awaited` ones. The chunk's end comes
    /// before: true.
    pub fn read_ahead(&mut self, link: &Shared<Link>, awaited: usize, most: usize) -> bool {
        while self.queue.len < awaited.saturating_add(self.depth) && !self.is_busy() {
            let Some(next) = self.next else { return true };
            // What is here, or comes, was read for another reason: the order of faults is not what decides there.
            if self.is_here_or_comes(next) {
                return false;
            }
            // Where there is no memory for it, it is not read ahead.
            if self.begin(link.clone(), next, most, None).is_err() {
                return false;
            }
        }
        false
    }

    /// Waits for the READ that has been under way longest, and puts its pages where they belong: how many it read, and how
    /// many of them were new.
    pub fn settle(&mut self) -> Result<(u64, u64), PageError> {
        let Some(ahead) = self.queue.pop() else {
            return Ok((0, 0));
        };
        for slot in ahead.slots() {
            set(&mut self.coming, slot, false);
        }
        let Ahead {
            read, slots, count, ..
        } = ahead;
        let pages = read.finish().map_err(PageError::Read)?;
        let mut kept = 0;
        for (page, &slot) in pages.into_iter().zip(&slots).take(count) {
            let place = self.pages.get_mut(usize::from(slot));
            if let (Some(page), Some(place)) = (page, place) {
                if place.is_none() {
                    *place = Some(page);
                    kept += 1;
                }
            }
        }
        Ok((count as u64, kept))
    }

    /// Waits for all READs, and forgets what they brought.
    pub fn abandon(&mut self) {
        while self.queue.pop().is_some() {}
        self.coming = [0; 8];
        self.next = None;
        self.depth = 0;
    }
}
