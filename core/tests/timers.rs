//! What each end does when its time has come, and not a nanosecond before (wire.md §7.3, §8.5).

use crate::network::{bytes_of, client_config, connect_datagram, ECHO, MS, SERVER};
use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event};
use mitosis_core::rpc::server::{Action, Server, ServerConfig, ServerSlot, Session, ANSWER_LEN};
use mitosis_core::session::SessionId;
use mitosis_core::wire::{
    Accept, Datagram, ErrorCode, Kind, Message, Part, Refusal, MAX_CONTROL_LEN,
};

const SESSION: SessionId = SessionId {
    index: 0,
    generation: 1,
    epoch: 0xe0,
};
/// When the clients of these tests connect.
const START_NS: u64 = 7 * MS;
const IDLE_NS: u64 = 1000 * MS;

fn new_client(call_timeout_ns: u64) -> Client<'static> {
    let config = ClientConfig {
        call_timeout_ns,
        ..client_config(5)
    };
    Client::new(config, Vec::leak(vec![CallSlot::new(); 8]))
}

fn tell(client: &mut Client<'_>, now_ns: u64, request: u64, message: Message<'_>) -> Option<Event> {
    let datagram = bytes_of(SESSION, request, 0, message);
    client.handle_datagram(now_ns, &datagram).unwrap()
}

/// What it sends now.
fn sent(client: &mut Client<'_>, now_ns: u64) -> Vec<Kind> {
    let mut header = [0; MAX_CONTROL_LEN];
    let mut kinds = Vec::new();
    while client.poll_transmit(now_ns, &mut header).is_some() {
        kinds.push(Kind::from_u8(header[3]).unwrap());
    }
    kinds
}

/// One whose Accept came at once.
fn accepted(call_timeout_ns: u64) -> Client<'static> {
    let mut client = new_client(call_timeout_ns);
    client.connect(START_NS);
    assert_eq!(sent(&mut client, START_NS), [Kind::Connect]);
    let accept = Message::Accept(Accept {
        client_nonce: client_config(5).nonce + 1,
        server_nonce: 0,
        datagram_len: 1024,
        slots: 8,
        credits: 8,
        max_message_len: 100_000,
        idle_timeout_ms: (IDLE_NS / MS) as u32,
        tag: None,
    });
    assert_eq!(
        tell(&mut client, START_NS, 0, accept),
        Some(Event::Connected)
    );
    assert_eq!(sent(&mut client, START_NS), [Kind::Confirm]);
    client
}

/// And the Pong to its Confirm as well.
fn confirmed(call_timeout_ns: u64) -> Client<'static> {
    let mut client = accepted(call_timeout_ns);
    assert_eq!(tell(&mut client, START_NS, 0, Message::Pong), None);
    client
}

/// Nothing happens until its time has come, which is that.
#[track_caller]
fn is_due(client: &mut Client<'_>, at_ns: u64) -> (Option<Event>, Vec<Kind>) {
    assert_eq!(client.next_timeout_ns(), Some(at_ns));
    assert_eq!(client.handle_timeout(at_ns - 1), None);
    assert_eq!(sent(client, at_ns - 1), []);
    assert_eq!(client.next_timeout_ns(), Some(at_ns));
    let event = client.handle_timeout(at_ns);
    (event, sent(client, at_ns))
}

#[track_caller]
fn closes(client: &mut Client<'_>, at_ns: u64) {
    assert_eq!(client.handle_timeout(at_ns - 1), None);
    let event = client.handle_timeout(at_ns);
    assert!(
        matches!(&event, Some(Event::Closed { error, lost })
            if error.code == ErrorCode::NoSuchSession && lost.is_empty()),
        "{event:?}"
    );
    assert_eq!(client.next_timeout_ns(), None);
}

#[test]
fn a_connect_is_repeated_and_given_up() {
    let mut client = new_client(0);
    assert_eq!(
        (client.next_timeout_ns(), client.handle_timeout(0)),
        (None, None)
    );
    client.connect(START_NS);
    // Until it is sent, it is asked for no more often than it would be sent.
    assert_eq!(client.next_timeout_ns(), Some(START_NS + 10 * MS));
    assert_eq!(sent(&mut client, START_NS), [Kind::Connect]);
    for after_ms in [10, 20, 40, 60, 100, 140, 220, 300, 460] {
        let due = is_due(&mut client, START_NS + after_ms * MS);
        assert_eq!(due, (None, vec![Kind::Connect]));
    }
    let due = is_due(&mut client, START_NS + 500 * MS);
    assert_eq!(due, (Some(Event::ConnectTimedOut), vec![]));
    assert_eq!(client.next_timeout_ns(), None);
}

