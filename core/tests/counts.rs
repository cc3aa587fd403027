//! What counts, gauges and wishes to end say on one thread. What several threads see of them is loom's.

use mitosis_core::sync::count::{References, Tally};
use mitosis_core::sync::gauge::Gauge;
use mitosis_core::sync::stop::Stop;
use proptest::prelude::*;

proptest! {
    #[test]
    fn the_last_of_references_is_the_last_and_no_other(others in 0..20_usize) {
        let references = References::default();
        for _ in 0..others {
            references.take();
        }
        for left in (0..=others).rev() {
            prop_assert_eq!(references.is_only(), left == 0);
            prop_assert_eq!(references.give_up(), left == 0);
        }
    }

    #[test]
    fn a_tally_is_what_was_added_less_what_was_subtracted(
        steps in proptest::collection::vec((0..1_000_u64, 0..1_000_u64), 0..20),
    ) {
        let tally = Tally::default();
        let mut oracle = 0;
        for (more, fewer) in steps {
            let fewer = fewer.min(oracle + more);
            tally.add(more);
            tally.subtract(fewer);
            oracle = oracle + more - fewer;
            prop_assert_eq!(tally.value(), oracle);
        }
    }
}

#[test]
fn a_gauge_reads_what_was_set_last() {
    let gauge = Gauge::new(7);
    assert_eq!(gauge.value(), 7);
    gauge.set(u64::MAX);
    assert_eq!(gauge.value(), u64::MAX);
    assert_eq!(Gauge::default().value(), 0);
}

#[test]
fn a_wish_to_end_stays() {
    let stop = Stop::default();
    assert!(!stop.wanted());
    stop.want();
    stop.want();
    assert!(stop.wanted());
}
