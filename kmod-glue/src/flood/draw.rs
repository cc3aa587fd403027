//! What is drawn at random for a datagram.

use mitosis_core::session::SessionId;
use mitosis_core::wire::HEADER_LEN;
use rand_xoshiro::rand_core::RngCore;
use rand_xoshiro::Xoshiro256StarStar;

/// Random bytes of random length, often about as long as a header.
pub fn bytes(random: &mut Xoshiro256StarStar, bytes: &mut [u8]) -> usize {
    let most = match random.next_u32() % 4 {
        0 => bytes.len(),
        1 => HEADER_LEN,
        _ => HEADER_LEN * 2,
    };
    let len = (random.next_u32() as usize % (most + 1)).min(bytes.len());
    if let Some(bytes) = bytes.get_mut(..len) {
        random.fill_bytes(bytes);
    }
    len
}

/// The name of a session that may well be somebody's.
pub fn session(random: &mut Xoshiro256StarStar, epoch: u32) -> SessionId {
    SessionId {
        index: random.next_u32() % 1_100,
        generation: 1 + random.next_u32() % 4,
        epoch: if random.next_u32() & 1 == 1 {
            epoch
        } else {
            random.next_u32()
        },
    }
}

/// Flips up to four of the first `len` bytes' bits.
pub fn flip(random: &mut Xoshiro256StarStar, bytes: &mut [u8], len: usize) {
    for _ in 0..random.next_u32() % 5 {
        let bit = random.next_u32() as usize % (len * 8).max(1);
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }
}
