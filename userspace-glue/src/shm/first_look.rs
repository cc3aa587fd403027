//! When to look first for the answer to what was sent.

use std::hint::spin_loop;

/// What the wait is counted in: parts of a pause.
const PART: u32 = 16;

/// By how many parts the wait grows when the first look came too early. It shrinks by one when that found something: then
/// most first looks come in time, and the wait is little longer than it must be.
const GROWTH: u32 = 4;

/// The longest wait, in parts: some hundred nanoseconds.
const MOST: u32 = 32 * PART;

/// A look at a line before it was written takes it from the end that is about to write it, which then has to fetch it back
/// first. So the first look after something was sent waits for as long as the answer usually takes, which it learns.
#[derive(Default)]
pub struct FirstLook {
    usual: u32,
    due: bool,
}

impl FirstLook {
    /// Something was sent; the next look is the first one for an answer.
    #[inline(always)]
    pub fn sent(&mut self) {
        self.due = true;
    }

    /// Whether the next look is the first.
    #[inline(always)]
    pub fn is_due(&self) -> bool {
        self.due
    }

    /// Waits, if the next look is the first; whether it is.
    #[inline(always)]
    pub fn wait(&mut self) -> bool {
        let first = std::mem::take(&mut self.due);
        if first {
            for _ in 0..self.usual / PART {
                spin_loop();
            }
        }
        first
    }

    /// The first look, or one soon after it, has found something.
    #[inline(always)]
    pub fn found(&mut self, at_once: bool) {
        self.usual = match at_once {
            true => self.usual.saturating_sub(1),
            false => (self.usual + GROWTH).min(MOST),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers that take so many pauses: how long the wait has become.
    fn learnt(first: &mut FirstLook, pauses: u32) -> u32 {
        for _ in 0..2000 {
            first.sent();
            assert!(first.is_due() && first.wait() && !first.is_due());
            assert!(!first.wait());
            first.found(first.usual / PART >= pauses);
        }
        first.usual / PART
    }

    #[test]
    fn it_learns_how_long_an_answer_takes() {
        let mut first = FirstLook::default();
        for pauses in [5, 20, 1, 0] {
            let learnt = learnt(&mut first, pauses);
            assert!((pauses.saturating_sub(1)..=pauses).contains(&learnt));
        }
    }

    #[test]
    fn it_does_not_wait_for_ever() {
        assert_eq!(learnt(&mut FirstLook::default(), u32::MAX), MOST / PART);
    }
}
