//! The virtual clock and what is to happen by it.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// What is to happen, in the order of its time; of what has the same time, what was added first
/// happens first, so that a run is the same every time. The clock stands at the time of what
/// happened last, and nobody ever waits.
#[derive(Debug)]
pub struct Queue<T> {
    now_ns: u64,
    added: u64,
    heap: BinaryHeap<Reverse<Entry<T>>>,
}

#[derive(Debug)]
struct Entry<T> {
    at_ns: u64,
    added: u64,
    what: T,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            now_ns: 0,
            added: 0,
            heap: BinaryHeap::new(),
        }
    }
}

impl<T> Queue<T> {
    /// The virtual time, in nanoseconds since the start of the run.
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Has `what` happen at `at_ns`, or next, if that time is over.
    pub fn add(&mut self, at_ns: u64, what: T) {
        self.added += 1;
        self.heap.push(Reverse(Entry {
            at_ns: at_ns.max(self.now_ns),
            added: self.added,
            what,
        }));
    }

    /// When the next thing happens.
    pub fn next_ns(&self) -> Option<u64> {
        self.heap.peek().map(|Reverse(entry)| entry.at_ns)
    }

    /// Moves the clock to the next thing and yields it.
    pub fn pop(&mut self) -> Option<T> {
        let Reverse(entry) = self.heap.pop()?;
        self.now_ns = entry.at_ns;
        Some(entry.what)
    }

    /// Moves the clock to `now_ns` while nothing happens; not beyond what is to happen before, and
    /// not back.
    pub fn pass(&mut self, now_ns: u64) {
        let now_ns = self.next_ns().map_or(now_ns, |next| next.min(now_ns));
        self.now_ns = self.now_ns.max(now_ns);
    }
}

impl<T> Entry<T> {
    fn key(&self) -> (u64, u64) {
        (self.at_ns, self.added)
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl<T> Eq for Entry<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_by_time_and_then_by_addition() {
        let mut queue = Queue::default();
        for (at_ns, what) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            queue.add(at_ns, what);
        }
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, ['a', 'b', 'c', 'd']);
        assert_eq!(queue.now_ns(), 5);
    }

    #[test]
    fn the_clock_never_goes_back_or_skips() {
        let mut queue = Queue::default();
        queue.add(10, ());
        queue.pass(20);
        assert_eq!(queue.now_ns(), 10);
        queue.pop();
        queue.add(3, ());
        assert_eq!(queue.next_ns(), Some(10));
        queue.pop();
        queue.pass(7);
        assert_eq!(queue.now_ns(), 10);
    }
}
