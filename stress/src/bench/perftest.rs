//! perftest between two hosts of the cluster: the floor on the same link in the same run.

use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::cluster::shell::{quote, Limit, TICK};
use crate::cluster::Host;
use crate::interrupt::Interrupt;
use crate::run::Inspected;
use crate::settings::Gid;

/// For perftest to listen, and for one measurement.
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// For perftest's listening side to end once the other one has.
const PARTING: Duration = Duration::from_secs(10);
/// Round trips of one measurement: enough for a median, and what fits perftest's memory.
const MIN_TRIPS: u32 = 100;
const MAX_TRIPS: u32 = 1_000_000;
/// Where perftest's two ends meet over TCP.
const PORT: u16 = 18515;
/// The longest datagram; what is longer is measured over a reliable connection.
pub(super) const MAX_DATAGRAM: u32 = 4096;

/// Two hosts, the server first, and how they are reached.
pub struct Pair<'a> {
    /// The hosts.
    pub hosts: &'a [Host; 2],
    /// What they are.
    pub inspected: &'a [Inspected; 2],
    /// The server's GID.
    pub gid: Gid,
    /// Ends a measurement early.
    pub interrupt: &'a Interrupt,
}

impl Pair<'_> {
    /// The median round trip of messages of `len` bytes, in nanoseconds: twice what `ib_send_lat` calls typical. Takes about
    /// a second if a round trip takes as long as the `last` one.
    pub fn round_trip_ns(&self, len: u32, last: Option<f64>) -> Result<f64> {
        let printed = self.run("ib_send_lat", len, iterations_of_a_second(last))?;
        let half_us = column(&printed, 4)
            .with_context(|| format!("ib_send_lat printed no latency:\n{printed}"))?;
        Ok(half_us * 2.0 * 1_000.0)
    }

    /// Messages of `len` bytes a second, one way: the message rate of `ib_send_bw`.
    pub fn messages_per_s(&self, len: u32) -> Result<f64> {
        let iterations = if len > MAX_DATAGRAM { 500 } else { 20_000 };
        let printed = self.run("ib_send_bw", len, iterations)?;
        let millions = column(&printed, 4)
            .with_context(|| format!("ib_send_bw printed no message rate:\n{printed}"))?;
        Ok(millions * 1_000_000.0)
    }

    /// What `ib_read_lat` calls typical for a READ of `len` bytes, there and back, in µs.
    pub fn read_us(&self, len: u32) -> Result<f64> {
        let printed = self.run_over("ib_read_lat", "RC", len, 1_000)?;
        column(&printed, 4).with_context(|| format!("ib_read_lat printed no latency:\n{printed}"))
    }

    /// The average bandwidth of `ib_read_bw` with READs of `len` bytes, in MiB/s.
    pub fn read_mib_per_s(&self, len: u32) -> Result<f64> {
        let printed = self.run_over("ib_read_bw", "RC", len, 1_000)?;
        column(&printed, 3).with_context(|| format!("ib_read_bw printed no bandwidth:\n{printed}"))
    }

    fn run(&self, program: &str, len: u32, iterations: u32) -> Result<String> {
        let kind = if len > MAX_DATAGRAM { "RC" } else { "UD" };
        self.run_over(program, kind, len, iterations)
    }

    fn run_over(&self, program: &str, kind: &str, len: u32, iterations: u32) -> Result<String> {
        let [server, client] = self.hosts;
        let command = |inspected: &Inspected| -> Result<String> {
            let port = inspected
                .ports
                .iter()
                .find(|port| port.gids.contains(&self.gid))
                .or(inspected.ports.first())
                .context("no active RDMA port")?;
            let own = |gid: &Gid| *gid == self.gid;
            let index = port.gids.iter().position(own).unwrap_or(0);
            let ethernet = match port.mtu {
                Some(_) => format!(" -x {index}"),
                None => String::new(),
            };
            Ok(format!(
                "timeout 60 {program} -F -c {kind} -d {}{ethernet} -s {len} -n {iterations}",
                quote(&port.device)
            ))
        };
        let [of_server, of_client] = self.inspected;
        let listening = Listening::start(server, &command(of_server)?, self.interrupt)?;
        let limit = Limit {
            timeout: TIMEOUT,
            interrupt: Some(self.interrupt),
        };
        let script = format!("{} {}", command(of_client)?, quote(&server.address));
        let printed = client.run(&script, limit)?;
        listening.end();
        Ok(printed)
    }
}

/// perftest's listening side, which ends with the exchange; killed when dropped.
struct Listening {
    child: Child,
}

impl Listening {
    /// Returns once it listens: perftest says so too late on a pipe, so its TCP port is looked for.
    fn start(host: &Host, command: &str, interrupt: &Interrupt) -> Result<Self> {
        let child = host
            .command(command)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{}: cannot start ssh", host.name))?;
        let listening = Self { child };
        let script = format!(
            "i=0; until grep -q ':{PORT:04X} [0-9A-F]*:0000 0A' /proc/net/tcp /proc/net/tcp6; do \
             i=$((i+1)); [ $i -lt 200 ] || exit 1; sleep 0.1; done"
        );
        let limit = Limit {
            timeout: TIMEOUT,
            interrupt: Some(interrupt),
        };
        host.ask(&script, limit).with_context(|| {
            format!(
                "{}: `{command}` does not listen; is perftest installed there?",
                host.name
            )
        })?;
        Ok(listening)
    }
}

impl Listening {
    /// Lets it end by itself: a shared connection mistakes what still comes of a session that is killed while it closes
    /// for the next session's, which then ends without a status.
    fn end(mut self) {
        let deadline = Instant::now() + PARTING;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(TICK);
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As many round trips as a second has, if each takes as long as the last one.
fn iterations_of_a_second(last_ns: Option<f64>) -> u32 {
    last_ns.map_or(MIN_TRIPS, |last_ns| {
        (1e9 / last_ns).clamp(f64::from(MIN_TRIPS), f64::from(MAX_TRIPS)) as u32
    })
}

/// A number of perftest's table: of its only line of numbers, the one in this column.
fn column(printed: &str, column: usize) -> Option<f64> {
    let numbers = |line: &str| -> Option<Vec<f64>> {
        let numbers: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
        numbers.ok().filter(|numbers| numbers.len() >= 5)
    };
    printed
        .lines()
        .find_map(numbers)
        .and_then(|numbers| numbers.get(column).copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_takes_about_a_second() {
        assert_eq!(iterations_of_a_second(None), MIN_TRIPS);
        assert_eq!(iterations_of_a_second(Some(1e6)), 1_000);
        assert_eq!(iterations_of_a_second(Some(1e9)), MIN_TRIPS);
        assert_eq!(iterations_of_a_second(Some(1.0)), MAX_TRIPS);
        assert_eq!(iterations_of_a_second(Some(0.0)), MAX_TRIPS);
    }

    #[test]
    fn figures_are_read_off_perftests_tables() {
        let latency = " #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]\n \
             40      2000          189.59         5491.93      230.56   \t       439.96      \t641.45 \t\t3489.51\n";
        assert_eq!(column(latency, 4), Some(230.56));
        let rate =
            " #bytes     #iterations    BW peak[MB/sec]    BW average[MB/sec]   MsgRate[Mpps]\n \
             64         20000            0.00               0.72   \t\t   0.011800\n";
        assert_eq!(column(rate, 4), Some(0.0118));
        assert_eq!(column("Couldn't connect to 10.73.0.1:18515\n", 4), None);
    }
}
