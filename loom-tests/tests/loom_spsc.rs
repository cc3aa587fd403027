//! The ring's two ends, in every interleaving and with every value that the memory model lets a
//! load return.

use loom::thread;
use mitosis_loom_tests::sync::spsc::Ring;

/// A ring that outlives the model's threads, as one of a kernel module does.
fn leaked<T, const N: usize>() -> &'static mut Ring<T, N> {
    Box::leak(Box::new(Ring::new()))
}

/// Three items through a ring of one or two: each cell is written again after it was read, so both
/// pairs of orderings are needed.
fn loom_items_arrive_in_order<const N: usize>() {
    loom::model(|| {
        let (mut producer, mut consumer) = leaked::<Box<u32>, N>().split();
        let pushing = thread::spawn(move || {
            for item in 0..3 {
                let mut item = Box::new(item);
                while let Err(back) = producer.push(item) {
                    item = back;
                    thread::yield_now();
                }
            }
        });
        for expected in 0..3 {
            let item = loop {
                match consumer.pop() {
                    Some(item) => break item,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(*item, expected);
        }
        assert!(consumer.pop().is_none());
        pushing.join().unwrap();
    });
}

#[test]
fn loom_spsc_of_one_cell() {
    loom_items_arrive_in_order::<1>();
}

#[test]
fn loom_spsc_of_two_cells() {
    loom_items_arrive_in_order::<2>();
}

/// What the consumer left is dropped with the ring, once.
#[test]
fn loom_spsc_drops_what_is_left() {
    loom::model(|| {
        let item = loom::sync::Arc::new(());
        let mut ring = Ring::<_, 2>::new();
        {
            let (mut producer, mut consumer) = ring.split();
            producer.push(item.clone()).unwrap();
            producer.push(item.clone()).unwrap();
            assert!(producer.push(item.clone()).is_err());
            drop(consumer.pop());
        }
        drop(ring);
        assert_eq!(loom::sync::Arc::strong_count(&item), 1);
    });
}
