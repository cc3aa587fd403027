//! The clients' addresses: a bounded table of address handles.
//!
//! An entry with sessions stays; one without may be forgotten when room is needed, the longest unused first.

use mitosis_core::rpc::server::PeerId;

use crate::endpoint::Source;
use crate::errno::Errno;
use crate::memory::Table;
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

/// The table.
pub struct Peers {
    entries: Table<Option<Peer>>,
}

impl Peers {
    /// A table with room for `capacity` peers.
    pub fn new(capacity: usize) -> Result<Peers, Errno> {
        Ok(Peers {
            entries: Table::try_new(capacity, |_| Ok(None))?,
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

    /// The peer at `source`, if it is known. Looks at every entry: for handshakes, not for requests.
    pub fn find(&mut self, source: &Source, now_ns: u64) -> Option<PeerId> {
        let entries = self.entries.iter_mut().enumerate();
        for (index, entry) in entries {
            if let Some(peer) = entry {
                if peer.source == *source {
                    peer.last_used_ns = now_ns;
                    return Some(index as PeerId);
                }
            }
        }
        None
    }

    /// Makes a peer known. `None` if every entry has sessions.
    pub fn insert(
        &mut self,
        source: Source,
        address: AddressHandle,
        now_ns: u64,
    ) -> Option<PeerId> {
        let key = |entry: &Option<Peer>| match entry {
            None => Some(0),
            Some(peer) if peer.sessions == 0 => Some(peer.last_used_ns.max(1)),
            Some(_) => None,
        };
        let (index, entry) = self
            .entries
            .iter_mut()
            .enumerate()
            .filter(|(_, entry)| key(entry).is_some())
            .min_by_key(|(_, entry)| key(entry))?;
        *entry = Some(Peer {
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
}
