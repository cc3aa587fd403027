//! Calls as their callers see them, over a network that loses, doubles and reorders.

mod network;

use mitosis_core::rpc::client::{CallError, Event, RequestId};
use mitosis_core::rpc::server::{Action, Closed, Server, Session, ANSWER_LEN};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{Datagram, ErrorCode, Kind, Message, Refusal, HEADER_LEN, MAX_DATAGRAM};
use network::{
    client_config, connect_datagram, lose, Fate, Network, ECHO, FAILING, MS, SERVER, UNKNOWN,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Loses the first `count` datagrams of `kind`.

#[test]
fn calls_are_answered() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    assert_eq!(
        network.peers[place].client.payload_limit(),
        1024 - HEADER_LEN
    );
    for (number, payload) in [&b""[..], b"a", &[7; 1024 - HEADER_LEN]]
        .into_iter()
        .enumerate()
    {
        let request = RequestId(number as u64 + 1);
        assert_eq!(
            network.call(place, ECHO, payload),
            Event::Replied {
                request,
                payload: HEADER_LEN..HEADER_LEN + payload.len()
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
    assert_eq!(
        network.call(place, FAILING, b""),
        Event::Failed {
            request: RequestId(1),
            error: ErrorCode::HandlerFailed
        }
    );
    assert_eq!(
        network.call(place, UNKNOWN, b""),
        Event::Failed {
            request: RequestId(2),
            error: ErrorCode::NoSuchRpc
        }
    );
    assert!(matches!(
        network.call(place, ECHO, b"x"),
        Event::Replied { .. }
    ));
}

#[test]
fn misuse_is_refused_before_anything_is_sent() {
    let mut network = Network::new(4);
    let place = network.add_client();
    let client = &mut network.peers[place].client;
    assert_eq!(client.call(0, ECHO, 0), Err(CallError::NotConnected));
    client.connect(0);
    assert_eq!(client.call(0, ECHO, 0), Err(CallError::NotConnected));
    assert_eq!(network.events_of(place), [Event::Connected]);
    let client = &mut network.peers[place].client;
    let limit = 1024 - HEADER_LEN;
    for payload_len in [limit + 1, 1 << 16, usize::MAX] {
        assert_eq!(
            client.call(0, ECHO, payload_len),
            Err(CallError::TooLarge { payload_len, limit })
        );
    }
    client.call(0, ECHO, limit).unwrap();
    assert_eq!(client.call(0, ECHO, 0), Err(CallError::Busy));
}

#[test]
fn a_lost_request_is_sent_again() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    network.fate = lose(Kind::Request, 2);
    assert!(matches!(
        network.call(place, ECHO, b"x"),
        Event::Replied { .. }
    ));
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
            Event::Replied { .. } | Event::Failed { .. }
        ));
        assert_eq!(network.sent(Kind::Request), 3);
        assert_eq!(network.executed.len(), 1);
        assert_eq!(network.server.counters().replays, 2);
    }
}

#[test]
fn doubled_datagrams_change_nothing() {
    let mut network = Network::new(4);
    network.fate = Box::new(|_, _| Fate::Doubled);
    let place = network.connected_client();
    for number in 0..10_u8 {
        assert!(matches!(
            network.call(place, ECHO, &[number]),
            Event::Replied { .. }
        ));
    }
    assert_eq!(network.executed.len(), 10);
    assert_eq!(network.server.live_sessions(), 1);
}

#[test]
fn an_old_request_is_ignored() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    let mut old = [0; 64];
    network.start_call(place, ECHO, b"old");
    let len = network.peers[place]
        .client
        .clone()
        .poll_transmit(0, &mut old)
        .unwrap();
    network.events_of(place);
    network.call(place, ECHO, b"new");
    network.serve(place, &old[..len]);
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
            request: RequestId(1)
        }
    );
    assert_eq!(network.now_ns - began_ns, 400 * MS);
    assert_eq!(network.executed.len(), 1);

    network.fate = lose(Kind::Reply, 0);
    assert!(matches!(
        network.call(place, ECHO, b"y"),
        Event::Replied {
            request: RequestId(2),
            ..
        }
    ));
}

#[test]
fn segmented_and_oversized_requests_are_too_large() {
    let mut network = Network::new(1);
    let place = network.connected_client();
    let session = network.peers[place].client.session();
    let request = RequestId(1);
    let mut datagram = [0; MAX_DATAGRAM];
    let message = Message::Request {
        rpc_id: ECHO,
        payload: &[0; 1025 - HEADER_LEN],
    };
    let oversized = Datagram {
        session,
        request,
        message,
    }
    .emit(&mut datagram)
    .unwrap();
    network.serve(place, &datagram[..oversized]);
    let message = Message::Request {
        rpc_id: ECHO,
        payload: b"part",
    };
    let segmented = Datagram {
        session,
        request,
        message,
    }
    .emit(&mut datagram)
    .unwrap();
    datagram[28] = 200;
    network.serve(place, &datagram[..segmented]);
    assert_eq!(network.server.counters().too_large, 2);
    assert_eq!(network.executed, []);
}

