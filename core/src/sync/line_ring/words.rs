//! A datagram's words, in the lines of a ring and out of them.

use super::{line, Line, COMMON, COMMON_PAYLOAD, DATA_WORDS, LEAD_WORDS, WORD};
use crate::sync::primitive::{AtomicU64, Ordering};

/// Writes those of a datagram's first words that are not the last datagram's; which ones are left out, a bit each.
#[inline(always)]
pub(super) fn write_lead(
    places: &mut core::slice::Iter<'_, AtomicU64>,
    last: &mut [u64; LEAD_WORDS],
    words: &[u64],
) -> u64 {
    let mut left_out = 0;
    for (index, (&word, last)) in words.iter().zip(last).enumerate() {
        let same = word == *last;
        left_out |= u64::from(same) << index;
        if !same {
            *last = word;
            if let Some(place) = places.next() {
                // Relaxed, as all words: the first line's stamp publishes them.
                place.store(word, Ordering::Relaxed);
            }
        }
    }
    left_out
}

/// Writes a datagram that leaves out the [`COMMON`] words, and its stamp.
#[inline(always)]
pub(super) fn write_common(
    line: &Line,
    last: &mut [u64; LEAD_WORDS],
    lead: &[u64; LEAD_WORDS],
    payload: &[u8],
    said: u64,
) {
    #[cfg(rdma_loom)]
    line.witness.with_mut(|_| ());
    let mut places = line.data.iter();
    for (index, (&word, last)) in lead.iter().zip(last).enumerate() {
        if COMMON >> index & 1 == 0 {
            *last = word;
            if let Some(place) = places.next() {
                // Relaxed, as all words: the stamp publishes them.
                place.store(word, Ordering::Relaxed);
            }
        }
    }
    write_words(places.as_slice(), payload);
    // Release: pairs with the Acquire in `Receiver::pop`, so that who sees the stamp sees the line.
    line.stamp.store(said, Ordering::Release);
}

/// Reads those of a datagram's first words that travel; the others are as they were.
#[inline(always)]
pub(super) fn read_lead(
    places: &mut core::slice::Iter<'_, AtomicU64>,
    left_out: u64,
    words: &mut [u64],
) {
    for (index, word) in words.iter_mut().enumerate() {
        if left_out >> index & 1 == 0 {
            if let Some(place) = places.next() {
                // Relaxed, as all words: the stamp has published them. Should the sender write at the same time, the word is
                // one that it wrote.
                *word = place.load(Ordering::Relaxed);
            }
        }
    }
}

/// Reads a datagram that leaves out the [`COMMON`] words, with all the payload that there is room for in its line.
#[inline(always)]
pub(super) fn read_common(first: &Line, words: &mut [u64; LEAD_WORDS + COMMON_PAYLOAD]) {
    let mut places = first.data.iter();
    let (lead, rest) = words.split_at_mut(LEAD_WORDS);
    for (index, word) in lead.iter_mut().enumerate() {
        if COMMON >> index & 1 == 0 {
            if let Some(place) = places.next() {
                *word = place.load(Ordering::Relaxed);
            }
        }
    }
    for (word, place) in rest.iter_mut().zip(places) {
        *word = place.load(Ordering::Relaxed);
    }
}

/// Reads what a datagram has in the lines from `number` on.
#[inline(never)]
pub(super) fn read_lines(lines: &[Line], number: u64, words: &mut [u64]) {
    for (words, ahead) in words.chunks_mut(DATA_WORDS).zip(0..) {
        if let Some(line) = line(lines, number.wrapping_add(ahead)) {
            for (word, place) in words.iter_mut().zip(&line.data) {
                *word = place.load(Ordering::Relaxed);
            }
            #[cfg(rdma_loom)]
            line.witness.with(|_| ());
        }
    }
}

/// Writes the bytes to as many places as they need, of which there are enough; the last word is filled up with zeros.
#[inline(always)]
pub(super) fn write_words(places: &[AtomicU64], bytes: &[u8]) {
    let mut rest = bytes;
    for place in places {
        let Some((&word, more)) = rest.split_first_chunk() else {
            if !rest.is_empty() {
                place.store(last_word(rest), Ordering::Relaxed);
            }
            return;
        };
        place.store(u64::from_ne_bytes(word), Ordering::Relaxed);
        rest = more;
    }
}

/// Fewer bytes than a word has, filled up with zeros.
#[inline(never)]
fn last_word(bytes: &[u8]) -> u64 {
    let mut word = [0; WORD];
    for (to, from) in word.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_ne_bytes(word)
}
