//! Instructions of a small call in the core, client and server together (wire.md §11): `make bench-core`.
//!
//! Counted by callgrind, so that the figure is the same on every machine of this architecture with this compiler. What the
//! glue does between the ends is left out: nothing is sent, and what one end wrote is the other's datagram.

#![allow(missing_docs)] // What gungraun generates has none.

use std::hint::black_box;

use gungraun::{
    library_benchmark, library_benchmark_group, main, Callgrind, EventKind, LibraryBenchmarkConfig,
};
use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event};
use mitosis_core::rpc::server::{Action, Server, ServerConfig, ServerSlot, Session, ANSWER_LEN};
use mitosis_core::wire::{HEADER_LEN, MAX_CONTROL_LEN, MAX_MESSAGE};

/// The most that a call may take.
const MOST: u64 = 400;
/// What the calls of a benchmark take without the ends: the loop, and what hides the ends' datagrams from each other.
const HARNESS: u64 = 319;
/// Round trips are measured once in so many calls: with as many calls, the mean is that of any number of them.
const CALLS: u64 = 8;
const RPC_ID: u32 = 1;
/// How the server knows the client.
const PEER: u32 = 7;

struct Pair {
    client: Client<'static>,
    server: Server<'static>,
    header: [u8; MAX_CONTROL_LEN],
    out: [u8; ANSWER_LEN],
    now_ns: u64,
}

/// Two ends with a session on which calls have been made.
fn connected() -> Box<Pair> {
    let client_config = ClientConfig {
        client_key: 1,
        nonce: 2,
        cluster_key: None,
        datagram_len: 4096,
        slots: 8,
        credits: 8,
        max_message_len: MAX_MESSAGE,
        rto_initial_ns: 1_000_000,
        rto_min_ns: 1_000_000,
        rto_max_ns: 1_000_000_000,
        connect_timeout_ns: 1_000_000_000,
        call_timeout_ns: 1_000_000_000,
    };
    let server_config = ServerConfig {
        epoch: 1,
        random_seed: 2,
        cluster_key: None,
        datagram_len: 4096,
        receive_buffers: 64,
        max_slots: 8,
        max_credits: 8,
        max_message_len: MAX_MESSAGE,
        idle_timeout_ns: 1_000_000_000,
        handshake_timeout_ns: 1_000_000_000,
    };
    let slots = Box::leak(Box::new([const { CallSlot::new() }; 8]));
    let sessions = Box::leak(Box::new([const { Session::new() }; 1]));
    let server_slots = Box::leak(Box::new([const { ServerSlot::new() }; 8]));
    let mut pair = Box::new(Pair {
        client: Client::new(client_config, slots),
        server: Server::new(server_config, sessions, server_slots),
        header: [0; MAX_CONTROL_LEN],
        out: [0; ANSWER_LEN],
        now_ns: 0,
    });
    pair.client.connect(0);
    while let Some(transmit) = pair.client.poll_transmit(0, &mut pair.header) {
        let datagram = &pair.header[..transmit.header_len];
        let action = pair
            .server
            .handle_datagram(0, PEER, datagram, &mut pair.out);
        if let Action::Answer { len, .. } = action {
            let taken = pair.client.handle_datagram(0, &pair.out[..len]);
            assert!(taken.is_ok(), "{taken:?}");
        }
    }
    for _ in 0..10 * CALLS {
        assert!(call(&mut pair));
    }
    pair
}

/// From choosing a slot to the event.
#[inline(never)]
fn call(pair: &mut Pair) -> bool {
    let Pair {
        client,
        server,
        header,
        out,
        now_ns,
    } = pair;
    *now_ns += 1000;
    let Some(slot) = client.free_slot() else {
        return false;
    };
    if client.call(*now_ns, slot, RPC_ID, black_box(0)).is_err() {
        return false;
    }
    let Some(transmit) = client.poll_transmit(*now_ns, header) else {
        return false;
    };
    // The ends know nothing of each other, nor of the numbers.
    let request = black_box(&header[..transmit.header_len]);
    if server.peer_of(request) != Some(PEER) {
        return false;
    }
    let Action::Dispatch(request) = server.handle_datagram(*now_ns, PEER, request, out) else {
        return false;
    };
    let Some(sent) = server.complete(&request.dispatched, Ok(black_box(0)), out) else {
        return false;
    };
    let reply = black_box(&out[..sent.header_len]);
    matches!(
        client.handle_datagram(*now_ns, reply),
        Ok(Some(Event::Reply { complete: true, .. }))
    )
}

#[library_benchmark(setup = connected, config = at_most(HARNESS + CALLS * MOST))]
#[bench::eight()]
fn small_calls(mut pair: Box<Pair>) -> (Box<Pair>, bool) {
    let mut answered = true;
    for _ in 0..CALLS {
        answered &= call(&mut pair);
    }
    (pair, answered)
}

/// The same without the ends.
#[inline(never)]
fn no_call(pair: &mut Pair) -> bool {
    let Pair {
        header,
        out,
        now_ns,
        ..
    } = pair;
    *now_ns += 1000;
    let slot = black_box(0_u16);
    let request = black_box(&header[..black_box(HEADER_LEN)]);
    let reply_len = black_box(slot);
    let reply = black_box(&out[..black_box(HEADER_LEN)]);
    request.len() == reply.len() && reply_len == slot
}

#[library_benchmark(setup = connected, config = at_most(HARNESS))]
#[bench::eight()]
fn harness(mut pair: Box<Pair>) -> (Box<Pair>, bool) {
    let mut answered = true;
    for _ in 0..CALLS {
        answered &= no_call(&mut pair);
    }
    (pair, answered)
}

/// At most so many instructions in a benchmark.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::with_args(["--cache-sim=no"]);
    callgrind.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

library_benchmark_group!(name = calls, benchmarks = [harness, small_calls]);
main!(library_benchmark_groups = calls);
