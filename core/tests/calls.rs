//! Calls of one datagram as their callers see them, over a network that loses, doubles and
//! reorders.

use crate::network::{
    bytes_of, client_config, connect_datagram, is_reply, lose, Fate, Network, ECHO, FAILING, MS,
    SERVER, UNKNOWN,
};
use mitosis_core::rpc::client::{CallError, ClientConfig, Event, RequestId, SlotSet};
use mitosis_core::rpc::server::{Action, Closed, Server, ServerSlot, Session, ANSWER_LEN};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{
    Datagram, ErrorCode, Kind, Message, Part, Refusal, HEADER_LEN, MAX_CONTROL_LEN, MAX_MESSAGE,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn request(payload: &[u8]) -> Message<'_> {
    Message::Request {
        rpc_id: ECHO,
        part: Part::whole(payload),
    }
}

#[test]
fn calls_are_answered() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    for (number, payload) in [&b""[..], b"a", &[7; 1024 - HEADER_LEN]]
        .into_iter()
        .enumerate()
    {
        assert_eq!(
            network.call(place, ECHO, payload),
            Event::Reply {
                request: RequestId(number as u64 + 1),
                slot: 0,
                message_len: payload.len() as u32,
                offset: 0,
                payload: HEADER_LEN..HEADER_LEN + payload.len(),
                complete: true,
            }
        );
    }
    assert_eq!(network.executed.len(), 3);
    assert_eq!(network.sent(Kind::Request), 3);
    assert_eq!(network.now_ns, 0, "nothing waited for a timer");
}

#[test]
fn failures_are_typed_and_leave_the_session_as_it_was() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    for (number, (rpc_id, error)) in [
        (FAILING, ErrorCode::HandlerFailed),
        (UNKNOWN, ErrorCode::NoSuchRpc),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(
            network.call(place, rpc_id, b""),
            Event::Failed {
                request: RequestId(number as u64 + 1),
                slot: 0,
                error
            }
        );
    }
    assert!(is_reply(&network.call(place, ECHO, b"x")));
}

#[test]
fn misuse_is_refused_before_anything_is_sent() {
    let mut network = Network::new(4);
    let place = network.add_client();
    let client = &mut network.peers[place].client;
    assert_eq!(client.call(0, 0, ECHO, 0), Err(CallError::NotConnected));
    client.connect(0);
    assert_eq!(client.call(0, 0, ECHO, 0), Err(CallError::NotConnected));
    assert_eq!(client.free_slot(), None);
    assert_eq!(network.events_of(place), [Event::Connected]);
    let client = &mut network.peers[place].client;
    for request_len in [MAX_MESSAGE + 1, u32::MAX] {
        assert_eq!(
            client.call(0, 0, ECHO, request_len),
            Err(CallError::TooLarge {
                request_len,
                limit: MAX_MESSAGE
            })
        );
    }
    for slot in [8, 63, 64, u16::MAX] {
        assert_eq!(
            client.call(0, slot, ECHO, 0),
            Err(CallError::NoSuchSlot { slot, slots: 8 })
        );
    }
    client.call(0, 0, ECHO, 0).unwrap();
    assert_eq!(client.call(0, 0, ECHO, 0), Err(CallError::SlotInUse));
    assert_eq!(client.free_slot(), Some(1));
}

#[test]
fn a_lost_request_is_sent_again() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    network.fate = lose(Kind::Request, 2);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
    assert_eq!(
        (network.sent(Kind::Request), network.executed.len()),
        (3, 1)
    );
}

#[test]
fn a_lost_reply_is_sent_again_and_not_executed_again() {
    for rpc_id in [ECHO, FAILING] {
        let mut network = Network::new(4);
        let place = network.connected_client();
        network.fate = Box::new(|kind, nth| {
            if matches!(kind, Kind::Reply | Kind::Error) && nth <= 2 {
                Fate::Lost
            } else {
                Fate::Arrives
            }
        });
        assert!(matches!(
            network.call(place, rpc_id, b"x"),
            Event::Reply { complete: true, .. } | Event::Failed { .. }
        ));
        assert_eq!(network.sent(Kind::Request), 3);
        assert_eq!(network.executed.len(), 1);
        assert_eq!(network.server.counters().replays, 2);
    }
}

