//! The server's table of sessions, in memory that the caller owns.
//!
//! Every operation takes bounded time, so that neither a full table nor a hostile client costs more
//! than a few dozen steps: free entries and ended sessions are singly linked lists through the entries;
//! a Connect is matched to the session that it already opened by a chained hash whose bucket heads
//! lie in the entries as well, with chains of at most [`MAX_CHAIN`]; expiry looks at [`SCAN_SESSIONS`]
//! entries at a time, as a clock hand goes round.

use super::entry::{longest_whole, Session, State, NONE};
use super::pool::{Pool, ServerSlot};
use super::{PeerId, SessionId};

/// The longest hash chain. With as many buckets as slots and keys drawn at random, a chain of a
/// full table exceeds 16 with a probability below 1e-14; keys chosen to collide are refused as Busy
/// when theirs is full.
pub const MAX_CHAIN: usize = 16;

/// How many entries one step of the expiry looks at: 64 cache lines, a few microseconds.
pub const SCAN_SESSIONS: usize = 64;

/// The shortest time between two steps of the expiry, in nanoseconds, so that it costs a busy
/// server next to nothing.
const MIN_SCAN_INTERVAL_NS: u64 = 100_000;

/// A session that ended. The glue releases what it holds for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Its index, which the next session may take from now on.
    pub session_index: u32,
    /// Whose it was.
    pub peer: PeerId,
    /// The first of its slots; the buffers of all of them are free.
    pub first_slot_index: u32,
    /// How many slots it had.
    pub slots: u16,
}

/// How many sessions of one peer may await their Confirm at once. A client has one; the others are
/// for a queue pair that carries several, and few enough that replayed Connects fill no table. Peers
/// whose numbers agree modulo the length of the table share the bound.
pub const MAX_HALF_OPEN: u8 = 8;

/// Why no session was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// No entry, no slot or no credit is free.
    Table,
    /// The hash chain of the key is full.
    Chain,
    /// Too many sessions of the peer are half-open.
    HalfOpen,
}

/// What a new session is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) peer: PeerId,
    pub(crate) client_key: u64,
    pub(crate) client_nonce: u64,
    pub(crate) datagram_len: u16,
    pub(crate) max_message_len: u32,
    /// At most so many.
    pub(crate) slots: u16,
    /// At most so many.
    pub(crate) credits: u16,
}

