//! Memory that other machines read over RDMA, without its owner's doing anything: shows that they read what is there, may not
//! write, and read nothing after it was revoked.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::{Parser, Subcommand};
use crc::{Crc, CRC_64_XZ};
use mitosis::address::RdmaAddress;
use mitosis::fabric::{FabricError, FabricErrorKind};
use mitosis::verbs::{Exposed, Location, MemoryServer, Options, RemoteMemory};
use mitosis::{Address, Client, Error, HandlerFailed, Server, ServerOptions};
use mitosis_core::histogram::Histogram;
use mitosis_userspace_programs::log::Log;
use mitosis_userspace_programs::stop;
use mitosis_userspace_programs::{error, info};
use rand::Rng;

/// Exposes memory of its own, and answers with its location and the checksum of what is in it.
const EXPOSE: u32 = 1;
/// Revokes the memory of the key in the request.
const REVOKE: u32 = 2;
/// Most regions at a time.
const REGIONS: usize = 64;
/// What is exposed: more than the READs that are outstanding at a time, and no whole number of pages.
const LEN: usize = 2_000_003;
/// What a single READ of the measurement fetches.
const PAGE: usize = 4096;

static CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);
const LOG: Log = Log { quiet: false };

/// Lets other machines read memory over RDMA, or reads it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Exposes memory, for a while.
    Serve(Place),
    /// Reads it, tries to write it, has it revoked, and tries to read it again.
    Read(Place),
}

#[derive(clap::Args)]
struct Place {
    /// rdma://[gid]/service/hint
    address: Address,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=604_800))]
    running_secs: u64,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Role::Serve(place) => serve(&place),
        Role::Read(place) => read(&place),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!(LOG, "{why}");
            ExitCode::FAILURE
        }
    }
}