/// By the short way, and a longer one is not.
#[test]
fn a_reply_that_fills_its_datagram_or_its_session_is_taken() {
    let part_len = usize::from(SERVER.datagram_len) - HEADER_LEN;
    for (max_message_len, len) in [(MAX_MESSAGE, part_len), (100, 100)] {
        for more in [1, 0] {
            let mut network = Network::new(1);
            let place = network.add_client_with(ClientConfig {
                max_message_len,
                ..client_config(5)
            });
            assert_eq!(network.connect(place), [Event::Connected]);
            let request = network.start_call(place, ECHO, b"x");
            let now_ns = network.now_ns;
            let client = &mut network.peers[place].client;
            while client
                .poll_transmit(now_ns, &mut [0; MAX_CONTROL_LEN])
                .is_some()
            {}
            let payload = vec![7; len + more];
            let message = Message::Reply(Part::whole(&payload));
            let reply = bytes_of(client.session(), request.0, 0, message);
            let taken = client.handle_whole(now_ns, &reply);
            let taken = taken.map(|reply| reply.payload.len());
            assert_eq!(taken, (more == 0).then_some(len));
        }
    }
}

#[test]
fn doubled_datagrams_change_nothing() {
    let mut network = Network::new(4);
    network.fate = Box::new(|_, _| Fate::Doubled);
    let place = network.connected_client();
    for number in 0..10_u8 {
        assert!(is_reply(&network.call(place, ECHO, &[number])));
    }
    assert_eq!(network.executed.len(), 10);
    assert_eq!(network.server.live_sessions(), 1);
}

#[test]
fn an_old_request_is_ignored() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    let session = network.peers[place].client.session();
    network.call(place, ECHO, b"old");
    network.call(place, ECHO, b"new");
    network.serve(place, &bytes_of(session, 1, 0, request(b"old")));
    assert_eq!(network.rejected, [Rejected::StaleRequest]);
    assert_eq!(network.executed.len(), 2);
}

#[test]
fn without_a_server_connect_and_call_time_out() {
    let mut network = Network::new(4);
    network.fate = lose(Kind::Connect, u32::MAX);
    let place = network.add_client();
    assert_eq!(network.connect(place), [Event::ConnectTimedOut]);
    assert_eq!(network.now_ns, 500 * MS);
    assert_eq!(network.peers[place].client.next_timeout_ns(), None);

    network.fate = lose(Kind::Reply, u32::MAX);
    assert_eq!(network.connect(place), [Event::Connected]);
    let began_ns = network.now_ns;
    assert_eq!(
        network.call(place, ECHO, b"x"),
        Event::TimedOut {
            request: RequestId(1),
            slot: 0
        }
    );
    assert_eq!(network.now_ns - began_ns, 400 * MS);
    assert_eq!(network.executed.len(), 1);
    assert_eq!(network.peers[place].client.in_flight(), 0);

    network.fate = lose(Kind::Reply, 0);
    assert!(is_reply(&network.call(place, ECHO, b"y")));
}

#[test]
fn the_interval_follows_the_round_trip_and_doubles_every_second_time() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    // In this network a round trip takes no time, so the interval becomes the least: 1 ms.
    for _ in 0..50 {
        network.call(place, ECHO, b"x");
    }
    let mut took_ms = |lost| {
        network.sent[Kind::Request as usize] = 0;
        network.fate = lose(Kind::Request, lost);
        let began_ns = network.now_ns;
        assert!(is_reply(&network.call(place, ECHO, b"x")));
        (network.now_ns - began_ns) / MS
    };
    // Calls 51 to 55: each loss is one by itself.
    assert_eq!(took_ms(5), 1 + 1 + 2 + 2 + 4);
    assert_eq!(took_ms(1), 1);
    assert_eq!(took_ms(2), 1 + 1);
    assert_eq!(took_ms(0), 0);
    assert_eq!(took_ms(2), 1 + 1);
    // Call 56 begins where the slowest of them ended since the last measurement, which was call 54.
    assert_eq!(took_ms(1), 2);
    // Call 57 is measured, so call 64 begins without a back-off.
    assert_eq!((57..64).map(|_| took_ms(0)).sum::<u64>(), 0);
    assert_eq!(took_ms(1), 1);
}

#[test]
fn an_interval_that_has_become_too_short_is_noticed() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    for _ in 0..50 {
        network.call(place, ECHO, b"x");
    }
    // Handlers take 30 times the interval from now on.
    network.late = true;
    let mut repeated = Vec::new();
    for _ in 0..32 {
        let before = network.sent(Kind::Request);
        network.start_call(place, ECHO, b"x");
        assert_eq!(network.pass(30 * MS), []);
        network.finish(0);
        assert!(is_reply(&network.events_of(place)[0]));
        repeated.push(network.sent(Kind::Request) - before - 1);
    }
    assert!(repeated[0] > 4, "{repeated:?}");
    assert_eq!(repeated[24..], [0; 8], "{repeated:?}");
}

