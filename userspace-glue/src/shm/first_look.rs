//! When to look for what comes next, after something was sent.

use std::hint::{black_box, spin_loop};

/// Parts of a step, in which the wait is counted.
const PARTS: u32 = 4;

/// By how much the wait grows when the first look came too early. More than this, and what comes late now and then for other
/// reasons makes both ends wait for each other.
const GROWTH: u32 = 2 * PARTS;

/// The longest wait: a microsecond or so.
const MOST: u32 = 512 * PARTS;

/// By how much the wait shrinks when the first look found something: then most first looks come in time, and the wait is little
/// longer than it must be. One end gives way faster than the other. With both slow, each takes the other's wait for the way of a
/// line, and waits longer and longer.
pub const CLIENT_SHRINKS: u32 = PARTS;
pub const SERVER_SHRINKS: u32 = 1;

/// A look at a line before it was written takes it from the end that is about to write it, which then has to fetch it back
/// first. So the first look after something was sent waits for as long as the answer usually takes, which it learns.
pub struct FirstLook {
    usual: u32,
    shrinks: u32,
    due: bool,
}

impl FirstLook {
    /// One whose wait shrinks by so much.
    pub fn new(shrinks: u32) -> Self {
        Self {
            usual: 0,
            shrinks,
            due: false,
        }
    }

    /// Something was sent; the next look is the first one for an answer.
    #[inline(always)]
    pub fn sent(&mut self) {
        self.due = true;
    }

    /// Waits, if the next look is the first; whether it is.
    #[inline(always)]
    pub fn wait(&mut self) -> bool {
        let first = std::mem::take(&mut self.due);
        if first {
            linger(self.usual / PARTS);
        }
        first
    }

    /// The first look, or one soon after it, has found something.
    #[inline(always)]
    pub fn found(&mut self, at_once: bool) {
        self.usual = match at_once {
            true => self.usual.saturating_sub(self.shrinks),
            false => (self.usual + GROWTH).min(MOST),
        };
    }
}

/// How many looks come soon after one another, and how many steps lie between them.
const SOON: u32 = 8;
const BETWEEN: u32 = 12;

/// Between two looks, of which so many were in vain. To look again at once would take the line from the end that is about to write
/// it; and a whole pause is long beside the way of a line.
#[inline(always)]
pub fn pause(looks: u32) {
    match looks {
        ..SOON => linger(BETWEEN),
        _ => spin_loop(),
    }
}

/// Lets so many steps pass. Not pauses, of which each takes 40 to 140 cycles: the answer is there, or it is not.
#[inline(always)]
fn linger(steps: u32) {
    let mut passed = 0_u32;
    for _ in 0..steps {
        // To memory and back: five to eight cycles.
        passed = black_box(passed.wrapping_add(1));
    }
}

/// After how many looks in vain there is none any more, and how many are then left out before one is tried again.
const VAIN: u8 = 4;
const LEFT_OUT: u8 = 28;

/// Whether to look for another call once one has been answered. Where calls come one at a time there is none, and the look would take
/// the next call's line from the client, which is about to write it.
#[derive(Default)]
pub struct NextLook {
    vain: u8,
}

impl NextLook {
    /// Whether to leave it out, because the last ones have found nothing.
    #[inline(always)]
    pub fn is_in_vain(&mut self) -> bool {
        let vain = self.vain >= VAIN;
        if vain {
            self.vain += 1;
            if self.vain == VAIN + LEFT_OUT {
                self.vain = VAIN - 1;
            }
        }
        vain
    }

    /// What a look has found.
    #[inline(always)]
    pub fn found(&mut self, something: bool) {
        self.vain = match something {
            true => 0,
            false => self.vain + 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers that take so long: how long the wait has become.
    fn learnt(first: &mut FirstLook, parts: u32) -> u32 {
        for _ in 0..4000 {
            first.sent();
            assert!(first.wait());
            assert!(!first.wait());
            first.found(first.usual >= parts);
        }
        first.usual
    }

    #[test]
    fn it_learns_how_long_an_answer_takes() {
        for shrinks in [CLIENT_SHRINKS, SERVER_SHRINKS] {
            let mut first = FirstLook::new(shrinks);
            for parts in [50, 300, 10, 1200, 0] {
                let learnt = learnt(&mut first, parts);
                assert!((parts.saturating_sub(shrinks)..=parts + GROWTH).contains(&learnt));
            }
        }
    }

    /// How many of a hundred looks after an answer are made, of which one in `one_in` finds something.
    fn looks(next: &mut NextLook, one_in: usize) -> usize {
        let looks = (0..100).filter(|number| {
            let looks = !next.is_in_vain();
            if looks {
                next.found(number % one_in == 0);
            }
            looks
        });
        looks.count()
    }

    #[test]
    fn looks_in_vain_are_left_out() {
        let mut next = NextLook::default();
        assert_eq!(looks(&mut next, 1), 100);
        assert_eq!(looks(&mut next, 3), 100);
        assert!((3..=8).contains(&looks(&mut next, 1000)));
        assert!(looks(&mut next, 1) > 60);
    }

    #[test]
    fn it_does_not_wait_for_ever() {
        assert_eq!(learnt(&mut FirstLook::new(1), u32::MAX), MOST);
    }
}
