//! What the clients of a machine print at their end.

use mitosis_core::histogram::Histogram;

use super::caller::Record;
use crate::errno::Errno;
use crate::info;
use crate::log::{begin, Level, Line, Part};
use crate::memory::Owned;

/// Prints the sums over all threads: counts, latencies, and the histogram that they come from.
pub fn log(elapsed_us: u64, records: &[Record]) -> Result<(), Errno> {
    let mut latency = Owned::<Histogram>::zeroed()?;
    let mut max_ns = 0;
    let mut errors = 0u64;
    let mut interrupted = 0u64;
    for record in records {
        latency.merge(&record.latency);
        max_ns = max_ns.max(record.max_ns);
        errors += u64::from(record.failure.is_some());
        interrupted += record.interrupted;
    }
    info!(
        "total: requests ",
        latency.count(),
        ", errors ",
        errors,
        ", interrupted ",
        interrupted,
        ", elapsed_us ",
        elapsed_us,
        ", threads ",
        records.len()
    );
    if latency.count() == 0 {
        return Ok(());
    }
    let quantile = |per_mille| latency.quantile_ns(per_mille).unwrap_or(0).min(max_ns);
    info!(
        "latency_ns: p50 ",
        quantile(500),
        ", p99 ",
        quantile(990),
        ", p999 ",
        quantile(999),
        ", max ",
        max_ns
    );
    log_buckets(&latency);
    Ok(())
}

/// Prints the histogram as pairs `index:count`, from which the runner adds up those of all machines.
fn log_buckets(latency: &Histogram) {
    /// Room for the longest pair.
    const PAIR_LEN: usize = 28;
    let mut buckets = latency.buckets().peekable();
    while buckets.peek().is_some() {
        let mut line = Line::default();
        begin(&mut line, file!(), line!(), "INFO ");
        "latency buckets:".put(&mut line);
        while line.room() > PAIR_LEN {
            let Some(bucket) = buckets.next() else { break };
            " ".put(&mut line);
            bucket.index.put(&mut line);
            ":".put(&mut line);
            bucket.count.put(&mut line);
        }
        line.print(Level::Info);
    }
}
