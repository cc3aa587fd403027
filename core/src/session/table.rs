//! The server's table of sessions, in memory that the caller owns.
//!
//! Every operation takes bounded time, so that neither a full table nor a hostile client costs more
//! than a few dozen steps: free slots and ended sessions are singly linked lists through the slots;
//! a Connect is matched to the session that it already opened by a chained hash whose bucket heads
//! lie in the slots as well, with chains of at most [`MAX_CHAIN`]; expiry looks at [`SCAN_SLOTS`]
//! slots at a time, as a clock hand goes round.

/// The longest hash chain. With as many buckets as slots and keys drawn at random, a chain of a
/// full table exceeds 16 with a probability below 1e-14; keys chosen to collide are refused as Busy
/// when theirs is full.
pub const MAX_CHAIN: usize = 16;

/// How many slots one step of the expiry looks at: 64 cache lines, a few microseconds.
pub const SCAN_SLOTS: usize = 64;

/// The shortest time between two steps of the expiry, in nanoseconds, so that it costs a busy
/// server next to nothing.
const MIN_SCAN_INTERVAL_NS: u64 = 100_000;

/// Ends a linked list.
const NONE: u32 = u32::MAX;

/// Names a peer's address: an index that the glue chose for an address handle, opaque here.
pub type PeerId = u32;

/// A session that ended. The glue releases what it holds for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its slot, which the next session may take from now on.
    pub session_index: u32,
    /// Whose it was.
    pub peer: PeerId,
    /// The first of its slots: their buffers are free.
    pub first_slot_index: u32,
    /// How many slots it had.
    pub slots: u16,
}

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// On the free list.
    Free,
    /// Accepted, and nothing has been heard from the client since.
    HalfOpen,
    /// No request is being executed; `last_request` is the last completed one.
    Open,
    /// `last_request` is being executed.
    Executing,
    /// The client disconnected while `last_request` is being executed: the reply buffer is in use
    /// until it completes.
    Draining,
    /// Ended, and on the list that `Table::poll_closed` empties.
    Ended,
}

/// One slot of the table. The caller provides an array of them and never looks inside.
#[derive(Clone, Debug)]
pub struct Session {
    pub(crate) client_key: u64,
    pub(crate) last_heard_ns: u64,
    pub(crate) last_request: u64,
    pub(crate) generation: u32,
    pub(crate) peer: PeerId,
    /// Next slot of the free list, or of the list of ended sessions.
    next: u32,
    /// First slot of the hash chain of this slot's bucket. Belongs to the bucket, not to the
    /// session in the slot.
    bucket_head: u32,
    /// Next slot of the hash chain that this session is in.
    chain_next: u32,
    /// Length of the saved reply in bytes, 0 if there is none.
    pub(crate) reply_len: u16,
    pub(crate) datagram_len: u16,
    pub(crate) state: State,
}

// One cache line, and what 'session memory' means: 20,000 sessions take 1.1 MiB.
const _: () = assert!(size_of::<Session>() <= 64);

impl Session {
    /// A slot that no session is in.
    pub const fn new() -> Self {
        Self {
            client_key: 0,
            last_heard_ns: 0,
            last_request: 0,
            generation: 0,
            peer: 0,
            next: NONE,
            bucket_head: NONE,
            chain_next: NONE,
            reply_len: 0,
            datagram_len: 0,
            state: State::Free,
        }
    }

    /// Whether datagrams that name the session are still answered.
    fn is_live(&self) -> bool {
        matches!(self.state, State::HalfOpen | State::Open | State::Executing)
    }
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

/// Why no session was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// No slot is free.
    Slots,
    /// The hash chain of the key is full.
    Chain,
}

/// The table. Its slots' memory is the caller's.
pub(crate) struct Table<'a> {
    slots: &'a mut [Session],
    epoch: u32,
    free: u32,
    ended: u32,
    live: usize,
    /// Where the clock hand of the expiry stands.
    hand: usize,
    next_scan_ns: u64,
    scan_interval_ns: u64,
    idle_timeout_ns: u64,
    handshake_timeout_ns: u64,
}

