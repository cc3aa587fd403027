//! The clients' addresses: a bounded table of the ways back to them.
//!
//! An entry with sessions stays; one without may be forgotten when room is needed, the longest unused first.

use std::collections::HashMap;

use mitosis_core::session::PeerId;
use mitosis_core::wire::resolution::QKEY;

use super::endpoint::Destination;
use super::pair::{AddressHandle, GRH_LEN};
use super::queue::Completion;

/// Where a datagram came from, as far as its receiver can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Source {
    /// The sender's GID; over InfiniBand without a global routing header, its LID in the last bytes.
    pub(super) gid: [u8; 16],
    /// The sender's queue pair.
    pub(super) qpn: u32,
}

impl Source {
    /// Reads the source off a completion and the header that came with it.
    #[inline]
    pub(super) fn of(completion: &Completion, grh: &[u8; GRH_LEN]) -> Self {
        let gid = if completion.has_grh() {
            gid_of(grh)
        } else {
            let mut gid = [0; 16];
            let [high, low] = completion.source_lid().to_be_bytes();
            gid[14] = high;
            gid[15] = low;
            gid
        };
        Self {
            gid,
            qpn: completion.source_qpn(),
        }
    }
}

/// The sender's GID. Over IPv4 its header stands in the last 20 bytes, and what is before it means nothing: so the header is
/// taken for IPv4's if its checksum is right.
fn gid_of(grh: &[u8; GRH_LEN]) -> [u8; 16] {
    let [.., a, b, c, d, _, _, _, _] = *grh;
    if grh[20] == 0x45 && is_ipv4(&grh[20..]) {
        return [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d];
    }
    let mut gid = [0; 16];
    gid.copy_from_slice(&grh[8..24]);
    gid
}

/// Whether the 16-bit words of a header add up to what an IPv4 header's do (RFC 1071).
fn is_ipv4(header: &[u8]) -> bool {
    let words = header.chunks_exact(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        _ => 0,
    });
    let sum: u32 = words.sum();
    (sum & 0xffff) + (sum >> 16) == 0xffff
}

struct Peer {
    source: Source,
    destination: Destination,
    sessions: u32,
    last_used: u64,
}

/// The table.
pub(super) struct Peers {
    entries: Vec<Option<Peer>>,
    by_source: HashMap<Source, PeerId>,
    /// Looked at first: datagrams come in runs.
    recent: Option<(Source, PeerId)>,
    clock: u64,
}

impl Peers {
    /// A table with room for `capacity` peers.
    pub(super) fn new(capacity: u32) -> Self {
        Self {
            entries: (0..capacity.max(1)).map(|_| None).collect(),
            by_source: HashMap::new(),
            recent: None,
            clock: 0,
        }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.entries.len() as u32
    }

    fn peer(&self, id: PeerId) -> Option<&Peer> {
        self.entries.get(id as usize)?.as_ref()
    }

    /// The way to a peer.
    #[inline]
    pub(super) fn destination(&self, id: PeerId) -> Option<&Destination> {
        Some(&self.peer(id)?.destination)
    }

    /// The peer at `source`, if it is known.
    #[inline]
    pub(super) fn find(&mut self, source: &Source) -> Option<PeerId> {
        let id = match self.recent {
            Some((recent, id)) if recent == *source => id,
            _ => *self.by_source.get(source)?,
        };
        self.clock += 1;
        self.recent = Some((*source, id));
        self.entries.get_mut(id as usize)?.as_mut()?.last_used = self.clock;
        Some(id)
    }

    /// Makes a peer known, which was not. `None` if every entry has sessions.
    pub(super) fn insert(&mut self, source: Source, address: AddressHandle) -> Option<PeerId> {
        let destination = Destination {
            address: std::sync::Arc::new(address),
            qpn: source.qpn,
            qkey: QKEY,
        };
        self.insert_at(source, destination)
    }

    /// As [`Peers::insert`], with the way to it.
    pub(super) fn insert_at(&mut self, source: Source, destination: Destination) -> Option<PeerId> {
        let age = |entry: &Option<Peer>| match entry {
            None => Some(0),
            Some(peer) if peer.sessions == 0 => Some(peer.last_used.max(1)),
            Some(_) => None,
        };
        let (index, _) = self
            .entries
            .iter()
            .enumerate()
            .filter_map(|(index, entry)| Some((index, age(entry)?)))
            .min_by_key(|&(_, age)| age)?;
        let entry = self.entries.get_mut(index)?;
        if let Some(forgotten) = entry.take() {
            self.by_source.remove(&forgotten.source);
        }
        let id = index as PeerId;
        self.clock += 1;
        *entry = Some(Peer {
            source,
            destination,
            sessions: 0,
            last_used: self.clock,
        });
        self.by_source.insert(source, id);
        self.recent = Some((source, id));
        Some(id)
    }

    /// A session of this peer has been opened.
    pub(super) fn retain(&mut self, id: PeerId) {
        if let Some(Some(peer)) = self.entries.get_mut(id as usize) {
            peer.sessions = peer.sessions.saturating_add(1);
        }
    }

    /// A session of this peer has ended.
    pub(super) fn release(&mut self, id: PeerId) {
        if let Some(Some(peer)) = self.entries.get_mut(id as usize) {
            peer.sessions = peer.sessions.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an IPv4 packet from 10.73.0.2 to 10.73.0.1 leaves in the last 20 bytes.
    fn ipv4_header() -> [u8; 20] {
        let mut header = [
            0x45, 0, 0, 116, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 73, 0, 2, 10, 73, 0, 1,
        ];
        let sum: u32 = header
            .chunks_exact(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        let checksum = !(((sum & 0xffff) + (sum >> 16)) as u16);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    }

    #[test]
    fn the_senders_gid_is_found_in_either_header() {
        let mut grh = [0xee; GRH_LEN];
        grh[20..].copy_from_slice(&ipv4_header());
        let mapped = std::net::Ipv4Addr::new(10, 73, 0, 2).to_ipv6_mapped();
        assert_eq!(gid_of(&grh), mapped.octets());

        // An IPv6 address may look like the beginning of an IPv4 header: its checksum is not right then.
        let mut grh = [0; GRH_LEN];
        grh[0] = 0x60;
        let gid = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 0x45, 0, 7, 8];
        grh[8..24].copy_from_slice(&gid);
        assert_eq!(gid_of(&grh), gid);
    }
}