fn rdma(address: &Address) -> Result<RdmaAddress, String> {
    match address {
        Address::Rdma(address) => Ok(*address),
        Address::Shm(_) => Err(
            "memory is read over RDMA: give an address of the form rdma://[gid]/service/hint"
                .into(),
        ),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn serve(place: &Place) -> Result<(), String> {
    let address = rdma(&place.address)?;
    let memory = MemoryServer::open(&address, &Options::default()).map_err(text)?;
    let memory = Arc::new(memory);
    let options = ServerOptions::default();
    let mut server = Server::bind_with(&place.address, &options).map_err(text)?;
    let regions: Arc<Mutex<BTreeMap<u32, Exposed>>> = Arc::default();
    let (exposing, exposed) = (Arc::clone(&memory), Arc::clone(&regions));
    server.register(EXPOSE, move |_, reply| {
        let mut regions = exposed.lock().unwrap_or_else(PoisonError::into_inner);
        if regions.len() == REGIONS {
            return Err(HandlerFailed);
        }
        let mut region = exposing.expose(LEN).map_err(|why| {
            error!(LOG, "{why}");
            HandlerFailed
        })?;
        rand::rng().fill_bytes(region.bytes_mut());
        let location = region.location();
        reply.extend_from_slice(&location.to_bytes());
        reply.extend_from_slice(&CRC.checksum(region.bytes_mut()).to_le_bytes());
        regions.insert(location.key, region);
        Ok(())
    });
    server.register(REVOKE, move |request, _| {
        let mut regions = regions.lock().unwrap_or_else(PoisonError::into_inner);
        let key = request.try_into().map(u32::from_le_bytes);
        let region = key.ok().and_then(|key| regions.remove(&key));
        region.map(Exposed::revoke).ok_or(HandlerFailed)
    });
    stop::watch(server.shutdown_handle()).map_err(text)?;
    info!(LOG, "remote memory ready: {}", place.address);
    let end = Instant::now() + Duration::from_secs(place.running_secs);
    while Instant::now() < end && !stop::wanted() {
        if !server.poll().map_err(text)? {
            let nap = end.saturating_duration_since(Instant::now());
            server.wait(Some(nap)).map_err(text)?;
        }
        if let Some(why) = memory.failure() {
            return Err(text(why));
        }
    }
    Ok(())
}

/// Whether it is the error that it should be.
fn refused(result: Result<(), FabricError>, what: &str) -> Result<(), String> {
    match result {
        Ok(()) => Err(format!("{what} was possible")),
        Err(why) if why.kind() == FabricErrorKind::Denied => {
            info!(LOG, "{what} was refused, as it should be: {why}");
            Ok(())
        }
        Err(why) => Err(format!("{what} failed in another way: {why}")),
    }
}

fn read(place: &Place) -> Result<(), String> {
    let address = rdma(&place.address)?;
    let connect = || RemoteMemory::connect(&address, &Options::default()).map_err(text);
    let mut client = Client::connect(&place.address.to_string()).map_err(text)?;
    let called = |result: Result<&[u8], Error>| result.map(<[u8]>::to_vec).map_err(text);
    let reply = called(client.call(EXPOSE, &[]))?;
    let (Some(location), Some(checksum)) = (reply.first_chunk(), reply.last_chunk()) else {
        return Err(format!("a location of {} bytes", reply.len()));
    };
    let location = Location::from_bytes(location);

    let mut remote = connect()?;
    let mut bytes = vec![0; LEN];
    remote.read(&location, 0, &mut bytes).map_err(text)?;
    if CRC.checksum(&bytes).to_le_bytes() != *checksum {
        return Err("checksum mismatch in what was read".into());
    }
    info!(LOG, "read {LEN} bytes, and their checksum is right");

    let mut latency = Histogram::new();
    let mut max_ns = 0;
    let mut page = vec![0; PAGE];
    let mut offset = 0;
    let started = Instant::now();
    let running = Duration::from_secs(place.running_secs);
    while started.elapsed() < running {
        let asked = Instant::now();
        remote
            .read(&location, offset as u64, &mut page)
            .map_err(text)?;
        let ns = u64::try_from(asked.elapsed().as_nanos()).unwrap_or(u64::MAX);
        latency.record(ns);
        max_ns = max_ns.max(ns);
        if bytes.get(offset..offset + PAGE) != Some(&page) {
            return Err(format!("the page at {offset} is another one now"));
        }
        offset = (offset + 7 * PAGE + 1) % (LEN - PAGE);
    }
    let elapsed_us = started.elapsed().as_micros();

    refused(remote.try_to_write(&location), "writing")?;
    let mut remote = connect()?;
    remote.read(&location, 0, &mut page).map_err(text)?;
    if bytes.get(..PAGE) != Some(&page) {
        return Err("the refused write has changed the memory".into());
    }
    let beyond = Location {
        len: location.len + (1 << 30),
        ..location
    };
    refused(
        remote.read(&beyond, 1 << 29, &mut page),
        "reading what is beside it",
    )?;
    let mut remote = connect()?;
    called(client.call(REVOKE, &location.key.to_le_bytes()))?;
    refused(
        remote.read(&location, 0, &mut page),
        "reading what was revoked",
    )?;

    let quantile = |per_mille| latency.quantile_ns(per_mille).unwrap_or(0);
    info!(
        LOG,
        "total: requests {}, errors 0, interrupted 0, elapsed_us {elapsed_us}, threads 1",
        latency.count()
    );
    info!(
        LOG,
        "latency_ns: p50 {}, p99 {}, p999 {}, max {max_ns}",
        quantile(500),
        quantile(990),
        quantile(999)
    );
    let buckets: Vec<String> = latency
        .buckets()
        .map(|bucket| format!("{}:{}", bucket.index, bucket.count))
        .collect();
    for line in buckets.chunks(32) {
        info!(LOG, "latency buckets: {}", line.join(" "));
    }
    info!(LOG, "stress test done");
    Ok(())
}
