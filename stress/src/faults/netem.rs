//! A network that loses, doubles, reorders and damages RDMA's packets, and none of ssh's.
//!
//! Traffic control works on what a machine sends, so it is set up on all of them: both directions of a call suffer. It begins
//! when the clients are at work.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use serde::{Deserialize, Serialize};

use super::{Faults, Row, SERVER};
use crate::scene::{run_everywhere, watched};

/// The run that the others are compared with.
pub(super) const CLEAN: &str = "no fault";
/// The one that the short form plays.
pub(super) const SHORT: &str = "loss 30 %";

/// What is done to packets.
pub(super) struct Spoilt {
    /// What netem is told.
    netem: &'static str,
    /// One packet in so many has a byte changed; 0 for none.
    damaged: u32,
}

const fn spoilt(netem: &'static str, damaged: u32) -> Spoilt {
    Spoilt { netem, damaged }
}

/// Names, and what is done.
pub(super) const SCENARIOS: &[(&str, Spoilt)] = &[
    ("loss 1 %", spoilt("loss 1%", 0)),
    ("loss 5 %", spoilt("loss 5%", 0)),
    (SHORT, spoilt("loss 30%", 0)),
    ("duplication 10 %", spoilt("duplicate 10%", 0)),
    ("reordering 25 %", spoilt("delay 2ms reorder 25% 50%", 0)),
    ("corruption 5 %", spoilt("", 20)),
    (
        "a little of everything",
        spoilt("delay 1ms reorder 10% 50% loss 1% duplicate 2%", 100),
    ),
];

/// Ends it, or does nothing.
pub(super) const END: &str = "tc qdisc del dev eth0 root 2>/dev/null || true";

/// What clients run longer, as the fault begins after their first interval; twice as long where that is not enough, up to
/// the second.
const UNTIL_AT_WORK_SECS: u64 = 3;
const MOST_UNTIL_AT_WORK_SECS: u64 = 48;
/// RoCE version 2's UDP port.
const ROCE_PORT: u16 = 4791;

/// Within the RPC's header: behind the headers of IPv6, UDP, and RoCE's own for datagrams, of 12 and 8 bytes.
const DAMAGED_AT: u32 = 40 + 8 + 12 + 8 + 12;

impl Spoilt {
    /// A queue that is spoilt, which no packet goes to yet, and one for all the rest. Made while nothing is loaded: a
    /// queue that is put in place under traffic drops packets with an error, which ends soft-RoCE's queue pairs. netem's
    /// own limit must not be what loses.
    fn prepare(&self) -> String {
        let everywhere = ["0"; 16].join(" ");
        let netem = self.netem;
        format!(
            "{END} && tc qdisc add dev eth0 root handle 1: prio bands 2 priomap {everywhere} && \
             tc qdisc add dev eth0 parent 1:2 handle 2: netem limit 10000 {netem}"
        )
    }

    /// Sends what goes to RoCE's port there.
    ///
    /// netem's own corruption changes any bit of a packet, those of the IP and UDP headers too, which on a real link
    /// Ethernet's checksum guards. rxe of 6.12 does not survive that: `rxe_rcv` puts a queue pair that it has not looked
    /// up, and the machine is gone. So a byte that RoCE's own checksum covers is changed instead.
    fn begin(&self) -> String {
        let damage = match self.damaged {
            0 => String::new(),
            one_in => format!(
                " action gact pass random netrand pipe {one_in} \
                 action pedit munge offset {DAMAGED_AT} u8 invert"
            ),
        };
        let filter = |protocol: &str, header: &str, priority: u32| {
            format!(
                "tc filter add dev eth0 parent 1: protocol {protocol} prio {priority} u32 \
                 match {header} protocol 17 0xff match {header} dport {ROCE_PORT} 0xffff flowid 1:2{damage}"
            )
        };
        format!("{} && {}", filter("ipv6", "ip6", 1), filter("ip", "ip", 2))
    }
}

/// What went through netem.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Passage {
    /// Sent on.
    pub(super) packets: u64,
    /// Lost.
    pub(super) dropped: u64,
}

/// An element of what `tc -s -j qdisc` prints; others of its fields are not looked at.
#[derive(Deserialize)]
struct Queue {
    kind: String,
    #[serde(default)]
    packets: u64,
    #[serde(default)]
    drops: u64,
}

fn passage(printed: &str) -> Result<Passage> {
    let queues: Vec<Queue> = serde_json::from_str(printed)
        .with_context(|| format!("tc's figures are not understood: {printed}"))?;
    let queue = queues.iter().find(|queue| queue.kind == "netem");
    let queue = queue.context("tc shows no netem")?;
    Ok(Passage {
        packets: queue.packets,
        dropped: queue.drops,
    })
}

