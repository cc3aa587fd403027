//! The lines of the modules that carry figures.

/// What a line of a module says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line {
    /// `rpc server ready: service 0, hint 73, device rxe0, gid fe80:…, mtu 4096, 512 receive buffers`
    Ready {
        /// The RDMA device that it listens on.
        device: String,
        /// The path MTU in bytes, without headers.
        mtu: u32,
    },
    /// `passed: 1024001us, thpt: 131063 requests/s`
    Passed {
        /// The requests of one second of this interval.
        requests_per_s: u64,
    },
    /// `total: requests R, errors E, interrupted I, elapsed_us T, threads N`
    Total(Total),
    /// `latency_ns: p50 A, p99 B, p999 C, max D`
    Latency(Latency),
    /// `latency buckets: 123:4 124:99 …`: index and count.
    Buckets(Vec<(usize, u64)>),
    /// `rpc server stopped: sessions A, requests B, replayed C, rejected D, errors E, receive buffers F of G`
    Stopped(Stopped),
    /// `flood done: sent N, mutated M, from corpus C, elapsed_us T`
    FloodDone(Flood),
}

/// A client's work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// Requests that were answered.
    pub requests: u64,
    /// Requests that were not.
    pub errors: u64,
    /// Requests whose answer was lost with their server: executed or not, and not asked again. 0 where the module does
    /// not count them.
    pub interrupted: u64,
    /// The time that they took.
    pub elapsed_us: u64,
}

/// Round-trip times of a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[allow(missing_docs)]
pub struct Latency {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// The server's count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Requests that it executed.
    pub requests: u64,
    /// Requests that it had executed before, and answered from the saved reply.
    pub replayed: u64,
    /// Datagrams that made no sense.
    pub rejected: u64,
    /// Requests that it could not execute.
    pub errors: u64,
    /// Receive buffers that were posted at its end, and all that there are; `None` where the module does not count them.
    pub buffers: Option<(u64, u64)>,
}

/// What a flood sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Flood {
    /// Datagrams in all.
    pub sent: u64,
    /// Of these, valid ones with some bits changed.
    pub mutated: u64,
    /// And inputs of the fuzzer's corpus, changed; the others are random from end to end.
    pub from_corpus: u64,
    /// The time that they took.
    pub elapsed_us: u64,
}

impl Line {
    /// Reads the figures of a log line's text; `None` where it carries none.
    pub fn parse(text: &str) -> Option<Self> {
        // `src/lib.rs@221: [INFO ] - message`
        let (_, message) = text.split_once("] - ")?;
        if let Some(fields) = message.strip_prefix("rpc server ready: ") {
            let device = word(fields, "device ")?.to_string();
            return Some(Line::Ready {
                device,
                mtu: number(fields, "mtu ")?.try_into().ok()?,
            });
        }
        if let Some(fields) = message.strip_prefix("passed: ") {
            return Some(Line::Passed {
                requests_per_s: number(fields, "thpt: ")?,
            });
        }
        if let Some(fields) = message.strip_prefix("total: ") {
            return Some(Line::Total(Total {
                requests: number(fields, "requests ")?,
                errors: number(fields, "errors ")?,
                interrupted: number(fields, "interrupted ").unwrap_or(0),
                elapsed_us: number(fields, "elapsed_us ")?,
            }));
        }
        if let Some(fields) = message.strip_prefix("latency_ns: ") {
            return Some(Line::Latency(Latency {
                p50: number(fields, "p50 ")?,
                p99: number(fields, "p99 ")?,
                p999: number(fields, "p999 ")?,
                max: number(fields, "max ")?,
            }));
        }
        if let Some(pairs) = message.strip_prefix("latency buckets: ") {
            let pair = |pair: &str| {
                let (index, count) = pair.split_once(':')?;
                Some((index.parse().ok()?, count.parse().ok()?))
            };
            return pairs
                .split_whitespace()
                .map(pair)
                .collect::<Option<_>>()
                .map(Line::Buckets);
        }
        if let Some(fields) = message.strip_prefix("rpc server stopped: ") {
            return Some(Line::Stopped(Stopped {
                requests: number(fields, "requests ")?,
                replayed: number(fields, "replayed ")?,
                rejected: number(fields, "rejected ")?,
                errors: number(fields, "errors ")?,
                buffers: part_of(fields, "receive buffers "),
            }));
        }
        if let Some(fields) = message.strip_prefix("flood done: ") {
            return Some(Line::FloodDone(Flood {
                sent: number(fields, "sent ")?,
                mutated: number(fields, "mutated ")?,
                from_corpus: number(fields, "from corpus ")?,
                elapsed_us: number(fields, "elapsed_us ")?,
            }));
        }
        None
    }
}

