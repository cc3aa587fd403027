//! What all processes of an attack have done, in memory that they share.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

/// The calls by their numbers in `uapi/mitosis.h`, and at 0 those that are none.
pub const KINDS: usize = 12;
const NAMES: [&str; KINDS] = [
    "none",
    "FREEZE",
    "PREPARE",
    "UNPREPARE",
    "LIST",
    "QUERY",
    "OPEN",
    "RESUME",
    "CONNECT",
    "DISCONNECT",
    "PING",
    "STATS",
];
/// Error numbers are below this; 0 is none.
const OUTCOMES: usize = 136;

/// Made of zeros.
#[repr(C)]
pub struct Counts {
    /// Calls that were begun.
    begun: AtomicU64,
    /// Machines that are not there and take seconds to be missed: how often they were named.
    pub missed: AtomicU64,
    outcomes: [[AtomicU64; OUTCOMES]; KINDS],
}

impl Counts {
    /// In memory of its own, that processes which are forked from now on have in common, for good.
    pub fn shared() -> Result<&'static Self, std::io::Error> {
        // SAFETY: asks for new memory anywhere.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Self>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: new memory is zero, which counts are made of, aligned to a page, and never unmapped.
        Ok(unsafe { &*memory.cast::<Self>() })
    }

    /// Keeps processes that are forked from now on from having them: one with writable memory that is shared cannot freeze.
    pub fn keep_from_children(&self) {
        let place: *const Self = self;
        // SAFETY: the memory is the mapping that `shared` made, whose contents in this process stay as they are.
        unsafe {
            libc::madvise(
                place.cast_mut().cast(),
                size_of::<Self>(),
                libc::MADV_DONTFORK,
            )
        };
    }

    /// One more call is made, unless there have been `most`.
    pub fn begin(&self, most: u64) -> bool {
        // Relaxed: a count is about nothing but itself; so below.
        self.begun.fetch_add(1, Ordering::Relaxed) < most
    }

    /// Whether `most` have been begun.
    pub fn is_enough(&self, most: u64) -> bool {
        self.begun.load(Ordering::Relaxed) >= most
    }

    /// What one came to.
    pub fn end(&self, kind: usize, errno: i32) {
        let outcome = usize::try_from(errno).map_or(OUTCOMES - 1, |errno| errno.min(OUTCOMES - 1));
        if let Some(count) = self.outcomes.get(kind).and_then(|kind| kind.get(outcome)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many of `most` were begun.
    pub fn made(&self, most: u64) -> u64 {
        self.begun.load(Ordering::Relaxed).min(most)
    }

    /// How many have returned, and how many of them did what they were asked.
    pub fn totals(&self) -> (u64, u64) {
        let sum = |outcomes: &[AtomicU64]| -> u64 {
            outcomes
                .iter()
                .map(|count| count.load(Ordering::Relaxed))
                .sum()
        };
        let all = self.outcomes.iter().map(|kind| sum(kind)).sum();
        let done = self.outcomes.iter().map(|kind| sum(&kind[..1])).sum();
        (all, done)
    }

    /// A line for each kind of call: how many did what they were asked, and the error numbers of the others.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (name, outcomes) in NAMES.iter().zip(&self.outcomes) {
            let mut line = format!("hostile {name}:");
            for (errno, count) in outcomes.iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                let _ = match (count, errno) {
                    (0, _) => Ok(()),
                    (_, 0) => write!(line, " done {count}"),
                    _ => write!(line, " errno-{errno} {count}"),
                };
            }
            lines.push(line);
        }
        lines
    }
}
