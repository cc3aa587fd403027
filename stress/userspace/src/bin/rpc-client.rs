//! The clients of the RPC stress test: threads that call without pause.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::Parser;
use mitosis::{Client, ClientOptions, Error};
use mitosis_core::histogram::Histogram;
use mitosis_userspace_programs::arguments::Common;
use mitosis_userspace_programs::log::Log;
use mitosis_userspace_programs::payload::Payloads;
use mitosis_userspace_programs::{error, info, warning};
use serde::Serialize;

/// Between two looks for a server that was lost, and how long it is looked for.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
const ABSENCE: Duration = Duration::from_secs(60);

/// Calls the RPC stress test's function without pause, in threads that make one call at a time.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    running_secs: u64,
    /// Threads, each with a session of its own.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=64))]
    thread_count: u64,
    /// Reports the throughput every so many seconds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    report_interval: u64,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Outcome {
    requests: u64,
    errors: u64,
    interrupted: u64,
    elapsed_us: u64,
    threads: u64,
    latency_ns: Option<Latency>,
}

#[derive(Serialize)]
struct Latency {
    p50: u64,
    p99: u64,
    p999: u64,
    max: u64,
}

/// What a thread leaves behind.
#[derive(Default)]
struct Record {
    latency: Histogram,
    max_ns: u64,
    interrupted: u64,
    failure: Option<String>,
}

