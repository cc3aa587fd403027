//! Counts the instructions of a small call in the core, client and server together: docs/wire.md
//! §11 says how to run it under callgrind.

use std::hint::black_box;

use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event};
use mitosis_core::rpc::server::{Action, Server, ServerConfig, ServerSlot, Session, ANSWER_LEN};
use mitosis_core::wire::{HEADER_LEN, MAX_CONTROL_LEN, MAX_MESSAGE};

const CALLS: u64 = 10_000;
const RPC_ID: u32 = 1;

struct Pair<'a> {
    client: Client<'a>,
    server: Server<'a>,
    header: [u8; MAX_CONTROL_LEN],
    out: [u8; ANSWER_LEN],
    now_ns: u64,
}

/// What is counted, with what the glue would do between the ends left out: nothing is sent, and
/// the one's header is the other's datagram.
#[inline(never)]
fn small_call(pair: &mut Pair<'_>) -> bool {
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
    if server.peer_of(request) != Some(7) {
        return false;
    }
    let Action::Dispatch(request) = server.handle_datagram(*now_ns, 7, request, out) else {
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

fn main() {
    let mut slots = [const { CallSlot::new() }; 8];
    let mut sessions = [const { Session::new() }; 1];
    let mut server_slots = [const { ServerSlot::new() }; 8];
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
    let mut pair = Pair {
        client: Client::new(client_config, &mut slots),
        server: Server::new(server_config, &mut sessions, &mut server_slots),
        header: [0; MAX_CONTROL_LEN],
        out: [0; ANSWER_LEN],
        now_ns: 0,
    };
    pair.client.connect(0);
    while let Some(transmit) = pair.client.poll_transmit(0, &mut pair.header) {
        let datagram = &pair.header[..transmit.header_len];
        let action = pair.server.handle_datagram(0, 7, datagram, &mut pair.out);
        if let Action::Answer { len, .. } = action {
            let taken = pair.client.handle_datagram(0, &pair.out[..len]);
            assert!(taken.is_ok(), "{taken:?}");
        }
    }
    for _ in 0..CALLS {
        assert!(small_call(black_box(&mut pair)));
    }
    println!("{CALLS} calls of {HEADER_LEN} bytes there and back");
}
