//! A table of counted values, as the modules keep seeds and images: who looks one up takes a reference under the table's
//! lock, who ends one takes it out of the table, and the last to give up its reference takes it apart, exactly once.

use loom::cell::UnsafeCell;
use loom::sync::{Arc, Mutex};
use loom::thread;
use mitosis_loom_tests::sync::count::References;
use mitosis_loom_tests::sync::gauge::Gauge;

struct Seed {
    references: References,
    /// Its pages: read by who has a reference, given back by the last.
    pages: UnsafeCell<Option<u32>>,
    /// Its lease's end, which its maker sets.
    lease: Gauge,
}

// SAFETY: the pages are written by the last owner alone, which is what is tested; all else is made of atomics.
unsafe impl Sync for Seed {}
// SAFETY: as above.
unsafe impl Send for Seed {}

impl Seed {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            references: References::new(),
            pages: UnsafeCell::new(Some(7)),
            lease: Gauge::default(),
        })
    }

    /// What a page is for a reader with a reference.
    fn page(&self) -> Option<u32> {
        // SAFETY: the reader has a reference, so the pages have not been given back.
        self.pages.with(|pages| unsafe { *pages })
    }

    fn give_up(&self) {
        if self.references.give_up() {
            // SAFETY: the last owner is alone.
            let pages = self.pages.with_mut(|pages| unsafe { (*pages).take() });
            assert_eq!(pages, Some(7), "given back twice");
        }
    }
}

/// The table: the seed itself lives on in loom's Arc, so that a use after its end is seen as one.
struct Table {
    seed: Arc<Seed>,
    place: Mutex<bool>,
}

impl Table {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            seed: Seed::new(),
            place: Mutex::new(true),
        })
    }

    fn find(&self) -> Option<&Seed> {
        let present = self.place.lock().unwrap();
        present.then(|| {
            self.seed.references.take();
            &*self.seed
        })
    }

    /// Whoever is first gives up the table's reference; an unload does what an un-prepare does.
    fn end(&self) {
        let was = std::mem::replace(&mut *self.place.lock().unwrap(), false);
        if was {
            self.seed.give_up();
        }
    }
}

#[test]
fn loom_a_seed_that_is_read_outlives_its_end() {
    loom::model(|| {
        let table = Table::new();
        let reader = thread::spawn({
            let table = table.clone();
            move || {
                if let Some(seed) = table.find() {
                    assert_eq!(seed.page(), Some(7));
                    seed.give_up();
                }
            }
        });
        table.end();
        reader.join().unwrap();
        assert_eq!(table.seed.page(), None);
    });
}

#[test]
fn loom_unprepare_and_unload_end_a_seed_once() {
    loom::model(|| {
        let table = Table::new();
        let unprepare = thread::spawn({
            let table = table.clone();
            move || table.end()
        });
        let reader = thread::spawn({
            let table = table.clone();
            move || {
                if let Some(seed) = table.find() {
                    assert_eq!(seed.page(), Some(7));
                    seed.give_up();
                }
            }
        });
        table.end();
        unprepare.join().unwrap();
        reader.join().unwrap();
        assert_eq!(table.seed.page(), None);
    });
}

/// The thread that sweeps sees a lease with what its maker wrote before.
#[test]
fn loom_a_lease_is_seen_with_what_was_written_before_it() {
    loom::model(|| {
        let seed = Seed::new();
        let maker = thread::spawn({
            let seed = seed.clone();
            move || {
                // SAFETY: nobody reads the pages before the lease is set.
                seed.pages.with_mut(|pages| unsafe { *pages = Some(8) });
                seed.lease.set(1);
            }
        });
        if seed.lease.value() == 1 {
            assert_eq!(seed.page(), Some(8));
        }
        maker.join().unwrap();
    });
}
