//! `References`: exactly one owner is the last, and it sees what all others did. `Tally`: no event is lost.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use mitosis_loom_tests::sync::count::{References, Tally};

/// A value that its owners write in turn, and that the last one takes apart. loom fails the model if two of them can race.
struct Owned {
    references: References,
    value: UnsafeCell<u32>,
    destroyed: UnsafeCell<u32>,
}

// SAFETY: each owner writes a word of its own before it gives up; the last one alone reads, which is what is tested.
unsafe impl Sync for Owned {}
// SAFETY: as above.
unsafe impl Send for Owned {}

impl Owned {
    fn give_up(&self) {
        if self.references.give_up() {
            // SAFETY: the last owner is alone.
            self.destroyed
                .with_mut(|destroyed| unsafe { *destroyed += 1 });
            // SAFETY: as above: what the other owner wrote comes before.
            self.value.with_mut(|value| unsafe { *value += 1 });
        }
    }
}

#[test]
fn loom_the_last_owner_sees_what_the_others_did() {
    loom::model(|| {
        let owned = Arc::new(Owned {
            references: References::new(),
            value: UnsafeCell::new(0),
            destroyed: UnsafeCell::new(0),
        });
        owned.references.take();
        let other = thread::spawn({
            let owned = owned.clone();
            move || {
                // SAFETY: only this owner writes before it gives up.
                owned.value.with_mut(|value| unsafe { *value += 7 });
                owned.give_up();
            }
        });
        owned.give_up();
        other.join().unwrap();
        // SAFETY: both owners are gone.
        let seen = owned.value.with(|value| unsafe { *value });
        // SAFETY: as above.
        let destroyed = owned.destroyed.with(|destroyed| unsafe { *destroyed });
        assert_eq!((seen, destroyed), (8, 1));
    });
}

/// An owner that finds itself the only one sees what the other did before it gave up.
#[test]
fn loom_the_only_owner_sees_what_the_others_did() {
    loom::model(|| {
        let owned = Arc::new(Owned {
            references: References::new(),
            value: UnsafeCell::new(0),
            destroyed: UnsafeCell::new(0),
        });
        owned.references.take();
        let other = thread::spawn({
            let owned = owned.clone();
            move || {
                // SAFETY: the first owner writes only once this one has given up.
                owned.value.with_mut(|value| unsafe { *value += 7 });
                assert!(!owned.references.give_up());
            }
        });
        if owned.references.is_only() {
            // SAFETY: the other owner has given up.
            owned.value.with_mut(|value| unsafe { *value += 1 });
        }
        other.join().unwrap();
        assert!(owned.references.is_only() && owned.references.give_up());
    });
}

#[test]
fn loom_a_tally_loses_nothing() {
    loom::model(|| {
        let tally = Arc::new(Tally::new());
        let other = thread::spawn({
            let tally = tally.clone();
            move || {
                tally.add(3);
                tally.subtract(1);
            }
        });
        tally.add(2);
        other.join().unwrap();
        assert_eq!(tally.value(), 4);
    });
}