#[test]
fn a_connect_that_cannot_be_sent_is_not_asked_for_over_and_over() {
    let mut client = new_client(0);
    client.connect(START_NS);
    for after_ms in [10, 20, 40, 60] {
        let at_ns = START_NS + after_ms * MS;
        assert_eq!(client.next_timeout_ns(), Some(at_ns));
        assert_eq!(client.handle_timeout(at_ns), None);
    }
    assert_eq!(sent(&mut client, START_NS + 60 * MS), [Kind::Connect]);
}

#[test]
fn a_confirm_is_repeated_until_the_session_would_be_over() {
    let mut client = accepted(0);
    for after_ms in [10, 20, 40, 60, 100, 140, 220, 300, 460, 620, 870] {
        let due = is_due(&mut client, START_NS + after_ms * MS);
        assert_eq!(due, (None, vec![Kind::Confirm]), "{after_ms}");
    }
    closes(&mut client, START_NS + IDLE_NS);
}

#[test]
fn an_idle_client_pings_four_times_and_gives_up() {
    let mut client = confirmed(0);
    for quarter in 1..4 {
        let due = is_due(&mut client, START_NS + quarter * IDLE_NS / 4);
        assert_eq!(due, (None, vec![Kind::Ping]));
    }
    closes(&mut client, START_NS + IDLE_NS);

    // A Pong begins it anew.
    let mut client = confirmed(0);
    let pong_ns = START_NS + IDLE_NS - 1;
    assert_eq!(client.handle_timeout(pong_ns), None);
    assert_eq!(tell(&mut client, pong_ns, 0, Message::Pong), None);
    assert_eq!(client.next_timeout_ns(), Some(pong_ns + IDLE_NS / 4));
    closes(&mut client, pong_ns + IDLE_NS);
}

/// However a call ends, from then on the client is idle, and not since before the call.
#[test]
fn the_end_of_a_call_begins_an_idle_time() {
    let whole = Message::Reply(Part::whole(b"x"));
    let payload = [0; 984];
    let part = |offset: u32, len: usize| {
        Message::Reply(Part {
            message_len: 1000,
            offset,
            payload: &payload[..len],
        })
    };
    let failed = Message::Error(Refusal::new(ErrorCode::HandlerFailed));
    for answers in [vec![whole], vec![part(0, 984), part(984, 16)], vec![failed]] {
        let mut client = confirmed(5000 * MS);
        for slot in 0..2 {
            client.call(START_NS, slot, ECHO, 1).unwrap();
        }
        sent(&mut client, START_NS);
        // The other call ends before, which is not the end of calls.
        let other = bytes_of(SESSION, 2, 1, failed);
        client.handle_datagram(START_NS + 1, &other).unwrap();
        let end_ns = START_NS + 4000 * MS;
        for answer in answers {
            assert!(!client.outstanding().is_empty());
            assert!(tell(&mut client, end_ns, 1, answer).is_some());
        }
        assert!(client.outstanding().is_empty());
        sent(&mut client, end_ns);
        assert_eq!(client.next_timeout_ns(), Some(end_ns + IDLE_NS / 4));
        closes(&mut client, end_ns + IDLE_NS);
    }
    // Given up: nothing was heard, so that it asks soon whether the session lives.
    let mut client = confirmed(5000 * MS);
    client.call(START_NS, 0, ECHO, 1).unwrap();
    sent(&mut client, START_NS);
    let end_ns = START_NS + 5000 * MS;
    let event = client.handle_timeout(end_ns);
    assert!(matches!(event, Some(Event::TimedOut { slot: 0, .. })));
    assert_eq!(client.next_timeout_ns(), Some(end_ns + 10 * MS));
    closes(&mut client, end_ns + IDLE_NS);
}

#[test]
fn calls_are_repeated_and_given_up_each_in_its_time() {
    let mut client = confirmed(100 * MS);
    for slot in 0..3 {
        let now_ns = START_NS + u64::from(slot) * MS;
        client.call(now_ns, slot, ECHO, 1).unwrap();
        assert_eq!(sent(&mut client, now_ns), [Kind::Request]);
    }
    for after_ms in [10, 11, 12, 20, 21, 22, 40, 41, 42, 60, 61, 62] {
        let due = is_due(&mut client, START_NS + after_ms * MS);
        assert_eq!(due, (None, vec![Kind::Request]), "{after_ms}");
    }
    for slot in 0..3 {
        let end_ns = START_NS + (100 + u64::from(slot)) * MS;
        let (event, _) = is_due(&mut client, end_ns);
        assert!(matches!(event, Some(Event::TimedOut { slot: of, .. }) if of == slot));
        assert_eq!(client.handle_timeout(end_ns), None);
    }
    assert!(client.outstanding().is_empty());
}

