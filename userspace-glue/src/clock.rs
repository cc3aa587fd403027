//! Time for the core, read as seldom as it may be: reading it takes as long as half a call through shared memory.

use std::time::Instant;

/// How many looks of one kind share a reading.
const IDLE_LOOKS: u32 = 16;
const BUSY_LOOKS: u32 = 64;

/// Nanoseconds since the start. While its owner polls without finding anything the clock goes on by steps of
/// [`IDLE_LOOKS`] polls; while it is busy, by as many batches. So it lags by some microseconds at most, behind timeouts of
/// milliseconds at least.
pub struct Clock {
    start: Instant,
    now_ns: u64,
    /// What is left out: see [`Clock::skip`].
    skipped_ns: u64,
    skip: bool,
    looks: u32,
}

impl Clock {
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            now_ns: 0,
            skipped_ns: 0,
            skip: false,
            looks: 0,
        }
    }

    /// The next look reads it.
    pub fn expire(&mut self) {
        self.looks = BUSY_LOOKS;
    }

    /// As of the last reading.
    #[inline(always)]
    pub fn now_ns(&self) -> u64 {
        self.now_ns
    }

    /// Reads the clock.
    pub fn read(&mut self) -> u64 {
        self.looks = 0;
        let elapsed = self.start.elapsed();
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        if self.skip {
            self.skip = false;
            self.skipped_ns = elapsed_ns.saturating_sub(self.now_ns);
        }
        self.now_ns = elapsed_ns.saturating_sub(self.skipped_ns).max(self.now_ns);
        self.now_ns
    }

    /// The time since the last reading does not count: nobody was polling, and a timer that begins now is not to find it
    /// over. Cheaper than a reading.
    #[inline(always)]
    pub fn skip(&mut self) {
        self.skip = true;
    }

    /// Nothing was found. Whether the clock has been read.
    #[inline(always)]
    pub fn idle(&mut self) -> bool {
        self.look(IDLE_LOOKS)
    }

    /// A batch was found. Whether the clock has been read.
    #[inline(always)]
    pub fn busy(&mut self) -> bool {
        self.look(BUSY_LOOKS)
    }

    #[inline(always)]
    fn look(&mut self, most: u32) -> bool {
        self.looks += 1;
        if self.looks < most {
            return false;
        }
        self.read();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_counts_on_from_where_it_was_when_time_is_skipped() {
        let mut clock = Clock::new();
        clock.start -= Duration::from_secs(1);
        let before_ns = clock.read();
        assert!(before_ns >= 1_000_000_000);
        clock.start -= Duration::from_secs(5);
        clock.skip();
        assert_eq!(clock.read(), before_ns);
        clock.start -= Duration::from_secs(5);
        assert!(clock.read() >= before_ns + 5_000_000_000);
    }

    #[test]
    fn it_is_read_once_in_so_many_looks() {
        let mut clock = Clock::new();
        let reads = (0..IDLE_LOOKS * 10).filter(|_| clock.idle()).count();
        assert_eq!(reads, 10);
    }
}
