//! Runs of a request's parts that are answered together, which both ends work out alike (wire.md §8.2, §8.3).

/// The most parts that share a CreditReturn where a request has any.
const LONGEST: u32 = 16;

/// How many parts of a request of `request_len` bytes, in parts of `part_len` bytes, share a CreditReturn in
/// a session of so many credits and slots. One for which its slot's share of the credits is enough has
/// none. Of a longer one, half of that share is held back at most. So all slots together hold back fewer
/// than all credits, and the session can always go on.
pub(super) fn return_run(request_len: u32, part_len: u32, credits: u16, slots: u16) -> u32 {
    let of = |share: u32| u32::from(credits).checked_div(share).unwrap_or(0);
    let share = of(u32::from(slots));
    if request_len <= share.saturating_mul(part_len) {
        return share.max(1);
    }
    of(u32::from(slots).saturating_mul(2))
        .saturating_add(1)
        .min(LONGEST)
}

/// How many parts of a request no CreditReturn answers: at least the last. As many parts of its reply
/// come without being asked for.
#[cold]
pub(super) fn unanswered(request_len: u32, part_len: u32, credits: u16, slots: u16) -> u32 {
    let before_last = request_len.saturating_sub(1).checked_div(part_len);
    let run = return_run(request_len, part_len, credits, slots);
    let held = before_last.and_then(|parts| parts.checked_rem(run));
    held.unwrap_or(0).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::{return_run, unanswered};

    #[test]
    #[cfg_attr(miri, ignore = "it counts for minutes")]
    fn slots_together_hold_back_fewer_than_all_credits() {
        for credits in 1..100 {
            for slots in 1..=64 {
                for parts in [1, 2, 3, 8, 17, 50, 1000] {
                    let run = return_run(parts * 100, 100, credits, slots);
                    let held = (parts.min(run) - 1) * u32::from(slots);
                    assert!(held < u32::from(credits), "{credits} {slots} {parts}");
                }
            }
        }
        assert_eq!(return_run(u32::MAX, 1, u16::MAX, 1), 16);
        assert_eq!(return_run(1, 1, 1, u16::MAX), 1);
        assert_eq!(return_run(1, 1, 1, 0), 1);
        assert_eq!(return_run(1, 0, 1, 1), 1);
    }

    #[test]
    fn what_no_return_answers_is_what_follows_the_last_run() {
        // 17 credits for 17 parts: no return; for more, one for each 9.
        for (request_len, parts) in [
            (0, 1),
            (100, 1),
            (101, 2),
            (1700, 17),
            (1701, 9),
            (1801, 1),
            (1900, 1),
            (1901, 2),
        ] {
            assert_eq!(unanswered(request_len, 100, 17, 1), parts, "{request_len}");
        }
        assert_eq!(unanswered(1700, 0, 17, 1), 1);
    }
}
