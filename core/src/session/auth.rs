//! The proof that a peer belongs to the cluster (wire.md §7.5).
//!
//! Each message of a keyed handshake carries a tag: SipHash-2-4 with 128 bits of output, a keyed
//! hash made for short messages, over everything that the message says and what it answers. It
//! needs neither floating-point registers nor tables, so it runs in the kernel as it is.

use core::fmt;

use siphasher::sip128::SipHasher24;
use subtle::ConstantTimeEq;

use super::SessionId;
use crate::wire::{accept, connect, Accept, Connect, Kind, Tag, VERSION};

/// The cluster's key: 128 secret bits that all its members are told.
#[derive(Clone, Copy)]
pub struct ClusterKey(pub [u8; 16]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}

/// Kind, version and session.
const PREFIX_LEN: usize = 14;

/// What a Confirm is made of: the client's key and both nonces.
const CONFIRMED_LEN: usize = 24;

impl ClusterKey {
    /// The tag of a Connect, whatever tag it has.
    pub fn connect_tag(&self, connect: &Connect) -> Tag {
        let mut said = [0; connect::LEN];
        let untagged = Connect {
            tag: Some([0; 16]),
            ..*connect
        };
        // The buffer is as long as the payload.
        let _ = untagged.emit(&mut said);
        self.tag(Kind::Connect, SessionId::NONE, &said)
    }

    /// The tag of an Accept, whatever tag it has. The Accept names the Connect's nonce.
    pub fn accept_tag(&self, session: SessionId, accept: &Accept) -> Tag {
        let mut said = [0; accept::LEN];
        let untagged = Accept {
            tag: Some([0; 16]),
            ..*accept
        };
        let _ = untagged.emit(&mut said);
        self.tag(Kind::Accept, session, &said)
    }

    /// The tag of the Confirm that follows that Accept.
    pub fn confirm_tag(
        &self,
        session: SessionId,
        client_key: u64,
        client_nonce: u64,
        server_nonce: u64,
    ) -> Tag {
        let mut said = [0; CONFIRMED_LEN];
        let words = [client_key, client_nonce, server_nonce];
        for (place, word) in said.chunks_exact_mut(8).zip(words) {
            for (to, from) in place.iter_mut().zip(word.to_le_bytes()) {
                *to = from;
            }
        }
        self.tag(Kind::Confirm, session, &said)
    }

    #[inline(never)]
    fn tag(&self, kind: Kind, session: SessionId, said: &[u8]) -> Tag {
        let mut bytes = [0; PREFIX_LEN + connect::LEN];
        let prefix = [kind as u8, VERSION];
        let names = [session.index, session.generation, session.epoch];
        let names = names.iter().flat_map(|name| name.to_le_bytes());
        let all = prefix.into_iter().chain(names).chain(said.iter().copied());
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = from;
        }
        let len = PREFIX_LEN.saturating_add(said.len());
        let tagged = bytes.get(..len).unwrap_or(&bytes);
        SipHasher24::new_with_key(&self.0).hash(tagged).as_bytes()
    }
}

/// Whether two tags are the same, in a time that does not depend on where they differ.
pub fn same(a: &Tag, b: &Tag) -> bool {
    a.as_slice().ct_eq(b.as_slice()).into()
}

/// Makes the server's nonces: unguessable without the seed, and another for each session.
#[derive(Clone)]
pub(crate) struct Nonces {
    seed: [u8; 16],
}

impl Nonces {
    pub(crate) fn new(seed: u128) -> Self {
        Self {
            seed: seed.to_le_bytes(),
        }
    }

    /// The nonce of a session. As generations count up, no two sessions of an incarnation have the
    /// same; as the seed is drawn anew, no two incarnations have.
    pub(crate) fn of(&self, session: SessionId, client_nonce: u64) -> u64 {
        let words = [
            u64::from(session.index) << 32 | u64::from(session.generation),
            u64::from(session.epoch),
            client_nonce,
        ];
        let mut bytes = [0; 24];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            for (to, from) in place.iter_mut().zip(word.to_le_bytes()) {
                *to = from;
            }
        }
        SipHasher24::new_with_key(&self.seed).hash(&bytes).h1
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;

    /// The first lines of the table that SipHash's authors publish (`vectors_sip128`): the key is
    /// 00 to 0f, the message 00, 01, … of the line's length.
    #[test]
    fn the_hash_is_siphash_2_4_128() {
        let key = core::array::from_fn(|place| place as u8);
        let published = [
            (0, 0xa381_7f04_ba25_a8e6_6df6_7214_c755_0293_u128),
            (1, 0xda87_c1d8_6b99_af44_3476_5911_9b22_fc45),
        ];
        for (len, tag) in published {
            let message: [u8; 1] = [0];
            let hash = SipHasher24::new_with_key(&key).hash(&message[..len]);
            assert_eq!(hash.as_bytes(), tag.to_be_bytes());
        }
    }