impl<'a> Table<'a> {
    /// Takes over `slots`, whatever was in them.
    pub(crate) fn new(
        slots: &'a mut [Session],
        epoch: u32,
        idle_timeout_ns: u64,
        handshake_timeout_ns: u64,
    ) -> Self {
        let mut free = NONE;
        for (index, slot) in slots.iter_mut().enumerate().rev() {
            *slot = Session::new();
            let Ok(index) = u32::try_from(index) else {
                continue;
            };
            // The index that ends a list cannot name a slot; a table of 2^32 slots would lose the
            // last.
            if index != NONE {
                slot.next = free;
                free = index;
            }
        }
        // One round of the hand takes a quarter of the shorter timeout, so that a session outlives
        // its timeout by that much at most.
        let steps = u64::try_from(slots.len().div_ceil(SCAN_SLOTS)).unwrap_or(u64::MAX);
        let round_ns = idle_timeout_ns.min(handshake_timeout_ns) / 4;
        let scan_interval_ns = round_ns
            .checked_div(steps)
            .unwrap_or(round_ns)
            .max(MIN_SCAN_INTERVAL_NS);
        Self {
            slots,
            epoch,
            free,
            ended: NONE,
            live: 0,
            hand: 0,
            next_scan_ns: 0,
            scan_interval_ns,
            idle_timeout_ns,
            handshake_timeout_ns,
        }
    }

    /// How many sessions are live, half-open ones included.
    pub(crate) fn live(&self) -> usize {
        self.live
    }

    /// The live session in slot `index`, if it is of this generation and epoch.
    #[inline]
    pub(crate) fn find(&self, id: super::SessionId) -> Option<&Session> {
        let session = self.slots.get(id.index as usize)?;
        (session.generation == id.generation && id.epoch == self.epoch && session.is_live())
            .then_some(session)
    }

    /// As [`Table::find`], to change it.
    #[inline]
    pub(crate) fn find_mut(&mut self, id: super::SessionId) -> Option<&mut Session> {
        let session = self.slots.get_mut(id.index as usize)?;
        (session.generation == id.generation && id.epoch == self.epoch && session.is_live())
            .then_some(session)
    }

    /// The session in slot `index` whose request is being executed, live or draining.
    #[inline]
    pub(crate) fn executing_mut(
        &mut self,
        index: u32,
        generation: u32,
        request: u64,
    ) -> Option<&mut Session> {
        let session = self.slots.get_mut(index as usize)?;
        let executing = matches!(session.state, State::Executing | State::Draining);
        (executing && session.generation == generation && session.last_request == request)
            .then_some(session)
    }

    /// The live session that this peer opened with this key.
    pub(crate) fn find_by_key(&self, peer: PeerId, client_key: u64) -> Option<(u32, &Session)> {
        let mut index = self.slots.get(self.bucket(peer, client_key))?.bucket_head;
        for _ in 0..MAX_CHAIN {
            let session = self.slots.get(index as usize)?;
            if session.peer == peer && session.client_key == client_key {
                return Some((index, session));
            }
            index = session.chain_next;
        }
        None
    }

    /// Opens a half-open session for a key that [`Table::find_by_key`] does not find, and returns
    /// its slot and generation.
    pub(crate) fn open(
        &mut self,
        now_ns: u64,
        peer: PeerId,
        client_key: u64,
        datagram_len: u16,
    ) -> Result<(u32, u32), Full> {
        let index = self.free;
        let bucket = self.bucket(peer, client_key);
        let head = self.slots.get(bucket).ok_or(Full::Slots)?.bucket_head;
        if self.chain_is_full(head) {
            return Err(Full::Chain);
        }
        let session = self.slots.get_mut(index as usize).ok_or(Full::Slots)?;
        self.free = session.next;
        session.next = NONE;
        session.generation = match session.generation.wrapping_add(1) {
            0 => 1,
            generation => generation,
        };
        session.client_key = client_key;
        session.peer = peer;
        session.datagram_len = datagram_len;
        session.last_heard_ns = now_ns;
        session.last_request = 0;
        session.reply_len = 0;
        session.state = State::HalfOpen;
        session.chain_next = head;
        let generation = session.generation;
        if let Some(slot) = self.slots.get_mut(bucket) {
            slot.bucket_head = index;
        }
        if self.live == 0 {
            self.next_scan_ns = now_ns.saturating_add(self.scan_interval_ns);
        }
        self.live = self.live.saturating_add(1);
        Ok((index, generation))
    }

