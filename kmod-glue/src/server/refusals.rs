//! Says whom the server refuses, and why, at a bearable pace while refusals go on.

use mitosis_core::rpc::server::Counters;

use super::pace::Pace;
use crate::warning;

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
    pace: Pace,
}

impl Refusals {
    /// Tells what has been refused since the last line, unless that was a moment ago.
    #[inline]
    pub fn tell(&mut self, now_ns: u64, counters: &Counters) {
        if !self.pace.allows(now_ns) {
            return;
        }
        for ((text, count), told) in KINDS.iter().zip(self.told.iter_mut()) {
            let count = count(counters);
            if count != *told {
                *told = count;
                self.pace.told(now_ns);
                warning!("refused a client: ", *text, " (", count, " so far)");
                return;
            }
        }
    }
}