/// What all threads look at.
struct Shared<'a> {
    arguments: &'a Arguments,
    log: Log,
    /// All are connected.
    begin: Barrier,
    requests: AtomicU64,
    failed: AtomicBool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.common.complete::<Arguments>() {
        return ExitCode::SUCCESS;
    }
    let log = Log {
        quiet: arguments.common.json,
    };
    info!(log, "starting rpc client");
    let (outcome, failure) = measure(&arguments, log);
    if arguments.common.json {
        println!("{}", serde_json::to_string(&outcome).unwrap_or_default());
    }
    match failure {
        None => {
            info!(log, "stress test done");
            ExitCode::SUCCESS
        }
        Some(failure) => {
            error!(log, "stress test failed: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn measure(arguments: &Arguments, log: Log) -> (Outcome, Option<String>) {
    let threads = arguments.thread_count as usize;
    let shared = Shared {
        arguments,
        log,
        begin: Barrier::new(threads + 1),
        requests: AtomicU64::new(0),
        failed: AtomicBool::new(false),
    };
    let (records, elapsed) = std::thread::scope(|scope| {
        let callers: Vec<_> = (0..threads)
            .map(|index| {
                let shared = &shared;
                scope.spawn(move || call(shared, index))
            })
            .collect();
        shared.begin.wait();
        let start = Instant::now();
        report_until_the_end(&shared, start);
        let records: Vec<Record> = callers
            .into_iter()
            .map(|caller| {
                caller.join().unwrap_or_else(|_| Record {
                    failure: Some("a thread panicked; its message is above".into()),
                    ..Record::default()
                })
            })
            .collect();
        (records, start.elapsed())
    });
    let mut latency = Histogram::new();
    records
        .iter()
        .for_each(|record| latency.merge(&record.latency));
    let max = records
        .iter()
        .map(|record| record.max_ns)
        .max()
        .unwrap_or(0);
    let quantile = |per_mille| latency.quantile_ns(per_mille).unwrap_or(0).min(max);
    let outcome = Outcome {
        requests: latency.count(),
        errors: records
            .iter()
            .filter(|record| record.failure.is_some())
            .count() as u64,
        interrupted: records.iter().map(|record| record.interrupted).sum(),
        elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
        threads: arguments.thread_count,
        latency_ns: (latency.count() > 0).then(|| Latency {
            p50: quantile(500),
            p99: quantile(990),
            p999: quantile(999),
            max,
        }),
    };
    print(&outcome, &latency, log);
    let failure = records.into_iter().find_map(|record| record.failure);
    (outcome, failure)
}

fn report_until_the_end(shared: &Shared<'_>, start: Instant) {
    let end = start + Duration::from_secs(shared.arguments.running_secs);
    let interval = Duration::from_secs(shared.arguments.report_interval);
    let (mut reported_at, mut reported) = (start, 0);
    while reported_at + interval <= end && !shared.failed.load(Ordering::Relaxed) {
        // A report is due at a time, not at an event.
        std::thread::sleep((reported_at + interval).saturating_duration_since(Instant::now()));
        let now = Instant::now();
        let requests = shared.requests.load(Ordering::Relaxed);
        let passed_us = (now - reported_at).as_micros().max(1);
        let thpt = u128::from(requests - reported) * 1_000_000 / passed_us;
        info!(shared.log, "passed: {passed_us}us, thpt: {thpt} requests/s");
        (reported_at, reported) = (now, requests);
    }
}

/// A thread's life.
fn call(shared: &Shared<'_>, index: usize) -> Record {
    let mut record = Record::default();
    let common = &shared.arguments.common;
    info!(shared.log, "start stress test client {index}");
    info!(shared.log, "address: {}", common.address);
    let mut payloads = Payloads::new(common.payload_size(), common.checksum);
    let options = ClientOptions {
        window: 1,
        max_message_len: payloads.message_len() as u32,
        cluster_key: common.cluster_key,
        ..ClientOptions::default()
    };
    let connected = Client::connect_with(&common.address, &options);
    shared.begin.wait();
    let end = Instant::now() + Duration::from_secs(shared.arguments.running_secs);
    let outcome = connected
        .map_err(|error| error.to_string())
        .and_then(|client| call_until(shared, client, &mut payloads, end, &mut record));
    if let Err(failure) = outcome {
        shared.failed.store(true, Ordering::Relaxed);
        record.failure = Some(format!("client {index}: {failure}"));
    }
    record
}

fn call_until(
    shared: &Shared<'_>,
    mut client: Client,
    payloads: &mut Payloads,
    end: Instant,
    record: &mut Record,
) -> Result<(), String> {
    let rpc_id = shared.arguments.common.test_rpc_id;
    let mut request = Vec::new();
    loop {
        payloads.make(&mut request);
        let start = Instant::now();
        if start >= end {
            break;
        }
        let damaged = match client.call(rpc_id, &request) {
            Ok(reply) => !payloads.verify(reply),
            Err(Error::ServerGone { .. }) => {
                record.interrupted += 1;
                look_for_the_server(shared, &mut client, end)?;
                continue;
            }
            Err(error) => return Err(error.to_string()),
        };
        if damaged {
            return Err("checksum mismatch in a reply, or another length than asked for".into());
        }
        let latency_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        record.latency.record(latency_ns);
        record.max_ns = record.max_ns.max(latency_ns);
        shared.requests.fetch_add(1, Ordering::Relaxed);
    }
    client.close();
    Ok(())
}

fn look_for_the_server(
    shared: &Shared<'_>,
    client: &mut Client,
    end: Instant,
) -> Result<(), String> {
    warning!(shared.log, "lost the server; looking for it");
    let lost = Instant::now();
    loop {
        match client.reconnect() {
            Ok(()) => {
                let after = lost.elapsed().as_millis();
                info!(shared.log, "connected again after {after} ms");
                return Ok(());
            }
            Err(error) if lost.elapsed() >= ABSENCE || Instant::now() >= end => {
                return Err(format!("lost the server: {error}"));
            }
            // It may be starting again: nothing tells when.
            Err(_) => std::thread::sleep(LOOK_INTERVAL),
        }
    }
}

fn print(outcome: &Outcome, latency: &Histogram, log: Log) {
    info!(
        log,
        "total: requests {}, errors {}, interrupted {}, elapsed_us {}, threads {}",
        outcome.requests,
        outcome.errors,
        outcome.interrupted,
        outcome.elapsed_us,
        outcome.threads
    );
    let Some(told) = &outcome.latency_ns else {
        return;
    };
    let Latency {
        p50,
        p99,
        p999,
        max,
    } = told;
    info!(
        log,
        "latency_ns: p50 {p50}, p99 {p99}, p999 {p999}, max {max}"
    );
    let buckets: Vec<_> = latency.buckets().collect();
    for some in buckets.chunks(12) {
        let pairs: Vec<_> = some
            .iter()
            .map(|bucket| format!("{}:{}", bucket.index, bucket.count))
            .collect();
        info!(log, "latency buckets: {}", pairs.join(" "));
    }
}
