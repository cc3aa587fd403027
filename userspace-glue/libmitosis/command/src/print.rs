//! What is printed, for people or for programs.

use std::io::{self, Write};

use mitosis_fork::gid::Gid;
use mitosis_fork::{Machine, SeedInfo, Stats};
use serde_json::{json, Value};

/// Where and how it is printed.
pub struct Output {
    /// For programs.
    pub json: bool,
}

impl Output {
    /// A value, and the line that says the same.
    pub fn put(&self, value: &Value, line: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")
        } else {
            writeln!(out, "{line}")
        }
    }

    /// Seeds of this machine.
    pub fn seeds(&self, seeds: &[SeedInfo]) -> io::Result<()> {
        if self.json {
            let seeds: Vec<_> = seeds.iter().map(seed).collect();
            return self.put(&Value::Array(seeds), "");
        }
        if seeds.is_empty() {
            return self.put(&Value::Null, "no seeds");
        }
        self.put(
            &Value::Null,
            "     SEED    PID    UID  COMMAND             AGE s  LEASE s   VMAS  CHUNKS  REGIONS  OPENED",
        )?;
        for info in seeds {
            let name = format!("{}.{}", info.seed.id, info.seed.generation);
            let lease = match info.lease_left_ms {
                0 => "-".to_owned(),
                left => seconds(left),
            };
            let line = format!(
                "{name:>9} {:>6} {:>6}  {:<16} {:>8} {lease:>8} {:>6} {:>7} {:>8} {:>7}",
                info.pid,
                info.uid,
                comm(info),
                seconds(info.age_ms),
                info.vmas,
                info.chunks,
                info.regions,
                info.opened
            );
            self.put(&Value::Null, &line)?;
        }
        Ok(())
    }

    /// How long a machine took to answer.
    pub fn ping(&self, machine: &Machine, rtt_ns: u64) -> io::Result<()> {
        let gid = Gid(&machine.gid).to_string();
        self.put(
            &json!({ "gid": gid, "service": machine.service, "rtt_ns": rtt_ns }),
            &format!("{gid} answered in {} µs", micros(rtt_ns)),
        )
    }

    /// The module's figures.
    pub fn stats(&self, stats: &Stats) -> io::Result<()> {
        let figures = [
            ("seeds", stats.seeds),
            ("prepared", stats.prepared),
            ("unprepared", stats.unprepared),
            ("images", stats.images),
            ("children", stats.children),
            ("regions", stats.regions),
            ("seed_pages", stats.seed_pages),
            ("cached_pages", stats.cached_pages),
            ("faults", stats.faults),
            ("faults_zero", stats.faults_zero),
            ("faults_cached", stats.faults_cached),
            ("faults_read", stats.faults_read),
            ("faults_rpc", stats.faults_rpc),
            ("faults_failed", stats.faults_failed),
            ("pages_read", stats.pages_read),
            ("connections", stats.connections),
        ];
        if self.json {
            let object = figures.map(|(name, value)| (name.to_owned(), json!(value)));
            return self.put(&Value::Object(object.into_iter().collect()), "");
        }
        for (name, value) in figures {
            self.put(&Value::Null, &format!("{name:<14} {value:>12}"))?;
        }
        Ok(())
    }
}

fn seed(info: &SeedInfo) -> Value {
    json!({
        "id": info.seed.id,
        "generation": info.seed.generation,
        "pid": info.pid,
        "uid": info.uid,
        "comm": comm(info),
        "age_ms": info.age_ms,
        "lease_left_ms": (info.lease_left_ms != 0).then_some(info.lease_left_ms),
        "descriptor_len": info.descriptor_len,
        "vmas": info.vmas,
        "chunks": info.chunks,
        "regions": info.regions,
        "opened": info.opened,
    })
}

fn comm(info: &SeedInfo) -> String {
    let name = info.comm.split(|byte| *byte == 0).next();
    printable(name.unwrap_or_default())
}

/// Bytes of others, which a terminal could take for commands.
pub fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let harmless = |character: char| {
        if character.is_control() {
            '?'
        } else {
            character
        }
    };
    text.chars().map(harmless).collect()
}

fn seconds(ms: u64) -> String {
    format!("{}.{}", ms / 1000, ms % 1000 / 100)
}

fn micros(ns: u64) -> String {
    format!("{}.{}", ns / 1000, ns % 1000 / 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_others_cannot_command_a_terminal() {
        assert_eq!(printable(b"\x1b[2Jname"), "?[2Jname");
        assert_eq!(printable("Zähler".as_bytes()), "Zähler");
    }

    #[test]
    fn times() {
        assert_eq!(seconds(61_250), "61.2");
        assert_eq!(micros(1_234_567), "1234.5");
    }
}