/// Whether a line is there for this program and nobody else.
pub fn is_buckets(text: &str) -> bool {
    text.contains("] - latency buckets: ") || text.contains("] latency buckets: ")
}

/// The word after `label`, which begins a field of a comma-separated list.
fn word<'a>(fields: &'a str, label: &str) -> Option<&'a str> {
    fields
        .split(',')
        .find_map(|field| field.trim_start().strip_prefix(label))?
        .split_whitespace()
        .next()
}

fn number(fields: &str, label: &str) -> Option<u64> {
    word(fields, label)?.parse().ok()
}

/// `label N of M`
fn part_of(fields: &str, label: &str) -> Option<(u64, u64)> {
    let mut words = fields
        .split(',')
        .find_map(|field| field.trim_start().strip_prefix(label))?
        .split_whitespace();
    let part = words.next()?.parse().ok()?;
    let all = words.nth(1)?.parse().ok()?;
    Some((part, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_with_figures_is_read() {
        let parse = |message: &str| Line::parse(&format!("src/lib.rs@1: [INFO ] - {message}"));
        assert_eq!(
            parse("rpc server ready: service 0, hint 73, device rxe0, gid fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c, mtu 4096, 512 receive buffers"),
            Some(Line::Ready { device: "rxe0".into(), mtu: 4096 })
        );
        assert_eq!(
            parse("passed: 1024001us, thpt: 131063 requests/s"),
            Some(Line::Passed {
                requests_per_s: 131_063
            })
        );
        assert_eq!(
            parse("total: requests 10, errors 2, elapsed_us 3000000, threads 4"),
            Some(Line::Total(Total {
                requests: 10,
                errors: 2,
                interrupted: 0,
                elapsed_us: 3_000_000
            }))
        );
        assert_eq!(
            parse("total: requests 10, errors 0, interrupted 7, elapsed_us 3000000, threads 4"),
            Some(Line::Total(Total {
                requests: 10,
                errors: 0,
                interrupted: 7,
                elapsed_us: 3_000_000
            }))
        );
        assert_eq!(
            parse("latency_ns: p50 1, p99 2, p999 3, max 4"),
            Some(Line::Latency(Latency {
                p50: 1,
                p99: 2,
                p999: 3,
                max: 4
            }))
        );
        assert_eq!(
            parse("latency buckets: 123:4 124:99"),
            Some(Line::Buckets(vec![(123, 4), (124, 99)]))
        );
        assert!(is_buckets("src/lib.rs@1: [INFO ] - latency buckets: 123:4"));
        assert_eq!(
            parse("rpc server stopped: sessions 2, requests 30, replayed 1, rejected 0, errors 5"),
            Some(Line::Stopped(Stopped {
                requests: 30,
                replayed: 1,
                rejected: 0,
                errors: 5,
                buffers: None
            }))
        );
        assert_eq!(
            parse(
                "rpc server stopped: sessions 2, requests 30, replayed 1, rejected 9, errors 0, receive buffers 1023 of \
                 1024"
            ),
            Some(Line::Stopped(Stopped {
                requests: 30,
                replayed: 1,
                rejected: 9,
                errors: 0,
                buffers: Some((1023, 1024))
            }))
        );
        assert_eq!(
            parse("flood done: sent 20000, mutated 6990, from corpus 7010, elapsed_us 1500000"),
            Some(Line::FloodDone(Flood {
                sent: 20_000,
                mutated: 6_990,
                from_corpus: 7_010,
                elapsed_us: 1_500_000
            }))
        );
    }

    #[test]
    fn other_lines_carry_none() {
        for text in [
            "krdma test framework dropped",
            "src/lib.rs@55: [INFO ] - start stress test client 0",
            "src/lib.rs@55: [INFO ] - total: requests many, errors 0, elapsed_us 1, threads 1",
            "src/lib.rs@55: [INFO ] - latency buckets: 1:2 3",
            "src/lib.rs@55: [INFO ] - total: ",
        ] {
            assert_eq!(Line::parse(text), None, "{text}");
        }
    }
}