    /// wire.md §7.5, byte by byte.
    #[test]
    fn tags_are_of_the_bytes_that_are_specified() {
        let key = ClusterKey(core::array::from_fn(|place| place as u8));
        let session = SessionId {
            index: 0x0403_0201,
            generation: 0x1413_1211,
            epoch: 0x2423_2221,
        };
        #[rustfmt::skip]
        let names = [
            0x01, 0x02, 0x03, 0x04, 0x11, 0x12, 0x13, 0x14, 0x21, 0x22, 0x23, 0x24,
        ];
        let connect = Connect {
            client_key: 4,
            client_nonce: 5,
            datagram_len: 4096,
            slots: 8,
            credits: 9,
            max_message_len: 10,
            tag: None,
        };
        let mut said = std::vec![4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0];
        said.extend([0; 16]);
        said.extend([0, 16, 8, 0, 9, 0, 1, 0, 10, 0, 0, 0, 0, 0, 0, 0]);
        let of_connect = [&[1, 1], &[0; 12][..], &said].concat();
        let accept = Accept {
            client_nonce: 5,
            server_nonce: 6,
            datagram_len: 4096,
            slots: 8,
            credits: 9,
            max_message_len: 10,
            idle_timeout_ms: 11,
            tag: None,
        };
        let mut said = std::vec![5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
        said.extend([0; 16]);
        said.extend([0, 16, 8, 0, 9, 0, 1, 0, 10, 0, 0, 0, 11, 0, 0, 0]);
        let of_accept = [&[2, 1], &names[..], &said].concat();
        let said = [4, 5, 6].map(u64::to_le_bytes).concat();
        let of_confirm = [&[3, 1], &names[..], &said].concat();
        for (tag, bytes) in [
            (key.connect_tag(&connect), of_connect),
            (key.accept_tag(session, &accept), of_accept),
            (key.confirm_tag(session, 4, 5, 6), of_confirm),
        ] {
            let hash = SipHasher24::new_with_key(&key.0).hash(&bytes);
            assert_eq!(tag, hash.as_bytes(), "{bytes:x?}");
        }
        // Whatever tags they have.
        let tag = Some([7; 16]);
        let (connect, accept) = (Connect { tag, ..connect }, Accept { tag, ..accept });
        let untagged = |tag| Connect { tag, ..connect };
        assert_eq!(key.connect_tag(&connect), key.connect_tag(&untagged(None)));
        let untagged = |tag| Accept { tag, ..accept };
        assert_eq!(
            key.accept_tag(session, &accept),
            key.accept_tag(session, &untagged(None))
        );
    }

    #[test]
    fn each_bit_of_what_is_said_and_of_the_key_changes_the_tag() {
        let key = ClusterKey([7; 16]);
        let session = SessionId {
            index: 1,
            generation: 2,
            epoch: 3,
        };
        let tag = key.confirm_tag(session, 4, 5, 6);
        assert!(same(&tag, &key.confirm_tag(session, 4, 5, 6)));
        let other = SessionId {
            generation: 3,
            ..session
        };
        let mut another = [7; 16];
        another[15] ^= 1;
        for changed in [
            key.confirm_tag(other, 4, 5, 6),
            key.confirm_tag(session, 5, 5, 6),
            key.confirm_tag(session, 4, 4, 6),
            key.confirm_tag(session, 4, 5, 7),
            ClusterKey(another).confirm_tag(session, 4, 5, 6),
        ] {
            assert!(!same(&tag, &changed));
        }
    }

    #[test]
    fn nonces_differ_between_sessions_and_seeds() {
        let session = SessionId {
            index: 1,
            generation: 2,
            epoch: 3,
        };
        let next = SessionId {
            generation: 3,
            ..session
        };
        let nonces = Nonces::new(9);
        assert_eq!(nonces.of(session, 1), nonces.of(session, 1));
        assert_ne!(nonces.of(session, 1), nonces.of(next, 1));
        for other in [
            SessionId {
                index: 2,
                ..session
            },
            SessionId {
                index: 3,
                ..session
            },
            SessionId {
                epoch: 2,
                ..session
            },
        ] {
            assert_ne!(nonces.of(session, 1), nonces.of(other, 1));
        }
        assert_ne!(nonces.of(session, 1), nonces.of(session, 2));
        assert_ne!(nonces.of(session, 1), Nonces::new(10).of(session, 1));
    }
}
