//! A bounded ring between one producer and one consumer.
#![allow(unsafe_code)]

use core::mem::MaybeUninit;

use super::primitive::{AtomicUsize, Ordering, UnsafeCell};

/// A ring of at most `N` items, a power of two. [`Ring::split`] gives out its two ends, which may
/// go to different threads; neither ever waits for the other.
///
/// # Invariants
///
/// `head` and `tail` count the items that were popped and pushed since the start and wrap around;
/// `tail - head` is in `0..=N`. The cells numbered `head..tail`, modulo `N`, hold items; the others
/// do not. Only the consumer changes `head`, only the producer changes `tail`.
pub struct Ring<T, const N: usize> {
    head: Line<AtomicUsize>,
    tail: Line<AtomicUsize>,
    cells: [UnsafeCell<MaybeUninit<T>>; N],
}

/// A cache line of its own, and the one that is prefetched with it, so that the two ends do not
/// contend for one.
#[repr(align(128))]
struct Line<T>(T);

// SAFETY: the ends move items from one thread to another, hence `T: Send`. They share nothing else
// but the atomics: by the ring's invariants a cell is the producer's while it is outside
// `head..tail` and the consumer's while it is inside.
unsafe impl<T: Send, const N: usize> Sync for Ring<T, N> {}

// SAFETY: a ring that is moved as a whole moves its items, which are `Send`.
unsafe impl<T: Send, const N: usize> Send for Ring<T, N> {}

impl<T, const N: usize> Ring<T, N> {
    const MASK: usize = {
        assert!(
            N.is_power_of_two(),
            "the counters wrap around evenly only for a power of two"
        );
        N - 1
    };

    /// An empty ring, also for a `static`.
    #[cfg(not(rdma_loom))]
    pub const fn new() -> Self {
        Self {
            head: Line(AtomicUsize::new(0)),
            tail: Line(AtomicUsize::new(0)),
            cells: [const { UnsafeCell::new(MaybeUninit::uninit()) }; N],
        }
    }

    /// An empty ring of loom's atomics, which cannot be made at compile time.
    #[cfg(rdma_loom)]
    pub fn new() -> Self {
        Self {
            head: Line(AtomicUsize::new(0)),
            tail: Line(AtomicUsize::new(0)),
            cells: core::array::from_fn(|_| UnsafeCell::new(MaybeUninit::uninit())),
        }
    }

    /// The two ends. Items that are in the ring stay there.
    pub fn split(&mut self) -> (Producer<'_, T, N>, Consumer<'_, T, N>) {
        let ring = &*self;
        // Relaxed: `&mut self` shows that no other thread has an end.
        let head = ring.head.0.load(Ordering::Relaxed);
        let tail = ring.tail.0.load(Ordering::Relaxed);
        (
            Producer {
                ring,
                tail,
                head_seen: head,
            },
            Consumer {
                ring,
                head,
                tail_seen: tail,
            },
        )
    }

    /// The cell of the item with this number.
    #[inline(always)]
    fn cell(&self, number: usize) -> &UnsafeCell<MaybeUninit<T>> {
        // SAFETY: `MASK` is `N - 1` for a power of two, so what is left of `number` is less than
        // `N`.
        unsafe { self.cells.get_unchecked(number & Self::MASK) }
    }
}

impl<T, const N: usize> Default for Ring<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const N: usize> Drop for Ring<T, N> {
    fn drop(&mut self) {
        let (_, mut consumer) = self.split();
        while consumer.pop().is_some() {}
    }
}

/// The end that pushes.
pub struct Producer<'r, T, const N: usize> {
    ring: &'r Ring<T, N>,
    /// The ring's `tail`, which only this end changes.
    tail: usize,
    /// A value that the ring's `head` had.
    head_seen: usize,
}

impl<T, const N: usize> Producer<'_, T, N> {
    /// Appends an item, or gives it back if the ring is full.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head_seen) >= N {
            // Acquire: pairs with the Release in `Consumer::pop`, so that the item of the cell was
            // read before the cell is written again.
            self.head_seen = self.ring.head.0.load(Ordering::Acquire);
            if self.tail.wrapping_sub(self.head_seen) >= N {
                return Err(item);
            }
        }
        self.ring.cell(self.tail).with_mut(|cell| {
            // SAFETY: `tail - head < N`, so the cell is outside `head..tail`: it holds no item, and
            // the consumer does not look at it before `tail` is stored below.
            unsafe { (*cell).write(item) };
        });
        self.tail = self.tail.wrapping_add(1);
        // Release: pairs with the Acquire in `Consumer::pop`, so that who sees the new `tail` sees
        // the item.
        self.ring.tail.0.store(self.tail, Ordering::Release);
        Ok(())
    }
}

