//! The clients' addresses: a bounded table of address handles.
//!
//! An entry with sessions stays; one without may be forgotten when room is needed, the longest unused first.

use mitosis_core::rpc::server::PeerId;

use crate::endpoint::Source;
use crate::errno::Errno;
use crate::memory::Table;
use crate::thread::random;
use crate::verbs::AddressHandle;

/// A client's address.
pub struct Peer {
    /// The way to it.
    pub address: AddressHandle,
    /// Where its datagrams come from.
    pub source: Source,
    sessions: u32,
    last_used_ns: u64,
}

/// No entry.
const NONE: u32 = u32::MAX;

/// The table. Entries of one hash are chained, so that finding a sender does not look at all of them.
pub struct Peers {
    entries: Table<Option<Peer>>,
    /// The first entry of each hash.
    heads: Table<u32>,
    /// The next entry of the same hash.
    next: Table<u32>,
    /// Makes hashes that a sender cannot foresee.
    secret: u64,
}

impl Peers {
    /// A table with room for `capacity` peers.
    pub fn new(capacity: usize) -> Result<Peers, Errno> {
        Ok(Peers {
            entries: Table::try_new(capacity, |_| Ok(None))?,
            heads: Table::try_new(capacity.next_power_of_two(), |_| Ok(NONE))?,
            next: Table::try_new(capacity, |_| Ok(NONE))?,
            secret: random() | 1,
        })
    }

    /// The peer of this number.
    pub fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.entries.get(id as usize)?.as_ref()
    }

    /// Whether `id` is the peer at `source`.
    pub fn is_at(&self, id: PeerId, source: &Source) -> bool {
        self.peer(id).is_some_and(|peer| peer.source == *source)
    }

    /// The peer at `source`, if it is known.
    pub fn find(&mut self, source: &Source, now_ns: u64) -> Option<PeerId> {
        let mut at = *self.heads.get(self.head_of(source))?;
        while at != NONE {
            let peer = self.entries.get_mut(at as usize)?.as_mut()?;
            if peer.source == *source {
                peer.last_used_ns = now_ns;
                return Some(at);
            }
            at = *self.next.get(at as usize)?;
        }
        None
    }

    /// Makes a peer known, which was not. `None` if every entry has sessions.
    pub fn insert(
        &mut self,
        source: Source,
        address: AddressHandle,
        now_ns: u64,
    ) -> Option<PeerId> {
        let age = |entry: &Option<Peer>| match entry {
            None => Some(0),
            Some(peer) if peer.sessions == 0 => Some(peer.last_used_ns.max(1)),
            Some(_) => None,
        };
        let (index, _) = self
            .entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| Some((index, age(entry)?)))
            .min_by_key(|&(_, age)| age)?;
        self.forget(index as PeerId);
        let head = self.head_of(&source);
        let head = self.heads.get_mut(head)?;
        *self.next.get_mut(index)? = core::mem::replace(head, index as u32);
        *self.entries.get_mut(index)? = Some(Peer {
            address,
            source,
            sessions: 0,
            last_used_ns: now_ns,
        });
        Some(index as PeerId)
    }

    /// A session of this peer has been opened.
    pub fn retain(&mut self, id: PeerId) {
        if let Some(Some(peer)) = self.entries.get_mut(id as usize) {
            peer.sessions = peer.sessions.saturating_add(1);
        }
    }

    /// A session of this peer has ended.
    pub fn release(&mut self, id: PeerId) {
        if let Some(Some(peer)) = self.entries.get_mut(id as usize) {
            peer.sessions = peer.sessions.saturating_sub(1);
        }
    }

    /// Empties an entry and takes it out of its chain.
    fn forget(&mut self, id: PeerId) -> Option<()> {
        let peer = self.entries.get_mut(id as usize)?.take()?;
        let after = *self.next.get(id as usize)?;
        let head = self.head_of(&peer.source);
        let first = self.heads.get_mut(head)?;
        if *first == id {
            *first = after;
            return Some(());
        }
        let mut before = *first;
        loop {
            let link = self.next.get_mut(before as usize)?;
            if *link == id {
                *link = after;
                return Some(());
            }
            before = *link;
        }
    }

    fn head_of(&self, source: &Source) -> usize {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = source.gid.0;
        let words = [
            u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            u64::from_le_bytes([i, j, k, l, m, n, o, p]),
            u64::from(source.qpn) | (source.port as u64) << 32,
        ];
        let mixed = words.iter().fold(self.secret, |hash, word| {
            (hash ^ word)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(29)
                .wrapping_add(self.secret)
        });
        // The length is a power of two.
        (mixed >> 20) as usize & self.heads.len().wrapping_sub(1)
    }
}