/// What has gone back waits to be sent, and there is nothing else to be done until the patience ends.
#[test]
fn a_call_that_waits_to_be_repeated_has_no_timer_but_its_end() {
    let mut client = confirmed(100 * MS);
    client.call(START_NS, 0, ECHO, 1).unwrap();
    assert_eq!(client.next_timeout_ns(), Some(START_NS + 100 * MS));
    sent(&mut client, START_NS);
    assert_eq!(client.handle_timeout(START_NS + 10 * MS), None);
    assert_eq!(client.next_timeout_ns(), Some(START_NS + 100 * MS));
    assert_eq!(sent(&mut client, START_NS + 30 * MS), [Kind::Request]);
    assert_eq!(client.next_timeout_ns(), Some(START_NS + 40 * MS));
}

/// A Confirm that could not be sent yet, and then a Ping: neither keeps the other.
#[test]
fn all_that_has_become_due_is_sent() {
    let mut client = accepted(0);
    let confirm_ns = START_NS + 10 * MS;
    assert_eq!(client.handle_timeout(confirm_ns), None);
    // The Pong comes late.
    assert_eq!(tell(&mut client, confirm_ns, 0, Message::Pong), None);
    let ping_ns = confirm_ns + IDLE_NS / 4;
    assert_eq!(client.handle_timeout(ping_ns), None);
    assert!(client.has_to_transmit());
    assert_eq!(sent(&mut client, ping_ns), [Kind::Confirm, Kind::Ping]);
    assert!(!client.has_to_transmit());
}

/// wire.md §7.3: not before its timeout, and at the latest a quarter of the shorter timeout, or 0.1 ms for each 64 places,
/// later.
#[test]
fn a_silent_session_ends_in_its_time() {
    for (places, idle_ns, handshake_ns) in [
        (1, 1000 * MS, 200 * MS),
        (1, 200 * MS, 1000 * MS),
        (64, 1000 * MS, 200 * MS),
        (65, 1000 * MS, 200 * MS),
        (1000, 1000 * MS, 200 * MS),
        (1000, 2 * MS, MS),
    ] {
        let config = ServerConfig {
            idle_timeout_ns: idle_ns,
            handshake_timeout_ns: handshake_ns,
            ..SERVER
        };
        let mut sessions = vec![Session::new(); places];
        let mut slots = vec![ServerSlot::new(); places];
        let mut server = Server::new(config, &mut sessions, &mut slots);
        let mut out = [0; ANSWER_LEN];
        // Of each place: when it is to end.
        let mut due_ns = Vec::new();
        for peer in 0..places as u32 {
            let heard_ns = u64::from(peer) * 300;
            let connect = connect_datagram(u64::from(peer));
            let action = server.handle_datagram(heard_ns, peer, &connect, &mut out);
            let Action::Answer { len, opened } = action else {
                panic!("{action:?}")
            };
            assert_eq!(opened, Some(peer));
            let session = Datagram::parse(&out[..len]).unwrap().session;
            due_ns.push(heard_ns + handshake_ns);
            if peer % 2 == 0 {
                let ping = bytes_of(session, 0, 0, Message::Ping);
                server.handle_datagram(heard_ns + 100, peer, &ping, &mut out);
                due_ns[peer as usize] = heard_ns + 100 + idle_ns;
            }
        }
        let round_ns = idle_ns.min(handshake_ns) / 4;
        let late_ns = round_ns.max(places.div_ceil(64) as u64 * MS / 10);
        let mut ended = 0;
        while let Some(now_ns) = server.next_timeout_ns() {
            server.handle_timeout(now_ns - 1);
            assert_eq!(server.poll_closed(), None);
            server.handle_timeout(now_ns);
            while let Some(closed) = server.poll_closed() {
                let due_ns = due_ns[closed.session_index as usize];
                assert!(now_ns >= due_ns, "{now_ns} of {due_ns}");
                assert!(now_ns <= due_ns + late_ns, "{now_ns} of {due_ns}");
                ended += 1;
            }
            assert_eq!(server.live_sessions(), places - ended);
        }
        assert_eq!(ended, places);
        assert_eq!(server.counters().expired, places as u64);
    }
}

#[test]
fn a_session_ends_when_it_has_been_silent_for_its_timeout_and_not_before() {
    for confirms in [false, true] {
        let timeout_ns = if confirms { 1000 * MS } else { 200 * MS };
        for (now_ns, live) in [(timeout_ns - 1, 1), (timeout_ns, 0)] {
            let mut sessions = [Session::new()];
            let mut slots = [ServerSlot::new()];
            let mut server = Server::new(SERVER, &mut sessions, &mut slots);
            let mut out = [0; ANSWER_LEN];
            let connect = connect_datagram(1);
            let action = server.handle_datagram(START_NS, 7, &connect, &mut out);
            assert!(matches!(action, Action::Answer { .. }));
            if confirms {
                let ping = bytes_of(SESSION, 0, 0, Message::Ping);
                server.handle_datagram(START_NS, 7, &ping, &mut out);
                assert_eq!(server.counters().pings, 1);
            }
            server.handle_timeout(START_NS + now_ns);
            assert_eq!(server.live_sessions(), live, "{confirms} {now_ns}");
        }
    }
}
