//! What the calls of a simulation contain, so that both ends can check what they were given.
//!
//! A request says in its first bytes which call of which client it is, and ends in bytes that
//! follow from that. Its digest covers all of it, and the reply is made of nothing but the digest:
//! no two requests have the same reply of eight bytes or more, and a reply that belongs to another
//! request, is put together wrongly, or has lost its end is recognised as such.

use std::ops::Range;

/// What the handler does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Replies at once.
    Immediate,
    /// Replies some time later.
    Late,
    /// Runs, and fails at once.
    Failing,
}

impl Work {
    /// The number under which the handler is called.
    pub fn rpc_id(self) -> u32 {
        match self {
            Self::Immediate => 1,
            Self::Late => 2,
            Self::Failing => 3,
        }
    }

    /// The handler that is called by this number.
    pub fn from_rpc_id(rpc_id: u32) -> Option<Self> {
        [Self::Immediate, Self::Late, Self::Failing]
            .into_iter()
            .find(|work| work.rpc_id() == rpc_id)
    }
}

/// Names a call among all of a run: which life of which client, and which of its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallId {
    /// Numbers the lives of all clients, from 0: a client that is started again is another one.
    pub incarnation: u32,
    /// Numbers the calls of that life, from 0.
    pub number: u32,
}

impl std::fmt::Display for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "call {} of client {}", self.number, self.incarnation)
    }
}

/// The least length of a request in bytes: what names the call, its reply's length and its digest.
pub const MIN_REQUEST: u32 = 24;

/// Where the digest lies.
const DIGEST: Range<usize> = 16..24;

/// Writes the request. `request` is at least [`MIN_REQUEST`] long.
pub fn write_request(id: CallId, reply_len: u32, request: &mut [u8]) {
    request[0..4].copy_from_slice(&id.incarnation.to_le_bytes());
    request[4..8].copy_from_slice(&id.number.to_le_bytes());
    request[8..12].copy_from_slice(&reply_len.to_le_bytes());
    let len = (request.len() as u32).to_le_bytes();
    request[12..16].copy_from_slice(&len);
    let (start, end) = request.split_at_mut(DIGEST.end);
    fill(digest(&start[..DIGEST.start], &[]), end);
    let digest = digest(&start[..DIGEST.start], end);
    start[DIGEST].copy_from_slice(&digest.to_le_bytes());
}

/// What a request says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Which call it is.
    pub id: CallId,
    /// How long its reply is to be, in bytes.
    pub reply_len: u32,
    digest: u64,
}

/// Reads a request; `None` if it is not as [`write_request`] wrote it.
pub fn read_request(request: &[u8]) -> Option<Asked> {
    let word = |at: usize| {
        let bytes = request.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let digest = u64::from_le_bytes(request.get(DIGEST)?.try_into().ok()?);
    let whole = word(12)? as usize == request.len()
        && digest == self::digest(&request[..DIGEST.start], &request[DIGEST.end..]);
    whole.then_some(Asked {
        id: CallId {
            incarnation: word(0)?,
            number: word(4)?,
        },
        reply_len: word(8)?,
        digest,
    })
}

impl Asked {
    /// Writes the reply, which is as long as `reply`.
    pub fn write_reply(&self, reply: &mut [u8]) {
        fill(self.digest, reply);
    }

    /// Whether this is the reply.
    pub fn is_reply(&self, reply: &[u8]) -> bool {
        let mut state = self.digest;
        reply.len() == self.reply_len as usize
            && reply
                .chunks(8)
                .all(|chunk| next(&mut state).to_le_bytes().starts_with(chunk))
    }
}

/// The next word of SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mix(*state)
}

fn mix(word: u64) -> u64 {
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

fn fill(mut state: u64, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        let word = next(&mut state).to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
}

fn digest(start: &[u8], end: &[u8]) -> u64 {
    let mut digest = 0x6d69_746f_7369_7300 ^ end.len() as u64;
    for chunk in start.chunks(8).chain(end.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        // Mixed after each word: by a product alone, a word's highest bit reaches one bit, which another word could turn back.
        digest = mix(digest.rotate_left(23) ^ u64::from_le_bytes(word));
    }
    digest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(number: u32, len: usize) -> Vec<u8> {
        let mut request = vec![0; len];
        let id = CallId {
            incarnation: 5,
            number,
        };
        write_request(id, 20, &mut request);
        request
    }

    #[test]
    fn every_damage_to_a_request_is_seen() {
        for len in [24, 25, 31, 64] {
            let mut bytes = request(9, len);
            let asked = read_request(&bytes).unwrap();
            assert_eq!((asked.id.number, asked.reply_len), (9, 20));
            for bit in 0..len * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(read_request(&bytes), None, "bit {bit} of {len} bytes");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            assert_eq!(read_request(&bytes[..len - 1]), None);
        }
    }

    #[test]
    fn no_two_bits_make_up_for_each_other() {
        let mut bytes = request(9, 32);
        let bits = bytes.len() * 8;
        let mut flip = |bit: usize| {
            bytes[bit / 8] ^= 1 << (bit % 8);
            read_request(&bytes)
        };
        for one in 0..bits {
            flip(one);
            for other in one + 1..bits {
                assert_eq!(flip(other), None, "bits {one} and {other}");
                flip(other);
            }
            flip(one);
        }
    }

    #[test]
    fn a_reply_is_its_own_requests() {
        let [one, two] = [1, 2].map(|number| read_request(&request(number, 40)).unwrap());
        let mut reply = [0; 20];
        one.write_reply(&mut reply);
        assert!(one.is_reply(&reply));
        assert!(!two.is_reply(&reply));
        assert!(!one.is_reply(&reply[..19]));
        reply[19] ^= 1;
        assert!(!one.is_reply(&reply));
    }
}
