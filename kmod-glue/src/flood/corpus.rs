//! The inputs of the fuzzer's corpus for datagrams (`fuzz/corpus/rpc_decode`), changed in the ways in which a fuzzer
//! changes them.

use mitosis_core::wire::HEADER_LEN;
use rand_xoshiro::rand_core::RngCore;
use rand_xoshiro::Xoshiro256StarStar;

use super::draw;

include!(concat!(env!("OUT_DIR"), "/corpus.rs"));

/// Where a header names its session, and its request after it.
const SESSION_AT: usize = 4;
const REQUEST_AT: usize = 16;
/// Values at which something begins or ends.
const EDGES: [u32; 8] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
];

fn input(random: &mut Xoshiro256StarStar) -> &'static [u8] {
    let at = random.next_u32() as usize % CORPUS.len().max(1);
    CORPUS.get(at).copied().unwrap_or(&[])
}

fn put(bytes: &mut [u8], at: usize, from: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(at).zip(from) {
        *to = *from;
    }
}

/// One of them, as it is or changed in up to three ways. Returns its length.
pub fn mutate(random: &mut Xoshiro256StarStar, bytes: &mut [u8], epoch: u32) -> usize {
    let first = input(random);
    put(bytes, 0, first);
    let mut len = first.len().min(bytes.len());
    for _ in 0..random.next_u32() % 4 {
        let at = random.next_u32() as usize % len.max(1);
        match random.next_u32() % 8 {
            0 => draw::flip(random, bytes, len),
            1 => put(bytes, at, &[random.next_u32() as u8]),
            2 => {
                let edge = EDGES.get(random.next_u32() as usize % EDGES.len());
                let edge = edge.copied().unwrap_or_default().to_le_bytes();
                let some = 1 << (random.next_u32() % 3);
                put(bytes, at, edge.get(..some).unwrap_or(&[]));
            }
            3 => len = at,
            4 => {
                // Longer, by what the buffer held before.
                let more = random.next_u32() as usize % (HEADER_LEN * 4);
                len = (len + more).min(bytes.len());
            }
            5 => {
                // The end of another one.
                let other = input(random);
                let rest = other.get(at..).unwrap_or(&[]);
                put(bytes, at, rest);
                len = (at + rest.len()).min(bytes.len());
            }
            6 => {
                let session = draw::session(random, epoch);
                let names = [session.index, session.generation, session.epoch];
                for (place, name) in (SESSION_AT..).step_by(4).zip(names) {
                    put(bytes, place, &name.to_le_bytes());
                }
            }
            _ => {
                let request = u64::from(random.next_u32() % 100_000);
                put(bytes, REQUEST_AT, &request.to_le_bytes());
            }
        }
    }
    len
}