#[test]
fn malformed_requests_of_a_session_are_refused() {
    let mut config = SERVER;
    config.max_message_len = 3000;
    let mut network = Network::with_server(config, 1);
    let place = network.connected_client();
    let session = network.peers[place].client.session();
    let of = |message_len, offset, payload| Message::Request {
        rpc_id: ECHO,
        part: Part {
            message_len,
            offset,
            payload,
        },
    };
    let full = &[0; 984][..];
    let mut beyond = bytes_of(session, 1, 0, of(984, 0, full));
    beyond[28..32].copy_from_slice(&(MAX_MESSAGE + 1).to_le_bytes());
    network.serve(place, &beyond);
    network.serve(place, &bytes_of(session, 1, 0, of(3001, 0, full)));
    assert_eq!(network.server.counters().too_large, 2);
    // Longer than the session's datagrams, shorter than a part that is not the last, in a slot that
    // the session does not have.
    network.serve(place, &bytes_of(session, 1, 0, of(985, 0, &[0; 985])));
    network.serve(place, &bytes_of(session, 1, 0, of(985, 0, &[0; 983])));
    network.serve(place, &bytes_of(session, 1, 8, of(984, 0, full)));
    network.serve(place, &bytes_of(session, 1, u16::MAX, of(984, 0, full)));
    assert_eq!(network.server.counters().bad_requests, 4);
    // Nothing of it has been taken for the request.
    network.serve(place, &bytes_of(session, 1, 0, of(1968, 984, full)));
    assert_eq!(network.rejected, [Rejected::OutOfOrder]);
    assert_eq!(network.executed, []);
    network.serve(place, &bytes_of(session, 1, 0, of(985, 0, full)));
    // The same request with another length, another rpc id, another grid of parts.
    network.serve(place, &bytes_of(session, 1, 0, of(986, 984, &[0; 2])));
    network.serve(place, &bytes_of(session, 1, 0, of(985, 983, &[0; 2])));
    let mut other = bytes_of(session, 1, 0, of(985, 984, &[0; 1]));
    other[24] = 77;
    network.serve(place, &other);
    assert_eq!(network.server.counters().bad_requests, 7);
    network.serve(place, &bytes_of(session, 1, 0, of(985, 984, &[0; 1])));
    assert_eq!(network.executed, [(ECHO, vec![0; 985])]);
}

/// wire.md §6.2: only the owner of a session is told what is wrong with its request.
#[test]
fn malformed_requests_of_strangers_are_not_answered() {
    let mut network = Network::new(2);
    let place = network.connected_client();
    let stranger = network.connected_client();
    let session = network.peers[place].client.session();
    let of_nobody = SessionId {
        generation: session.generation + 1,
        ..session
    };
    let well_formed = bytes_of(session, 1, 0, request(b"xy"));
    let mut too_long = well_formed.clone();
    too_long[28..32].copy_from_slice(&(MAX_MESSAGE + 1).to_le_bytes());
    let mut no_part = well_formed.clone();
    no_part[28] = 1;
    let sent = network.sent;
    for (malformed, (too_large, bad)) in [(too_long, (1, 0)), (no_part, (1, 1))] {
        let mut of_nobody_s = malformed.clone();
        of_nobody_s[8..12].copy_from_slice(&of_nobody.generation.to_le_bytes());
        let before = network.server.counters().ignored_malformed;
        network.serve(stranger, &malformed);
        network.serve(place, &of_nobody_s);
        let counters = network.server.counters();
        assert_eq!(counters.ignored_malformed, before + 2);
        network.serve(place, &malformed);
        let counters = network.server.counters();
        assert_eq!(
            (counters.too_large, counters.bad_requests),
            (too_large, bad)
        );
    }
    assert_eq!(network.sent(Kind::Error), sent[Kind::Error as usize] + 2);
    assert_eq!(network.executed, []);
}

#[test]
fn what_only_a_server_sends_is_not_answered() {
    let mut network = Network::new(1);
    let place = network.connected_client();
    let session = network.peers[place].client.session();
    let sent = network.sent;
    for message in [
        Message::Error(Refusal::new(ErrorCode::Busy)),
        Message::Reply(Part::whole(b"")),
        Message::CreditReturn {
            message_len: 2000,
            offset: 984,
        },
        Message::Pong,
    ] {
        let slot = 0;
        network.serve(place, &bytes_of(session, 1, slot, message));
    }
    assert_eq!(network.sent, sent);
    assert_eq!(network.server.counters().ignored_unexpected, 4);
}