#[test]
fn what_only_a_server_sends_is_not_answered() {
    let mut network = Network::new(1);
    let place = network.connected_client();
    let session = network.peers[place].client.session();
    let sent = network.sent;
    for message in [
        Message::Error(Refusal {
            code: ErrorCode::Busy,
            client_key: 0,
        }),
        Message::Reply { payload: b"" },
        Message::Pong,
    ] {
        let mut datagram = [0; 64];
        let len = Datagram {
            session,
            request: RequestId(1),
            message,
        }
        .emit(&mut datagram)
        .unwrap();
        network.serve(place, &datagram[..len]);
    }
    assert_eq!(network.sent, sent);
    assert_eq!(network.server.counters().ignored_unexpected, 3);
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
    let gone = Message::Error(Refusal {
        code: ErrorCode::NoSuchSession,
        client_key: 0,
    });
    let busy = Message::Error(Refusal {
        code: ErrorCode::Busy,
        client_key: 1000,
    });
    for (session, request, message, why) in [
        (other, 1, gone, Rejected::OtherSession),
        (
            other,
            1,
            Message::Reply { payload: b"" },
            Rejected::OtherSession,
        ),
        (
            session,
            9,
            Message::Reply { payload: b"" },
            Rejected::StaleRequest,
        ),
        (SessionId::NONE, 0, busy, Rejected::Unexpected(Kind::Error)),
        (session, 0, Message::Ping, Rejected::Unexpected(Kind::Ping)),
    ] {
        let mut datagram = [0; 64];
        let len = Datagram {
            session,
            request: RequestId(request),
            message,
        }
        .emit(&mut datagram)
        .unwrap();
        assert_eq!(
            client.handle_datagram(0, &datagram[..len]),
            Err(why),
            "{message:?}"
        );
    }
    assert!(matches!(
        network.events_of(place)[..],
        [Event::Replied { .. }]
    ));
}

#[test]
fn a_late_completion_finds_its_session_draining_or_gone() {
    let mut sessions = [Session::new()];
    let mut server = Server::new(SERVER, &mut sessions);
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
    let datagram = |request: u64, message| {
        let mut bytes = [0; 64];
        let len = Datagram {
            session,
            request: RequestId(request),
            message,
        }
        .emit(&mut bytes)
        .unwrap();
        bytes[..len].to_vec()
    };
    let request = datagram(
        1,
        Message::Request {
            rpc_id: ECHO,
            payload: b"x",
        },
    );
    let next = datagram(
        2,
        Message::Request {
            rpc_id: ECHO,
            payload: b"x",
        },
    );
    let Action::Dispatch(dispatch) = server.handle_datagram(0, 7, &request, &mut out) else {
        panic!()
    };
    for again in [&request, &next] {
        let action = server.handle_datagram(0, 7, again, &mut out);
        assert_eq!(action, Action::Ignore(Rejected::StillExecuting));
    }
    // A session that executes a request does not expire, and when it is ended keeps its slot until
    // the handler is done.
    server.handle_timeout(u64::MAX - 1);
    assert_eq!(server.live_sessions(), 1);
    let disconnect = datagram(0, Message::Disconnect);
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
    let mut reply = [0; MAX_DATAGRAM];
    assert_eq!(server.complete(&dispatch.dispatched, Ok(1), &mut reply), 0);
    assert_eq!(
        server.poll_closed(),
        Some(Closed {
            session_index: 0,
            peer: 7
        })
    );
    assert_eq!(server.complete(&dispatch.dispatched, Ok(1), &mut reply), 0);
}

#[test]
fn a_result_that_does_not_fit_is_too_large() {
    for (payload_len, buffer_len) in [
        (1024 - HEADER_LEN + 1, 4096),
        (usize::MAX, 4096),
        (100, 120),
    ] {
        let mut network = Network::new(1);
        let place = network.connected_client();
        let mut request = [0; 64];
        network.start_call(place, ECHO, b"x");
        let client = &mut network.peers[place].client;
        let len = client.poll_transmit(0, &mut request).unwrap();
        let mut out = [0; ANSWER_LEN];
        let action = network
            .server
            .handle_datagram(0, 7, &request[..len], &mut out);
        let Action::Dispatch(dispatch) = action else {
            panic!("{action:?}")
        };
        let mut reply = vec![0; buffer_len];
        let len = network
            .server
            .complete(&dispatch.dispatched, Ok(payload_len), &mut reply);
        assert_eq!(
            client.handle_datagram(0, &reply[..len]),
            Ok(Some(Event::Failed {
                request: RequestId(1),
                error: ErrorCode::TooLarge
            }))
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// The client waits at most for the patience of its calls; the seed is printed by proptest.
    #[test]
    fn under_any_faults_calls_are_answered_once(seed: u64, loss in 0..40_u32, doubling in 0..30_u32, reordering in 0..30_u32) {
        let mut network = Network::new(4);
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
            match network.call(place, ECHO, &payload) {
                Event::Replied { .. } => payloads.push((ECHO, payload.to_vec())),
                // While one client ran, the others stood still for longer than their sessions last.
                Event::Closed(ErrorCode::NoSuchSession) => {
                    prop_assert!(network.server.counters().expired > 0);
                    prop_assert_eq!(network.connect(place), [Event::Connected]);
                }
                event => prop_assert!(false, "{:?}", event),
            }
        }
        prop_assert_eq!(&network.executed, &payloads, "each once and in order");
    }
}