/// The table, and what is shared out to its sessions. The memory is the caller's.
pub(crate) struct Table<'a> {
    sessions: &'a mut [Session],
    pool: Pool<'a>,
    free_credits: u32,
    free_sessions: u32,
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
    /// Takes over `sessions` and `slots`, whatever was in them, and has `credits` to share out.
    pub(crate) fn new(
        sessions: &'a mut [Session],
        slots: &'a mut [ServerSlot],
        credits: u32,
        epoch: u32,
        idle_timeout_ns: u64,
        handshake_timeout_ns: u64,
    ) -> Self {
        let mut free = NONE;
        let mut free_sessions = 0_u32;
        for (index, session) in sessions.iter_mut().enumerate().rev() {
            *session = Session::new();
            let Ok(index) = u32::try_from(index) else {
                continue;
            };
            // The index that ends a list cannot name an entry; a table of 2^32 would lose the last.
            if index != NONE {
                session.next = free;
                free = index;
                free_sessions = free_sessions.saturating_add(1);
            }
        }
        // One round of the hand takes a quarter of the shorter timeout, so that a session outlives
        // its timeout by that much at most.
        let steps = u64::try_from(sessions.len().div_ceil(SCAN_SESSIONS)).unwrap_or(u64::MAX);
        let round_ns = idle_timeout_ns.min(handshake_timeout_ns) / 4;
        let scan_interval_ns = round_ns
            .checked_div(steps)
            .unwrap_or(round_ns)
            .max(MIN_SCAN_INTERVAL_NS);
        Self {
            sessions,
            pool: Pool::new(slots),
            free_credits: credits,
            free_sessions,
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

    /// The live session of this name.
    #[inline]
    pub(crate) fn find(&self, id: SessionId) -> Option<&Session> {
        let session = self.sessions.get(id.index as usize)?;
        (session.generation == id.generation && id.epoch == self.epoch && session.is_live())
            .then_some(session)
    }

    /// As [`Table::find`], of this peer, to change it.
    #[inline]
    pub(crate) fn find_mut(&mut self, id: SessionId, peer: PeerId) -> Option<&mut Session> {
        self.find_with_slots(id, peer).map(|(session, _)| session)
    }

    /// As [`Table::find_mut`], with the pool that its slots are in.
    #[inline]
    pub(crate) fn find_with_slots(
        &mut self,
        id: SessionId,
        peer: PeerId,
    ) -> Option<(&mut Session, &mut Pool<'a>)> {
        self.find_if(id, peer, Session::is_live)
    }

    /// As [`Table::find_with_slots`], if it is confirmed.
    #[inline(always)]
    pub(crate) fn find_open(
        &mut self,
        id: SessionId,
        peer: PeerId,
    ) -> Option<(&mut Session, &mut Pool<'a>)> {
        self.find_if(id, peer, |session| session.state == State::Open)
    }

    #[inline(always)]
    fn find_if(
        &mut self,
        id: SessionId,
        peer: PeerId,
        is_it: impl FnOnce(&Session) -> bool,
    ) -> Option<(&mut Session, &mut Pool<'a>)> {
        let session = self.sessions.get_mut(id.index as usize)?;
        let found = session.generation == id.generation
            && id.epoch == self.epoch
            && session.peer == peer
            && is_it(session);
        found.then_some((session, &mut self.pool))
    }

    /// The session at `index`, live or draining, with the pool.
    #[inline]
    pub(crate) fn completing(
        &mut self,
        index: u32,
        generation: u32,
    ) -> Option<(&mut Session, &mut Pool<'a>)> {
        let session = self.sessions.get_mut(index as usize)?;
        let found = session.generation == generation
            && (session.is_live() || session.state == State::Draining);
        found.then_some((session, &mut self.pool))
    }

    /// The live session that was opened for this, and is no more than it.
    pub(crate) fn find_opened(&self, wanted: &Wanted) -> Option<(u32, &Session)> {
        self.chain(wanted.peer, wanted.client_key)
            .find(|(_, session)| {
                session.client_nonce == wanted.client_nonce
                    && session.datagram_len == wanted.datagram_len
                    && session.max_message_len == wanted.max_message_len
                    && u16::from(session.slots) <= wanted.slots
                    && session.credits <= wanted.credits
            })
    }

    /// The live sessions that this peer opened with this key.
    fn chain(&self, peer: PeerId, client_key: u64) -> impl Iterator<Item = (u32, &Session)> {
        let bucket = self.sessions.get(self.bucket(peer, client_key));
        let mut index = bucket.map_or(NONE, |bucket| bucket.bucket_head);
        let links = core::iter::from_fn(move || {
            let at = index;
            let session = self.sessions.get(at as usize)?;
            index = session.chain_next;
            Some((at, session))
        });
        links
            .take(MAX_CHAIN)
            .filter(move |(_, session)| session.peer == peer && session.client_key == client_key)
    }

    /// Opens a half-open session for what [`Table::find_opened`] does not find, and returns its
    /// index.
    pub(crate) fn open(&mut self, now_ns: u64, wanted: &Wanted) -> Result<u32, Full> {
        let index = self.free;
        let bucket = self.bucket(wanted.peer, wanted.client_key);
        let head = self.sessions.get(bucket).ok_or(Full::Table)?.bucket_head;
        if self.chain_is_full(head) {
            return Err(Full::Chain);
        }
        let next = self.sessions.get(index as usize).ok_or(Full::Table)?.next;
        let half_open = self.half_open_of(wanted.peer).ok_or(Full::Table)?;
        if *half_open >= MAX_HALF_OPEN {
            return Err(Full::HalfOpen);
        }
        // One slot and one credit are kept for each session that may still come, so that those who
        // come first do not shut out the rest (wire.md §7.6).
        let others = self.free_sessions.saturating_sub(1);
        let credits = share(wanted.credits, self.free_credits, others).ok_or(Full::Table)?;
        let slots = share(wanted.slots, self.pool.free(), others).ok_or(Full::Table)?;
        let (first_slot, slots) = self.pool.take(slots).ok_or(Full::Table)?;
        self.free_credits = self.free_credits.saturating_sub(u32::from(credits));
        self.free_sessions = others;
        self.free = next;
        if let Some(half_open) = self.half_open_of(wanted.peer) {
            *half_open = half_open.saturating_add(1);
        }
        if let Some(session) = self.sessions.get_mut(index as usize) {
            *session = Session {
                client_key: wanted.client_key,
                client_nonce: wanted.client_nonce,
                last_heard_ns: now_ns,
                generation: match session.generation.wrapping_add(1) {
                    0 => 1,
                    generation => generation,
                },
                peer: wanted.peer,
                first_slot,
                max_message_len: wanted.max_message_len,
                next: NONE,
                bucket_head: session.bucket_head,
                chain_next: head,
                datagram_len: wanted.datagram_len,
                longest_whole: longest_whole(wanted.datagram_len, wanted.max_message_len),
                credits,
                executing: 0,
                slots: u8::try_from(slots).unwrap_or(1),
                half_open: session.half_open,
                state: State::HalfOpen,
            };
        }
        if let Some(bucket) = self.sessions.get_mut(bucket) {
            bucket.bucket_head = index;
        }
        if self.live == 0 {
            self.next_scan_ns = now_ns.saturating_add(self.scan_interval_ns);
        }
        self.live = self.live.saturating_add(1);
        Ok(index)
    }

    /// The session at `index`, whatever its state.
    pub(crate) fn at(&self, index: u32) -> Option<&Session> {
        self.sessions.get(index as usize)
    }

    /// Opens a half-open session fully, and ends those that its client had before: it has forgotten
    /// them. Returns how many.
    #[cold]
    pub(crate) fn confirm(&mut self, index: u32) -> u64 {
        let Some(session) = self.sessions.get_mut(index as usize) else {
            return 0;
        };
        if session.state != State::HalfOpen {
            return 0;
        }
        session.state = State::Open;
        let (peer, key, nonce) = (session.peer, session.client_key, session.client_nonce);
        self.settle_half_open(peer);
        let mut ended = 0;
        for _ in 0..MAX_CHAIN {
            // A client's nonces count up; half the numbers lie before.
            let before = self.chain(peer, key).find(|(_, other)| {
                let age = nonce.wrapping_sub(other.client_nonce);
                age != 0 && age < 1 << 63
            });
            let Some((before, _)) = before else { break };
            self.disconnect(before);
            ended += 1;
        }
        ended
    }

    /// Ends a live session at the client's wish. One that executes requests drains first.
    pub(crate) fn disconnect(&mut self, index: u32) {
        match self.sessions.get_mut(index as usize) {
            Some(session) if session.is_live() && session.executing > 0 => {
                session.state = State::Draining;
                self.live = self.live.saturating_sub(1);
                self.unchain(index);
            }
            Some(session) if session.is_live() => self.end(index),
            _ => {}
        }
    }

    /// Ends a draining session none of whose requests is being executed any more.
    pub(crate) fn drained(&mut self, index: u32) {
        if let Some(session) = self.sessions.get_mut(index as usize) {
            if session.state == State::Draining && session.executing == 0 {
                session.state = State::Ended;
                session.next = self.ended;
                self.ended = index;
            }
        }
    }

    /// The next session that ended, whose entry, slots and credits are free from now on.
    #[inline(always)]
    pub(crate) fn poll_closed(&mut self) -> Option<Closed> {
        match self.ended {
            NONE => None,
            index => self.recycle(index),
        }
    }

    /// Frees the first of the ended sessions.
    #[inline(never)]
    fn recycle(&mut self, index: u32) -> Option<Closed> {
        let session = self.sessions.get_mut(index as usize)?;
        self.ended = session.next;
        session.next = self.free;
        session.state = State::Free;
        self.free = index;
        self.free_sessions = self.free_sessions.saturating_add(1);
        self.free_credits = self.free_credits.saturating_add(u32::from(session.credits));
        let slots = u16::from(session.slots);
        self.pool.put(session.first_slot, slots);
        Some(Closed {
            session_index: index,
            peer: session.peer,
            first_slot_index: session.first_slot,
            slots,
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
        for _ in 0..SCAN_SESSIONS.min(self.sessions.len()) {
            if self.hand >= self.sessions.len() {
                self.hand = 0;
            }
            let Some(session) = self.sessions.get(self.hand) else {
                break;
            };
            let silent_ns = now_ns.saturating_sub(session.last_heard_ns);
            let expires = match session.state {
                State::HalfOpen => silent_ns >= self.handshake_timeout_ns,
                State::Open => session.executing == 0 && silent_ns >= self.idle_timeout_ns,
                State::Free | State::Draining | State::Ended => false,
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
        if let Some(session) = self.sessions.get_mut(index as usize) {
            let half_open = (session.state == State::HalfOpen).then_some(session.peer);
            session.state = State::Ended;
            session.next = self.ended;
            self.ended = index;
            self.live = self.live.saturating_sub(1);
            if let Some(peer) = half_open {
                self.settle_half_open(peer);
            }
        }
    }

    /// Where the half-open sessions of a peer are counted.
    fn half_open_of(&mut self, peer: PeerId) -> Option<&mut u8> {
        let place = (peer as usize).checked_rem(self.sessions.len())?;
        Some(&mut self.sessions.get_mut(place)?.half_open)
    }

    /// One of the peer's sessions is half-open no longer.
    fn settle_half_open(&mut self, peer: PeerId) {
        if let Some(half_open) = self.half_open_of(peer) {
            *half_open = half_open.saturating_sub(1);
        }
    }

    /// Takes a session out of its hash chain.
    fn unchain(&mut self, index: u32) {
        let Some(session) = self.sessions.get(index as usize) else {
            return;
        };
        let after = session.chain_next;
        let bucket = self.bucket(session.peer, session.client_key);
        let Some(slot) = self.sessions.get_mut(bucket) else {
            return;
        };
        if slot.bucket_head == index {
            slot.bucket_head = after;
            return;
        }
        let mut before = slot.bucket_head;
        for _ in 0..MAX_CHAIN {
            let Some(session) = self.sessions.get_mut(before as usize) else {
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
            match self.sessions.get(index as usize) {
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
        let slots = u64::from(u32::try_from(self.sessions.len()).unwrap_or(u32::MAX));
        let bucket = (hash >> 32).wrapping_mul(slots) >> 32;
        usize::try_from(bucket).unwrap_or(0)
    }
}

/// What of `free` one of several gets: what it wants, unless that leaves less than one for each of
/// the `others`; but at least one, if there is one.
fn share(wanted: u16, free: u32, others: u32) -> Option<u16> {
    if free == 0 {
        return None;
    }
    let spare = free.saturating_sub(others).max(1);
    Some(wanted.min(u16::try_from(spare).unwrap_or(u16::MAX)).max(1))
}

#[cfg(all(test, not(rdma_loom)))]
mod tests;
