//! `Stop` and `Gauge`: whoever sees the signal sees what was written before it.

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use mitosis_loom_tests::sync::gauge::Gauge;
use mitosis_loom_tests::sync::stop::Stop;

/// Something written before a signal and read after it. loom fails the model if the two can race.
struct Noted<S> {
    note: UnsafeCell<u32>,
    signal: S,
}

// SAFETY: the models read `note` only once the signal has been seen, which is what they test.
unsafe impl<S: Sync> Sync for Noted<S> {}

impl<S> Noted<S> {
    fn new(signal: S) -> Arc<Self> {
        Arc::new(Self {
            note: UnsafeCell::new(0),
            signal,
        })
    }

    fn write(&self) {
        // SAFETY: nobody reads before the signal.
        self.note.with_mut(|note| unsafe { *note = 7 });
    }

    fn read(&self) -> u32 {
        // SAFETY: the writer has signalled and writes no more.
        self.note.with(|note| unsafe { *note })
    }
}

#[test]
fn loom_stop_publishes_its_reason() {
    loom::model(|| {
        let shared = Noted::new(Stop::new());
        let writer = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.write();
                shared.signal.want();
            }
        });
        if shared.signal.wanted() {
            assert_eq!(shared.read(), 7);
        }
        writer.join().unwrap();
        assert!(shared.signal.wanted());
    });
}

#[test]
fn loom_gauge_publishes_what_it_counts() {
    loom::model(|| {
        let shared = Noted::new(Gauge::default());
        let writer = thread::spawn({
            let shared = shared.clone();
            move || {
                shared.write();
                shared.signal.set(1);
            }
        });
        if shared.signal.value() == 1 {
            assert_eq!(shared.read(), 7);
        }
        writer.join().unwrap();
        assert_eq!(shared.signal.value(), 1);
    });
}
