//! One server with very many sessions.

use std::time::Instant;

use anyhow::anyhow;
use mitosis_testkit::endpoint::{memory_sizes, Settings};
use mitosis_testkit::random::Chance;
use mitosis_testkit::scenario::{Load, Report};
use mitosis_testkit::world::Order;

use crate::memory::Memory;
use crate::Options;

/// How many calls each session makes if nobody says.
const CALLS_OF_SESSION: u64 = 3;

/// Opens all sessions at once, has each make its calls, and prints what was seen. An error if any
/// was not served.
pub fn run(options: &Options, sessions: u32) -> anyhow::Result<()> {
    let seed = options.seed.unwrap_or(options.first_seed);
    let calls = options
        .calls
        .unwrap_or(CALLS_OF_SESSION * u64::from(sessions));
    let load = Load {
        seed,
        clients: sessions,
        calls,
        order: Order {
            count: 0,
            failing: Chance::percent(2.0),
            late: Chance::percent(5.0),
            request_len: (24, 64),
            reply_len: (8, 64),
            large: Chance::NEVER,
            large_len: 0,
        },
        settings: Settings {
            sessions,
            slots: 1,
            ..Settings::PATIENT
        },
        faults: options.faults(),
        reception: options.reception(),
        crashes: None,
    };
    println!(
        "{sessions} sessions on one server, {calls} calls, seed {seed}: {} % loss, {} % duplication, {} % reordering",
        options.loss, options.duplication, options.reordering
    );
    let began = Instant::now();
    let report = load.run(options.seed.is_some()).map_err(|failure| {
        anyhow!(
            "{failure}\nto repeat it: make simulate ARGUMENTS='--sessions {sessions} --seed {seed} --calls {} --loss {} \
             --duplication {} --reordering {} --corruption {} --ring {} --service {}'",
            calls,
            options.loss,
            options.duplication,
            options.reordering,
            options.corruption,
            options.ring,
            options.service
        )
    })?;
    let Report {
        tally,
        traffic,
        virtual_ns,
        ..
    } = report;
    println!("sessions opened  {:>12}", tally.sessions);
    println!("calls            {:>12}", tally.begun);
    println!("replied          {:>12}", tally.replied);
    println!("handler failed   {:>12}", tally.handler_failed);
    println!("lost             {:>12}", tally.ordered - tally.ended());
    println!("executed twice   {:>12}", tally.executed_twice);
    println!("mismatched       {:>12}", tally.mismatched);
    println!(
        "datagrams        {:>12} sent, {} overrun",
        traffic.sent, traffic.overrun
    );
    println!("virtual time     {:>12.3} s", virtual_ns as f64 / 1e9);
    println!("wall time        {:>12.1} s", began.elapsed().as_secs_f64());
    println!("this process     {:>12}", Memory::read());
    for (name, bytes) in memory_sizes() {
        println!("{name:<16} {bytes:>12} bytes");
    }
    println!("as it should be");
    Ok(())
}
