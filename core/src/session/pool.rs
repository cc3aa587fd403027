//! The request slots of all sessions, in memory that the caller owns.
//!
//! A session's slots are neighbours, and as many as a power of two, handed out by the buddy method:
//! whether 20,000 sessions have one slot each or a few have 64, no slot is lost to the shape of
//! what was there before, and taking or returning any number takes at most [`ORDERS`] steps.

/// The most slots of a session: the client knows sets of them as the bits of one word.
pub const MAX_SLOTS: u16 = 64;

/// Sessions have 2^0 to 2^6 slots.
const ORDERS: usize = 7;

const _: () = assert!(1 << (ORDERS - 1) == MAX_SLOTS as usize);

/// Ends a linked list.
const NONE: u32 = u32::MAX;

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum State {
    /// No session has it, and it does not begin a free block.
    #[default]
    Free,
    /// It begins a free block of 2^`order` slots, which `rpc_id` and `message_len` link into a list.
    FreeBlock,
    /// Of a session, and without a request yet.
    Idle,
    /// Parts of `request` have come.
    Receiving,
    /// `request` is being executed.
    Executing,
    /// The answer to `request` is saved.
    Answered,
}

/// One request slot. The caller provides an array of them and never looks inside.
#[derive(Clone, Debug, Default)]
pub struct ServerSlot {
    /// The slot's last request; 0 before the first.
    pub(crate) request: u64,
    /// Of the request. In a free block: the next one.
    pub(crate) rpc_id: u32,
    /// Length of the request in bytes. In a free block: the one before.
    pub(crate) message_len: u32,
    /// How much of the request has come, in bytes.
    pub(crate) received: u32,
    /// Length of the saved reply in bytes.
    pub(crate) reply_len: u32,
    /// How much of the saved reply has been sent, in bytes.
    pub(crate) sent: u32,
    pub(crate) state: State,
    /// The code of the saved answer if it is an Error, otherwise 0.
    pub(crate) error: u8,
    /// Parts of the request have come again, and were answered again before the request itself was.
    pub(crate) repeated: bool,
    order: u8,
}

// Half a cache line.
const _: () = assert!(size_of::<ServerSlot>() == 32);

impl ServerSlot {
    /// A slot that no session has.
    pub const fn new() -> Self {
        Self {
            request: 0,
            rpc_id: 0,
            message_len: 0,
            received: 0,
            reply_len: 0,
            sent: 0,
            state: State::Free,
            error: 0,
            repeated: false,
            order: 0,
        }
    }
}

/// The slots and the lists of free blocks.
pub(crate) struct Pool<'a> {
    slots: &'a mut [ServerSlot],
    heads: [u32; ORDERS],
    free: u32,
}

impl<'a> Pool<'a> {
    /// Takes over `slots`, whatever was in them.
    pub(crate) fn new(slots: &'a mut [ServerSlot]) -> Self {
        let len = u32::try_from(slots.len()).unwrap_or(NONE - 1);
        for slot in slots.iter_mut() {
            *slot = ServerSlot::new();
        }
        let mut pool = Self {
            slots,
            heads: [NONE; ORDERS],
            free: len,
        };
        // The largest blocks that are aligned and fit, from the end so that the first comes first.
        let mut end = len;
        while end > 0 {
            let order = end.trailing_zeros().min(MAX_SLOTS.trailing_zeros());
            end = end.saturating_sub(1 << order);
            pool.push(end, order);
        }
        pool
    }

