//! A machine that says it has seeds, and gives descriptors that are none: shows that whoever asks refuses them. What it
//! damages is the descriptor of a real seed of this machine's module; how, the id says that it is asked for.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use crc::{Crc, CRC_64_XZ};
use mitosis::address::RdmaAddress;
use mitosis::verbs::{MemoryServer, Options};
use mitosis::{Address, Server, ServerOptions};
use mitosis_core::descriptor::MAX_DESCRIPTOR;
use mitosis_core::wire::fork::{
    rpc_id, Chunk, Recent, SeedName, Status, MAX_RECENT, PREAMBLE_LEN, QUEUE_HINT,
};
use mitosis_core::wire::resolution::Ask;
use mitosis_fork::uapi::SeedId;
use mitosis_fork::{Image, Machine, OpenOptions};
use mitosis_userspace_programs::log::Log;
use mitosis_userspace_programs::stop;
use mitosis_userspace_programs::{error, info};
use zerocopy::{FromBytes, IntoBytes};

static CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);
const LOG: Log = Log { quiet: false };

/// Where fields are (descriptor.md §2, §4).
const VERSION_AT: usize = 4;
const CHECKSUM_AT: usize = 8;
const LENGTHS_AT: usize = 20;
const SUMMED_FROM: usize = 16;
const RIP_AT: usize = 56 + 208 + 16 * 8;
/// An address in the kernel.
const KERNEL: u64 = 0xffff_ffff_8100_0000;

/// Gives damaged descriptors to whoever asks for a seed.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The GID of this machine's RDMA port.
    gid: std::net::Ipv6Addr,
    /// At which service to listen; not the module's.
    service: u32,
    /// Of the seed whose descriptor is damaged.
    id: u32,
    /// For how long, in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    running_secs: u64,
}

fn main() -> ExitCode {
    match serve(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!(LOG, "{why}");
            ExitCode::FAILURE
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// Makes the checksum right again: only the contents are wrong.
fn sum(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = CRC.checksum(bytes.get(SUMMED_FROM..).unwrap_or(&[]));
    put(&mut bytes, CHECKSUM_AT, &sum.to_le_bytes());
    bytes
}

/// Everything is there, under a key that nobody gave.
fn hostile_chunk() -> Chunk {
    let mut chunk = Chunk::refused(Status::Done);
    chunk.rkey = 0x1234_5678.into();
    chunk.address = KERNEL.into();
    chunk.present = [u64::MAX.into(); 8];
    chunk.elsewhere = [u64::MAX.into(); 8];
    chunk
}

/// The reply to whoever asks for the seed `id`.
fn damaged(id: u32, honest: &[u8]) -> Vec<u8> {
    let mut status = Status::Done as u32;
    let mut bytes = honest.to_vec();
    match id {
        1 => {
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 0x10;
            }
        }
        2 => bytes.truncate(honest.len() - 1),
        3 => bytes.clear(),
        4 => return vec![0; 3],
        5 => bytes.push(0),
        6 => {
            put(&mut bytes, VERSION_AT, &2u16.to_le_bytes());
            bytes = sum(bytes);
        }
        7 => {
            put(&mut bytes, RIP_AT, &KERNEL.to_le_bytes());
            bytes = sum(bytes);
        }
        8 => {
            // The section of VMAs, as long as it can be said to be.
            put(&mut bytes, LENGTHS_AT + 4 * 4, &u32::MAX.to_le_bytes());
            bytes = sum(bytes);
        }
        9 => bytes = vec![0xff; MAX_DESCRIPTOR - PREAMBLE_LEN],
        10 => status = 99,
        _ => {}
    }
    let mut reply = status.to_le_bytes().to_vec();
    reply.resize(PREAMBLE_LEN, 0);
    reply.extend_from_slice(&bytes);
    reply
}

fn serve(arguments: &Arguments) -> Result<(), String> {
    let machine = Machine {
        gid: arguments.gid.octets(),
        service: 2,
        reserved: 0,
    };
    let seed = SeedId {
        id: arguments.id,
        generation: 0,
    };
    let image = Image::open(machine, seed, None, &OpenOptions::default()).map_err(text)?;
    let honest = image.bytes().to_vec();
    let chunks: Vec<u64> = image.descriptor().chunks().collect();
    drop(image);

    let place = |hint: u32| -> Result<Address, String> {
        let address = format!("rdma://[{}]/{}/{hint}", arguments.gid, arguments.service);
        address.parse::<Address>().map_err(text)
    };
    let rdma = |address: &Address| -> Result<RdmaAddress, String> {
        match address {
            Address::Rdma(address) => Ok(*address),
            Address::Shm(_) => Err("not an address over RDMA".into()),
        }
    };
    // The connection's private data is the token that this side chose, and what a `MemoryServer` of hint 0 wants to hear.
    let ask = Ask {
        server_qd_hint: 0,
        client_qd_hint: 0,
        client_service_id: 0,
    };
    let token: Vec<u8> = ask.emit().into_iter().take(8).collect();
    let memory = MemoryServer::open(&rdma(&place(0)?)?, &Options::default()).map_err(text)?;
    let memory = Arc::new(memory);
    let options = ServerOptions::default();
    let mut server = Server::bind_with(&place(QUEUE_HINT)?, &options).map_err(text)?;
    server.register(rpc_id::ATTACH, move |_, reply| {
        reply.extend_from_slice(&token);
        Ok(())
    });
    server.register(rpc_id::DESCRIBE, move |request, reply| {
        let name = SeedName::read_from_bytes(request).unwrap_or_default();
        info!(LOG, "asked for seed {}", name.id);
        reply.extend_from_slice(&damaged(name.id.get(), &honest));
        Ok(())
    });
    server.register(rpc_id::CHUNK, |_, reply| {
        reply.extend_from_slice(hostile_chunk().as_bytes());
        Ok(())
    });
    let mut asked = 0usize;
    server.register(rpc_id::RECENT, move |_, reply| {
        // Chunks that the seed has, twice, and some that it has not, under that key; at times more than may be listed.
        asked += 1;
        let count = MAX_RECENT + if asked % 2 == 0 { MAX_RECENT } else { 0 };
        reply.resize(PREAMBLE_LEN, 0);
        for index in 0..count {
            let number = chunks.get(index / 2).copied().unwrap_or(u64::MAX >> index);
            let recent = Recent {
                number: number.into(),
                touched: [u64::MAX.into(); 8],
                chunk: hostile_chunk(),
            };
            reply.extend_from_slice(recent.as_bytes());
        }
        Ok(())
    });
    server.register(rpc_id::PAGE, |_, reply| {
        // More than a page.
        reply.resize(3 * 4096, 0);
        Ok(())
    });
    stop::watch(server.shutdown_handle()).map_err(text)?;
    info!(LOG, "hostile seeds ready");
    let end = Instant::now() + Duration::from_secs(arguments.running_secs);
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
