//! The buffers of the sessions' slots.
//!
//! A slot's reply is kept until its next request: it is the saved reply of at-most-once execution (wire.md §8.4). Messages
//! longer than a datagram take memory out of a budget that all share, until their session ends.

use mitosis_core::rpc::server::{Closed, Segment};
use mitosis_core::wire::ErrorCode;

/// What a buffer may keep when its session ends, and what does not count.
const SMALL: usize = 4096;

/// A slot's buffers.
#[derive(Default)]
pub struct SlotBuffers {
    /// Where a request of several datagrams is put together.
    pub request: Vec<u8>,
    /// What was answered last.
    pub reply: Vec<u8>,
}

/// How much of a buffer counts.
#[inline(always)]
fn large(buffer: &Vec<u8>) -> usize {
    buffer.capacity().saturating_sub(SMALL)
}

/// A buffer takes another part of the budget than it did.
#[cold]
fn resized(taken: &mut usize, before: usize, after: usize) {
    let counted = |capacity: usize| capacity.saturating_sub(SMALL);
    *taken = *taken + counted(after) - counted(before);
}

/// The buffers of all slots, by `slot_index`, and what is left of the budget.
pub struct Slots {
    slots: Vec<SlotBuffers>,
    taken: usize,
    budget: usize,
}

impl Slots {
    /// Buffers for so many slots, which take `budget` bytes for long messages at most.
    pub fn new(count: usize, budget: usize) -> Self {
        Self {
            slots: (0..count).map(|_| SlotBuffers::default()).collect(),
            taken: 0,
            budget,
        }
    }

    /// A slot's buffers.
    #[inline(always)]
    pub fn get(&self, index: u32) -> Option<&SlotBuffers> {
        self.slots.get(index as usize)
    }

    /// Puts a part of a request where it belongs.
    pub fn take(&mut self, segment: &Segment<'_>) -> Result<(), ErrorCode> {
        let index = segment.dispatched.slot_index as usize;
        let slot = self.slots.get_mut(index).ok_or(ErrorCode::Busy)?;
        let len = segment.message_len as usize;
        if segment.offset == 0 {
            slot.request.clear();
            let before = large(&slot.request);
            let more = len.saturating_sub(slot.request.capacity().max(SMALL));
            if self.taken + more > self.budget || slot.request.try_reserve_exact(len).is_err() {
                return Err(ErrorCode::Busy);
            }
            self.taken = self.taken + large(&slot.request) - before;
        }
        // Parts come in order and each once.
        if slot.request.len() != segment.offset as usize {
            return Err(ErrorCode::BadRequest);
        }
        slot.request.extend_from_slice(segment.payload);
        Ok(())
    }

    /// Lets a handler write a reply as long as it likes, takes that into account, and returns the reply; `None` if there is no
    /// such slot.
    #[inline(always)]
    pub fn reply<E>(
        &mut self,
        index: u32,
        write: impl FnOnce(&mut SlotBuffers) -> Result<(), E>,
    ) -> Option<Result<&[u8], E>> {
        let Self { slots, taken, .. } = self;
        let slot = slots.get_mut(index as usize)?;
        let before = slot.reply.capacity();
        let written = write(slot);
        let after = slot.reply.capacity();
        if after != before {
            resized(taken, before, after);
        }
        Some(written.map(|()| slot.reply.as_slice()))
    }

    /// The session is over: what it had of the budget is given back.
    pub fn shrink(&mut self, closed: &Closed) {
        let first = closed.first_slot_index as usize;
        let slots = self.slots.iter_mut().skip(first);
        for slot in slots.take(usize::from(closed.slots)) {
            let taken = large(&slot.request) + large(&slot.reply);
            if taken > 0 {
                *slot = SlotBuffers::default();
                self.taken -= taken;
            }
        }
    }
}