    /// Ends a live session at the client's wish. One that executes a request drains first.
    pub(crate) fn disconnect(&mut self, index: u32) {
        match self.slots.get_mut(index as usize) {
            Some(session) if session.state == State::Executing => {
                session.state = State::Draining;
                self.live = self.live.saturating_sub(1);
                self.unchain(index);
            }
            Some(session) if session.is_live() => self.end(index),
            _ => {}
        }
    }

    /// Ends a session whose drained request has completed.
    pub(crate) fn drained(&mut self, index: u32) {
        if let Some(session) = self.slots.get_mut(index as usize) {
            if session.state == State::Draining {
                session.state = State::Ended;
                session.next = self.ended;
                self.ended = index;
            }
        }
    }

    /// The next session that ended, whose slot is free from now on.
    pub(crate) fn poll_closed(&mut self) -> Option<Closed> {
        let index = self.ended;
        let session = self.slots.get_mut(index as usize)?;
        self.ended = session.next;
        session.next = self.free;
        session.state = State::Free;
        self.free = index;
        Some(Closed {
            session_index: index,
            peer: session.peer,
            first_slot_index: 0,
            slots: 1,
        })
    }

    /// When [`Table::expire`] has something to look at again.
    pub(crate) fn next_scan_ns(&self) -> Option<u64> {
        (self.live > 0).then_some(self.next_scan_ns)
    }

    /// Looks at the next few slots and ends the sessions of which nothing has been heard for too
    /// long. Returns how many.
    pub(crate) fn expire(&mut self, now_ns: u64) -> u64 {
        if self.live == 0 || now_ns < self.next_scan_ns {
            return 0;
        }
        self.next_scan_ns = now_ns.saturating_add(self.scan_interval_ns);
        let mut expired: u64 = 0;
        for _ in 0..SCAN_SLOTS.min(self.slots.len()) {
            if self.hand >= self.slots.len() {
                self.hand = 0;
            }
            let Some(session) = self.slots.get(self.hand) else {
                break;
            };
            let silent_ns = now_ns.saturating_sub(session.last_heard_ns);
            let expires = match session.state {
                State::HalfOpen => silent_ns >= self.handshake_timeout_ns,
                State::Open => silent_ns >= self.idle_timeout_ns,
                State::Free | State::Executing | State::Draining | State::Ended => false,
            };
            if expires {
                if let Ok(index) = u32::try_from(self.hand) {
                    self.end(index);
                    expired = expired.saturating_add(1);
                }
            }
            self.hand = self.hand.wrapping_add(1);
        }
        expired
    }

    /// Moves a live session to the list of ended ones.
    fn end(&mut self, index: u32) {
        self.unchain(index);
        if let Some(session) = self.slots.get_mut(index as usize) {
            session.state = State::Ended;
            session.next = self.ended;
            self.ended = index;
            self.live = self.live.saturating_sub(1);
        }
    }

    /// Takes a session out of its hash chain.
    fn unchain(&mut self, index: u32) {
        let Some(session) = self.slots.get(index as usize) else {
            return;
        };
        let after = session.chain_next;
        let bucket = self.bucket(session.peer, session.client_key);
        let Some(slot) = self.slots.get_mut(bucket) else {
            return;
        };
        if slot.bucket_head == index {
            slot.bucket_head = after;
            return;
        }
        let mut before = slot.bucket_head;
        for _ in 0..MAX_CHAIN {
            let Some(session) = self.slots.get_mut(before as usize) else {
                return;
            };
            if session.chain_next == index {
                session.chain_next = after;
                return;
            }
            before = session.chain_next;
        }
    }

    fn chain_is_full(&self, head: u32) -> bool {
        let mut index = head;
        for _ in 0..MAX_CHAIN {
            match self.slots.get(index as usize) {
                Some(session) => index = session.chain_next,
                None => return false,
            }
        }
        true
    }

    /// The slot that holds the head of the chain for this key.
    fn bucket(&self, peer: PeerId, client_key: u64) -> usize {
        // The finaliser of SplitMix64, after which every bit depends on every bit of the input.
        let mut hash = client_key ^ (u64::from(peer) << 32) ^ u64::from(self.epoch);
        hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        hash ^= hash >> 31;
        // Scales the upper half to the number of slots: a multiplication in place of a division.
        let slots = u64::from(u32::try_from(self.slots.len()).unwrap_or(u32::MAX));
        let bucket = (hash >> 32).wrapping_mul(slots) >> 32;
        usize::try_from(bucket).unwrap_or(0)
    }
}