#[test]
fn a_client_ignores_what_is_not_meant_for_it() {
    let mut network = Network::new(2);
    let place = network.connected_client();
    network.start_call(place, ECHO, b"x");
    let client = &mut network.peers[place].client;
    let session = client.session();
    let other = SessionId {
        generation: session.generation + 1,
        ..session
    };
    let gone = Message::Error(Refusal::new(ErrorCode::NoSuchSession));
    let busy = Message::Error(Refusal::new(ErrorCode::Busy));
    let empty = Message::Reply(Part::whole(b""));
    let arrived = Message::CreditReturn {
        message_len: 2000,
        offset: 984,
    };
    for (session, request, slot, message, why) in [
        (other, 1, 0, gone, Rejected::OtherSession),
        (other, 1, 0, empty, Rejected::OtherSession),
        (session, 9, 0, empty, Rejected::StaleRequest),
        (session, 1, 1, empty, Rejected::StaleRequest),
        (session, 1, 64, empty, Rejected::StaleRequest),
        (session, 1, 0, empty, Rejected::BadPart),
        (session, 1, 0, arrived, Rejected::BadPart),
        (
            SessionId::NONE,
            0,
            0,
            busy,
            Rejected::Unexpected(Kind::Error),
        ),
        (
            session,
            0,
            0,
            Message::Ping,
            Rejected::Unexpected(Kind::Ping),
        ),
    ] {
        let datagram = bytes_of(session, request, slot, message);
        assert_eq!(
            client.handle_datagram(0, &datagram),
            Err(why),
            "{message:?}"
        );
    }
    assert!(is_reply(&network.events_of(place)[0]));
}

#[test]
fn a_late_completion_finds_its_session_draining_or_gone() {
    let mut sessions = [Session::new()];
    let mut slots = [const { ServerSlot::new() }; 2];
    let mut server = Server::new(SERVER, &mut sessions, &mut slots);
    let mut out = [0; ANSWER_LEN];
    let connect = connect_datagram(1);
    let Action::Answer {
        len,
        opened: Some(0),
    } = server.handle_datagram(0, 7, &connect, &mut out)
    else {
        panic!()
    };
    let session = Datagram::parse(&out[..len]).unwrap().session;
    let first = bytes_of(session, 1, 0, request(b"x"));
    let next = bytes_of(session, 2, 0, request(b"x"));
    let Action::Dispatch(dispatch) = server.handle_datagram(0, 7, &first, &mut out) else {
        panic!()
    };
    let dispatched = dispatch.dispatched;
    for again in [&first, &next] {
        let action = server.handle_datagram(0, 7, again, &mut out);
        assert_eq!(action, Action::Ignore(Rejected::StillExecuting));
    }
    // A session that executes a request does not expire, and when it is ended keeps its place until
    // the handler is done.
    server.handle_timeout(u64::MAX - 1);
    assert_eq!(server.live_sessions(), 1);
    let disconnect = bytes_of(session, 0, 0, Message::Disconnect);
    assert_eq!(
        server.handle_datagram(0, 7, &disconnect, &mut out),
        Action::Done
    );
    assert_eq!((server.live_sessions(), server.poll_closed()), (0, None));
    let action = server.handle_datagram(0, 7, &connect, &mut out);
    assert!(
        matches!(action, Action::Answer { opened: None, .. }),
        "busy: {action:?}"
    );
    assert_eq!(server.complete(&dispatched, Ok(1), &mut out), None);
    assert_eq!(
        server.poll_closed(),
        Some(Closed {
            session_index: 0,
            peer: 7,
            first_slot_index: 0,
            slots: 1
        })
    );
    assert_eq!(server.complete(&dispatched, Ok(1), &mut out), None);
}

