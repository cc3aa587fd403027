//! How a child proves that it is its parent's continuation.
//!
//! The parent makes up its memory at random and says of it one number, its state: a checksum over heap, globals,
//! thread-local variables and what its open file has to say. A child is given a nonce that nobody knew before, computes
//! the state from what it finds in its own memory, and answers with a mixture of nonce, number and state.
//! `cpp/parent.cpp` has the other half.

/// What a child is told: the nonce, on a line.
pub fn question(nonce: u64) -> String {
    format!("{nonce:016x}\n")
}

/// What it says first of all.
pub const BEGUN: &str = "begun";

/// What a child of this number then has to answer.
pub fn answer(nonce: u64, child: u64, state: u64) -> String {
    format!("proof {:016x}", mix(nonce ^ mix(state ^ mix(child))))
}

/// The finalizer of SplitMix64: each bit of the result depends on each of the argument.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_those_of_the_published_generator() {
        // The first output of SplitMix64 seeded with 0.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn all_that_is_asked_goes_into_the_answer() {
        let right = answer(1, 2, 3);
        for other in [answer(0, 2, 3), answer(1, 0, 3), answer(1, 2, 0)] {
            assert_ne!(right, other);
        }
    }
}
