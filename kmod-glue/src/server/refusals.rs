//! Says whom the server refuses, and why: a line at once, and ever fewer of them while refusals go on.

use mitosis_core::rpc::server::Counters;

use crate::warning;

/// Between the first two lines; doubles with each.
const FIRST_INTERVAL_NS: u64 = 1_000_000_000;
/// Between two lines, however many there have been. After twice as long without one it is the first again.
const LAST_INTERVAL_NS: u64 = 64_000_000_000;

/// Reasons to refuse a session: what a person is told, and where they are counted.
type Kind = (&'static str, fn(&Counters) -> u64);

const KINDS: [Kind; 6] = [
    ("it has no cluster key", |counters| {
        counters.refused_key_required
    }),
    ("its cluster key is another", |counters| {
        counters.refused_wrong_key
    }),
    (
        "it has a cluster key and this server has none",
        |counters| counters.refused_no_key_here,
    ),
    ("its handshake is a replay", |counters| {
        counters.refused_replayed
    }),
    ("it speaks another version", |counters| {
        counters.refused_version
    }),
    ("there is no room for its session", |counters| {
        counters.refused_busy
    }),
];

/// What has been told so far.
#[derive(Default)]
pub struct Refusals {
    told: [u64; KINDS.len()],
    told_at_ns: u64,
    interval_ns: u64,
}

impl Refusals {
    /// Tells what has been refused since the last line, unless that was a moment ago.
    #[inline]
    pub fn tell(&mut self, now_ns: u64, counters: &Counters) {
        let since_ns = now_ns.saturating_sub(self.told_at_ns);
        if since_ns < self.interval_ns {
            return;
        }
        for ((text, count), told) in KINDS.iter().zip(self.told.iter_mut()) {
            let count = count(counters);
            if count != *told {
                *told = count;
                self.told_at_ns = now_ns;
                self.interval_ns = if since_ns > 2 * LAST_INTERVAL_NS {
                    FIRST_INTERVAL_NS
                } else {
                    (self.interval_ns * 2).clamp(FIRST_INTERVAL_NS, LAST_INTERVAL_NS)
                };
                warning!("refused a client: ", *text, " (", count, " so far)");
                return;
            }
        }
    }
}