impl Faults<'_> {
    /// The test without a fault.
    pub(super) fn clean(&mut self, row: &mut Row) -> Result<()> {
        self.play(row, None)?;
        self.clean_per_s = Some(row.requests_per_s);
        Ok(())
    }

    /// The test while packets are `spoilt`.
    pub(super) fn spoilt_network(&mut self, row: &mut Row, spoilt: &Spoilt) -> Result<()> {
        self.play(row, Some(spoilt))?;
        let clean = self.clean_per_s.filter(|&clean| clean > 0);
        row.relative = clean.map(|clean| {
            let relative = row.requests_per_s as f64 / clean as f64;
            (relative * 1_000.0).round() / 1_000.0
        });
        Ok(())
    }

    /// The clients run for as long as they are told after the fault has begun, which is when all are at work; it lasts
    /// until they are done.
    fn play(&self, row: &mut Row, spoilt: Option<&Spoilt>) -> Result<()> {
        let mut until_at_work = UNTIL_AT_WORK_SECS;
        while !self.play_once(row, spoilt, until_at_work)? {
            until_at_work *= 2;
            ensure!(
                until_at_work <= MOST_UNTIL_AT_WORK_SECS,
                "this machine is too slow: the clients' time was over before the fault could begin"
            );
            self.restore()?;
        }
        Ok(())
    }

    /// Whether the fault began in time.
    fn play_once(
        &self,
        row: &mut Row,
        spoilt: Option<&Spoilt>,
        until_at_work: u64,
    ) -> Result<bool> {
        let told = self.setting.parameters.get("client_running_secs");
        let secs = told.copied().unwrap_or_default() + until_at_work;
        if let Some(spoilt) = spoilt {
            for host in self.stage.hosts() {
                host.run(&spoilt.prepare(), self.limit())?;
            }
        }
        watched(self.stage, self.stage.hosts(), None, |watch| {
            self.load_server(watch)?;
            let loaded = Instant::now();
            for host in self.clients() {
                self.load(watch, host, &[("client_running_secs", secs)])?;
            }
            self.await_work(watch, self.clients(), 1)?;
            if let Some(spoilt) = spoilt {
                run_everywhere(watch, self.stage.hosts().len(), &spoilt.begin())?;
            }
            let begun = Instant::now();
            if begun.duration_since(loaded) > Duration::from_secs(until_at_work) {
                return Ok(false);
            }
            self.await_end(watch, self.clients(), secs)?;
            if spoilt.is_some() {
                row.network = Some(self.passage()?);
            }
            self.unload_all(watch)?;

            row.account(&watch.logs[SERVER], watch.logs[self.clients()].iter())?;
            ensure!(
                row.interrupted == 0,
                "{} calls were given up as lost with their server, which was there all the time",
                row.interrupted
            );
            // Of the whole intervals since: the one that the fault began in is neither clean nor spoilt.
            row.requests_per_s = self
                .clients()
                .map(|host| {
                    let passed: Vec<u64> = watch.logs[host]
                        .passed_since(begun)
                        .skip(1)
                        .map(|passed| passed.requests_per_s)
                        .collect();
                    passed.iter().sum::<u64>() / (passed.len() as u64).max(1)
                })
                .sum();
            ensure!(
                row.executed >= row.requests,
                "the server executed {} requests, the clients count {}",
                row.executed,
                row.requests
            );
            if let Some(network) = &row.network {
                let loses = spoilt.is_some_and(|spoilt| spoilt.netem.contains("loss"));
                ensure!(
                    network.dropped > 0 || !loses,
                    "netem lost nothing: the fault did not take place"
                );
            }
            Ok(true)
        })
    }

    /// What went through all machines' netem.
    fn passage(&self) -> Result<Passage> {
        let mut sum = Passage::default();
        for host in self.stage.hosts() {
            let own = passage(&host.ask("tc -s -j qdisc show dev eth0", self.limit())?)?;
            ensure!(
                own.packets > 0,
                "{}: nothing went through netem: the fault did not take place",
                host.name
            );
            sum.packets += own.packets;
            sum.dropped += own.dropped;
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcs_figures_are_read() {
        let printed = r#"[{"kind":"prio","handle":"1:","root":true,"options":{"bands":2},"bytes":9,"packets":9,"drops":7,
            "overlimits":0},{"kind":"netem","handle":"2:","parent":"1:2","options":{"limit":10000,"loss-random":
            {"loss":0.3,"correlation":0}},"bytes":8000,"packets":100,"drops":43,"overlimits":0,"requeues":0}]"#;
        assert_eq!(
            passage(printed).unwrap(),
            Passage {
                packets: 100,
                dropped: 43
            }
        );
        let error = passage(r#"[{"kind":"fq_codel"}]"#).unwrap_err().to_string();
        assert_eq!(error, "tc shows no netem");
        assert!(passage("Cannot find device").is_err());
    }

    #[test]
    fn only_rdmas_packets_are_spoilt() {
        let lossy = spoilt("loss 30%", 0);
        let script = lossy.prepare();
        assert!(script.ends_with("netem limit 10000 loss 30%"), "{script}");
        // Whatever no filter takes goes to the first band.
        assert!(
            script.contains("prio bands 2 priomap 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 &&"),
            "{script}"
        );
        let script = lossy.begin();
        let taken = script.matches("dport 4791 0xffff flowid 1:2").count();
        assert_eq!(taken, 2, "{script}");
        assert!(!script.contains("pedit"), "{script}");
        let damaging = spoilt("", 20).begin();
        assert!(
            damaging.ends_with(
                "flowid 1:2 action gact pass random netrand pipe 20 action pedit munge offset 80 u8 invert"
            ),
            "{damaging}"
        );
    }
}