/// The end that pops.
pub struct Consumer<'r, T, const N: usize> {
    ring: &'r Ring<T, N>,
    /// The ring's `head`, which only this end changes.
    head: usize,
    /// A value that the ring's `tail` had.
    tail_seen: usize,
}

impl<T, const N: usize> Consumer<'_, T, N> {
    /// Takes the oldest item, if there is one.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            // Acquire: pairs with the Release in `Producer::push`, so that the item was written
            // before it is read.
            self.tail_seen = self.ring.tail.0.load(Ordering::Acquire);
            if self.head == self.tail_seen {
                return None;
            }
        }
        let item = self.ring.cell(self.head).with_mut(|cell| {
            // SAFETY: `head != tail`, so the cell is inside `head..tail`: it holds an item, which
            // the producer does not touch before `head` is stored below; and it is read out but
            // once, as `head` then passes it.
            unsafe { (*cell).assume_init_read() }
        });
        self.head = self.head.wrapping_add(1);
        // Release: pairs with the Acquire in `Producer::push`, so that the cell is written again
        // only after this read.
        self.ring.head.0.store(self.head, Ordering::Release);
        Some(item)
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::rc::Rc;
    use std::vec::Vec;

    #[derive(Clone, Debug)]
    enum Operation {
        Push(u32),
        Pop,
        Split,
    }

    fn operations() -> impl Strategy<Value = Vec<Operation>> {
        let operation = prop_oneof![
            4 => any::<u32>().prop_map(Operation::Push),
            4 => Just(Operation::Pop),
            1 => Just(Operation::Split),
        ];
        proptest::collection::vec(operation, 0..200)
    }

    fn agrees_with_a_queue<const N: usize>(operations: &[Operation]) {
        let mut ring = Ring::<u32, N>::new();
        let mut oracle = VecDeque::new();
        let (mut producer, mut consumer) = ring.split();
        for operation in operations {
            match *operation {
                Operation::Push(item) if oracle.len() < N => {
                    assert_eq!(producer.push(item), Ok(()));
                    oracle.push_back(item);
                }
                Operation::Push(item) => assert_eq!(producer.push(item), Err(item)),
                Operation::Pop => assert_eq!(consumer.pop(), oracle.pop_front()),
                Operation::Split => (producer, consumer) = ring.split(),
            }
        }
    }

    proptest! {
        #[test]
        fn it_behaves_as_a_bounded_queue(operations in operations()) {
            agrees_with_a_queue::<1>(&operations);
            agrees_with_a_queue::<4>(&operations);
            agrees_with_a_queue::<64>(&operations);
        }
    }

    #[test]
    fn the_counters_wrap_around() {
        let mut ring = Ring::<u32, 4>::new();
        ring.head.0.store(usize::MAX - 1, Ordering::Relaxed);
        ring.tail.0.store(usize::MAX - 1, Ordering::Relaxed);
        let (mut producer, mut consumer) = ring.split();
        for item in 0..4 {
            assert_eq!(producer.push(item), Ok(()));
        }
        assert_eq!(producer.push(4), Err(4));
        for item in 0..4 {
            assert_eq!(consumer.pop(), Some(item));
        }
        assert_eq!(consumer.pop(), None);
    }

    #[test]
    fn items_that_are_left_are_dropped_once() {
        let item = Rc::new(());
        let mut ring = Ring::<_, 4>::new();
        let (mut producer, mut consumer) = ring.split();
        for _ in 0..3 {
            producer.push(Rc::clone(&item)).unwrap();
        }
        drop(consumer.pop());
        assert_eq!(Rc::strong_count(&item), 3);
        drop(ring);
        assert_eq!(Rc::strong_count(&item), 1);
    }

    #[test]
    fn two_threads_share_a_ring() {
        const MANY: u32 = if cfg!(miri) { 60 } else { 10_000 };
        let mut ring = Ring::<u32, 8>::default();
        let (mut producer, mut consumer) = ring.split();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for item in 0..MANY {
                    while producer.push(item).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            for expected in 0..MANY {
                let item = loop {
                    match consumer.pop() {
                        Some(item) => break item,
                        None => std::thread::yield_now(),
                    }
                };
                assert_eq!(item, expected);
            }
        });
    }
}