#[test]
fn a_result_that_does_not_fit_is_too_large() {
    let mut config = SERVER;
    config.max_message_len = 5000;
    for len in [5001, MAX_MESSAGE + 1, u32::MAX] {
        let mut network = Network::with_server(config, 1);
        let place = network.connected_client();
        network.start_call(place, ECHO, b"x");
        let mut header = [0; MAX_CONTROL_LEN];
        let client = &mut network.peers[place].client;
        let transmit = client.poll_transmit(0, &mut header).unwrap();
        assert_eq!(transmit.payload.unwrap().range, 0..1);
        let session = client.session();
        let datagram = bytes_of(session, 1, 0, request(b"x"));
        assert_eq!(datagram[..HEADER_LEN], header[..HEADER_LEN]);
        let mut out = [0; ANSWER_LEN];
        let action = network.server.handle_datagram(0, 7, &datagram, &mut out);
        let Action::Dispatch(dispatch) = action else {
            panic!("{action:?}")
        };
        let dispatched = dispatch.dispatched;
        let sent = network.server.complete(&dispatched, Ok(len), &mut out);
        let len = sent.unwrap().header_len;
        assert_eq!(
            client.handle_datagram(0, &out[..len]),
            Ok(Some(Event::Failed {
                request: RequestId(1),
                slot: 0,
                error: ErrorCode::TooLarge
            }))
        );
        // Finished is finished.
        assert_eq!(network.server.complete(&dispatched, Ok(0), &mut out), None);
    }
}

#[test]
fn a_buffer_that_is_too_short_loses_an_answer_and_nothing_else() {
    let mut network = Network::new(1);
    let place = network.connected_client();
    let session = network.peers[place].client.session();
    let datagram = bytes_of(session, 1, 0, request(b"x"));
    let action = network.server.handle_datagram(0, 7, &datagram, &mut []);
    let Action::Dispatch(dispatch) = action else {
        panic!("{action:?}")
    };
    let sent = network
        .server
        .complete(&dispatch.dispatched, Ok(1), &mut []);
    assert_eq!(sent, None);
    let action = network.server.handle_datagram(0, 7, &datagram, &mut []);
    assert_eq!(action, Action::Ignore(Rejected::NoRoom));
    let action = network
        .server
        .handle_datagram(0, 7, &datagram, &mut [0; ANSWER_LEN]);
    assert!(matches!(action, Action::Send(_)), "{action:?}");
    assert_eq!(network.server.counters().no_room, 2);
}

proptest! {
    #[test]
    fn a_set_of_slots_has_those_that_are_in_it(bits: u64, slot: u16) {
        let set = SlotSet(bits);
        let slots: Vec<_> = (0..64).filter(|slot| bits & 1 << slot != 0).collect();
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), &slots[..]);
        prop_assert_eq!(set.len() as usize, slots.len());
        prop_assert_eq!(set.is_empty(), slots.is_empty());
        for slot in (0..=64).chain([slot, u16::MAX]) {
            prop_assert_eq!(set.contains(slot), slots.contains(&slot));
            let alone = SlotSet::of(slot).iter().collect::<Vec<_>>();
            prop_assert_eq!(alone, if slot < 64 { vec![slot] } else { vec![] });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The client waits at most for the patience of its calls; the seed is printed by proptest.
    #[test]
    fn under_any_faults_calls_are_answered_once(seed: u64, loss in 0..40_u32, doubling in 0..30_u32, reordering in 0..30_u32) {
        let mut network = Network::new(8);
        for place in 0..3 {
            let mut config = client_config(seed.wrapping_add(place));
            config.connect_timeout_ns = u64::MAX;
            config.call_timeout_ns = u64::MAX;
            network.add_client_with(config);
        }
        let mut faults = StdRng::seed_from_u64(seed);
        network.fate = Box::new(move |_, _| match faults.random_range(0..100) {
            dice if dice < loss => Fate::Lost,
            dice if dice < loss + doubling => Fate::Doubled,
            dice if dice < loss + doubling + reordering => Fate::Overtaken,
            _ => Fate::Arrives,
        });
        for place in 0..3 {
            prop_assert_eq!(network.connect(place), [Event::Connected]);
        }
        let mut payloads = Vec::new();
        for number in 0..60_u64 {
            let place = (number % 3) as usize;
            let payload = number.to_le_bytes();
            loop {
                match network.call(place, ECHO, &payload) {
                    Event::Reply { .. } => {
                        payloads.push((ECHO, payload.to_vec()));
                        break;
                    }
                    // While one client ran, the others stood still for longer than their sessions
                    // last. Such a call was not executed.
                    Event::Closed { error, .. } => {
                        prop_assert_eq!(error.code, ErrorCode::NoSuchSession);
                        prop_assert!(network.server.counters().expired > 0);
                        prop_assert_eq!(network.connect(place), [Event::Connected]);
                    }
                    event => prop_assert!(false, "{:?}", event),
                }
            }
        }
        prop_assert_eq!(&network.executed, &payloads, "each once and in order");
    }
}