    /// How many slots no session has.
    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&ServerSlot> {
        self.slots.get(index as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut ServerSlot> {
        self.slots.get_mut(index as usize)
    }

    /// Takes as many neighbours as there are, but no more than `wanted`; returns the first and how
    /// many.
    pub(crate) fn take(&mut self, wanted: u16) -> Option<(u32, u16)> {
        let wanted = wanted.clamp(1, MAX_SLOTS);
        let mut order = wanted.ilog2();
        let first = loop {
            match self.take_block(order) {
                Some(first) => break first,
                None => order = order.checked_sub(1)?,
            }
        };
        let count = 1_u16 << order;
        self.fill(first, count, State::Idle);
        self.free = self.free.saturating_sub(u32::from(count));
        Some((first, count))
    }

    /// Takes back what [`Pool::take`] gave.
    pub(crate) fn put(&mut self, first: u32, count: u16) {
        self.fill(first, count, State::Free);
        self.free = self.free.saturating_add(u32::from(count));
        let mut first = first;
        let mut order = u32::from(count).trailing_zeros();
        while order < MAX_SLOTS.trailing_zeros() {
            let buddy = first ^ (1 << order);
            let is_free = self.get(buddy).is_some_and(|slot| {
                slot.state == State::FreeBlock && u32::from(slot.order) == order
            });
            if !is_free {
                break;
            }
            self.unlink(buddy);
            first = first.min(buddy);
            order = order.saturating_add(1);
        }
        self.push(first, order);
    }

    fn fill(&mut self, first: u32, count: u16, state: State) {
        let end = (first as usize).saturating_add(usize::from(count));
        for slot in self.slots.get_mut(first as usize..end).unwrap_or_default() {
            *slot = ServerSlot {
                state,
                ..ServerSlot::new()
            };
        }
    }

    /// Takes a block of 2^`order` slots, of a larger one if need be.
    fn take_block(&mut self, order: u32) -> Option<u32> {
        let mut found = order;
        let first = loop {
            let head = *self.heads.get(found as usize)?;
            if head != NONE {
                break head;
            }
            found = found.saturating_add(1);
        };
        self.unlink(first);
        while found > order {
            found = found.saturating_sub(1);
            self.push(first.saturating_add(1 << found), found);
        }
        Some(first)
    }

    /// Puts a block at the front of its list.
    fn push(&mut self, first: u32, order: u32) {
        let Some(head) = self.heads.get_mut(order as usize) else {
            return;
        };
        let next = core::mem::replace(head, first);
        if let Some(slot) = self.slots.get_mut(next as usize) {
            slot.message_len = first;
        }
        if let Some(slot) = self.slots.get_mut(first as usize) {
            slot.state = State::FreeBlock;
            slot.order = u8::try_from(order).unwrap_or(0);
            slot.rpc_id = next;
            slot.message_len = NONE;
        }
    }

    /// Takes a block out of its list.
    fn unlink(&mut self, first: u32) {
        let Some(slot) = self.slots.get_mut(first as usize) else {
            return;
        };
        slot.state = State::Free;
        let (order, next, before) = (slot.order, slot.rpc_id, slot.message_len);
        if let Some(slot) = self.slots.get_mut(next as usize) {
            slot.message_len = before;
        }
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.rpc_id = next,
            None => {
                if let Some(head) = self.heads.get_mut(usize::from(order)) {
                    *head = next;
                }
            }
        }
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        /// Whatever is taken and put back: no slot is given twice, none is lost, and in the end the
        /// largest blocks can be had again.
        #[test]
        fn no_slot_is_lost_or_given_twice(
            len in 0..300_usize,
            script in proptest::collection::vec((any::<bool>(), 1..=64_u16, any::<usize>()), 0..200),
        ) {
            let mut slots = vec![ServerSlot::new(); len];
            let mut pool = Pool::new(&mut slots);
            let mut taken: Vec<(u32, u16)> = Vec::new();
            let mut owned = vec![false; len];
            for (takes, wanted, which) in script {
                if takes {
                    let had = pool.free();
                    let Some((first, count)) = pool.take(wanted) else {
                        prop_assert_eq!(had, 0, "one slot can be had while there is one");
                        continue;
                    };
                    prop_assert!(count <= wanted);
                    for index in first..first + u32::from(count) {
                        prop_assert!(!std::mem::replace(&mut owned[index as usize], true));
                    }
                    taken.push((first, count));
                } else if !taken.is_empty() {
                    let (first, count) = taken.swap_remove(which % taken.len());
                    owned[first as usize..][..usize::from(count)].fill(false);
                    pool.put(first, count);
                }
                let held: u32 = taken.iter().map(|(_, count)| u32::from(*count)).sum();
                prop_assert_eq!(pool.free() + held, len as u32);
            }
            for (first, count) in taken {
                pool.put(first, count);
            }
            for _ in 0..len / 64 {
                prop_assert_eq!(pool.take(64).map(|(_, count)| count), Some(64));
            }
        }
    }
}
