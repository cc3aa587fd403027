//! The server of the RPC stress test.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use mitosis::server::Counters;
use mitosis::{Error, HandlerFailed, Server, ServerOptions};
use mitosis_userspace_programs::arguments::Common;
use mitosis_userspace_programs::log::Log;
use mitosis_userspace_programs::payload::Payloads;
use mitosis_userspace_programs::{error, info, stop, warning};
use serde::Serialize;

/// Answers the RPC stress test's calls, in one thread, for a while.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(flatten)]
    common: Common,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    running_secs: u64,
}

/// What is printed as JSON.
#[derive(Serialize)]
struct Outcome {
    sessions: u64,
    requests: u64,
    replayed: u64,
    rejected: u64,
    errors: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.common.complete::<Arguments>() {
        return ExitCode::SUCCESS;
    }
    let log = Log {
        quiet: arguments.common.json,
    };
    match serve(&arguments, log) {
        Ok(outcome) if arguments.common.json => {
            println!("{}", serde_json::to_string(&outcome).unwrap_or_default());
            ExitCode::from(u8::from(outcome.errors > 0))
        }
        Ok(outcome) => ExitCode::from(u8::from(outcome.errors > 0)),
        Err(why) => {
            error!(log, "rpc server failed: {why}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &Arguments, log: Log) -> Result<Outcome, Error> {
    let common = &arguments.common;
    let options = ServerOptions {
        cluster_key: common.cluster_key,
        ..ServerOptions::default()
    };
    let mut server = Server::bind_with(&common.address, &options)?;
    let errors = Arc::new(AtomicU64::new(0));
    let mut payloads = Payloads::new(common.payload_size(), common.checksum);
    let counted = Arc::clone(&errors);
    server.register(common.test_rpc_id, move |request, reply| {
        if payloads.verify(request) {
            payloads.make(reply);
            return Ok(());
        }
        if counted.fetch_add(1, Ordering::Relaxed) == 0 {
            error!(
                log,
                "checksum mismatch in a request, or another length than this server's"
            );
        }
        Err(HandlerFailed)
    });
    info!(
        log,
        "rpc server ready: {}, {} bytes",
        common.address,
        common.payload_size()
    );
    if common.cluster_key.is_none() {
        info!(
            log,
            "no cluster key: every peer that reaches the address is served"
        );
    }
    if let Err(why) = stop::watch(server.shutdown_handle()) {
        warning!(log, "signals end this server at once: {why}");
    }
    let end = Instant::now() + Duration::from_secs(arguments.running_secs);
    loop {
        // Time is looked at when there is nothing else, or now and then.
        for _ in 0..1000 {
            if !server.poll()? {
                server.wait(Some(end.saturating_duration_since(Instant::now())))?;
                break;
            }
        }
        if Instant::now() >= end || stop::wanted() {
            break;
        }
    }
    let counters = server.counters();
    let outcome = Outcome {
        sessions: counters.connects,
        requests: counters.requests,
        replayed: counters.replays,
        rejected: rejected(&counters),
        errors: errors.load(Ordering::Relaxed),
    };
    info!(
        log,
        "rpc server stopped: sessions {}, requests {}, replayed {}, rejected {}, errors {}",
        outcome.sessions,
        outcome.requests,
        outcome.replayed,
        outcome.rejected,
        outcome.errors
    );
    Ok(outcome)
}

fn rejected(counters: &Counters) -> u64 {
    [
        counters.refused_busy,
        counters.refused_key_required,
        counters.refused_wrong_key,
        counters.refused_no_key_here,
        counters.refused_replayed,
        counters.refused_version,
        counters.refused_going_away,
        counters.too_large,
        counters.bad_requests,
        counters.no_such_session,
        counters.ignored_malformed,
        counters.ignored_unexpected,
        counters.ignored_stale,
    ]
    .iter()
    .sum()
}
