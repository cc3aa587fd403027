//! How sessions begin, are kept and end, over a network that loses and doubles.

mod network;

use mitosis_core::rpc::client::{Event, RequestId};
use mitosis_core::rpc::server::{Action, Closed, Server, ServerConfig, Session, ANSWER_LEN};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{Accept, Datagram, ErrorCode, Kind, Message, Refusal};
use network::{client_config, connect_datagram, lose, Network, ECHO, MS, SERVER};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[test]
fn a_lost_connect_or_accept_is_made_up_for() {
    for kind in [Kind::Connect, Kind::Accept] {
        let mut network = Network::new(4);
        network.fate = lose(kind, 3);
        let place = network.connected_client();
        assert_eq!(network.sent(Kind::Connect), 4, "{kind:?}");
        assert_eq!(
            network.server.live_sessions(),
            1,
            "{kind:?}: repeated connects find their session"
        );
        assert_eq!(
            network.now_ns,
            (10 + 20 + 40) * MS,
            "{kind:?}: the interval doubles"
        );
        assert!(matches!(
            network.call(place, ECHO, b"x"),
            Event::Replied { .. }
        ));
    }
}

#[test]
fn a_lost_confirm_is_made_up_for_by_the_next_datagram() {
    let mut network = Network::new(4);
    network.fate = lose(Kind::Confirm, u32::MAX);
    let idle = network.connected_client();
    let calling = network.connected_client();
    assert!(matches!(
        network.call(calling, ECHO, b"x"),
        Event::Replied { .. }
    ));
    // Longer than the handshake timeout: the idle client's Pings confirm its session.
    assert_eq!(network.pass(500 * MS), []);
    assert!(matches!(
        network.call(idle, ECHO, b"x"),
        Event::Replied { .. }
    ));
    assert_eq!(network.server.counters().expired, 0);
}

#[test]
fn a_full_table_refuses_with_a_reason() {
    let mut network = Network::new(2);
    let first = network.connected_client();
    network.connected_client();
    let third = network.add_client();
    assert_eq!(network.connect(third), [Event::Refused(ErrorCode::Busy)]);
    assert_eq!(network.server.counters().refused_busy, 1);

    network.peers[first].client.disconnect();
    network.pass(0);
    assert_eq!(
        network.closed,
        [Closed {
            session_index: 0,
            peer: 7
        }]
    );
    assert_eq!(network.connect(third), [Event::Connected]);
    let session = network.peers[third].client.session();
    assert_eq!(
        (session.index, session.generation),
        (0, 2),
        "the slot is reused under a new generation"
    );
}

#[test]
fn a_table_without_slots_refuses_everybody() {
    let mut network = Network::new(0);
    let place = network.add_client();
    assert_eq!(network.connect(place), [Event::Refused(ErrorCode::Busy)]);
    assert_eq!(network.server.next_timeout_ns(), None);
}

#[test]
fn an_idle_client_keeps_its_session() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    assert_eq!(network.pass(10_000 * MS), []);
    let pings = network.sent(Kind::Ping);
    assert!(
        (40..=44).contains(&pings),
        "four to an idle timeout: {pings}"
    );
    assert!(matches!(
        network.call(place, ECHO, b"x"),
        Event::Replied { .. }
    ));
}

#[test]
fn a_dead_client_expires() {
    let mut network = Network::new(300);
    let half_open = network.add_client();
    network.fate = lose(Kind::Accept, 1);
    network.peers[half_open].client.connect(0);
    network.peers[half_open]
        .client
        .poll_transmit(0, &mut [0; 64]);
    let connect = connect_datagram(client_config(1000).client_key);
    network.serve(half_open, &connect);
    network.fate = lose(Kind::Accept, 0);
    for _ in 0..200 {
        network.connected_client();
    }
    assert_eq!(network.server.live_sessions(), 201);
    // The clock hand takes up to a quarter of the shorter timeout longer.
    network.pass_without_clients(200 * MS);
    network.pass_without_clients(51 * MS);
    assert_eq!(
        network.server.live_sessions(),
        200,
        "a half-open session goes first"
    );
    assert_eq!(
        network.closed,
        [Closed {
            session_index: 0,
            peer: 7
        }]
    );
    network.pass_without_clients(748 * MS);
    assert_eq!(network.server.live_sessions(), 200);
    network.pass_without_clients(52 * MS);
    assert_eq!(network.server.live_sessions(), 0);
    assert_eq!(
        (network.closed.len(), network.server.counters().expired),
        (201, 201)
    );
    assert_eq!(network.server.next_timeout_ns(), None);
}

#[test]
fn an_expired_session_is_closed_for_its_client_too() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    network.pass_without_clients(1100 * MS);
    assert_eq!(
        network.call(place, ECHO, b"x"),
        Event::Closed(ErrorCode::NoSuchSession)
    );
    assert_eq!(network.connect(place), [Event::Connected]);
    assert!(matches!(
        network.call(place, ECHO, b"x"),
        Event::Replied { .. }
    ));
}

#[test]
fn a_restarted_server_is_noticed() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    network.call(place, ECHO, b"x");
    network.restart_server(ServerConfig {
        epoch: 0xe1,
        ..SERVER
    });
    // The new server has a session of the same index and generation, of the same peer even.
    let other = network.add_client();
    network.peers[other].id = network.peers[place].id;
    assert_eq!(network.connect(other), [Event::Connected]);
    assert_eq!(
        network.call(place, ECHO, b"y"),
        Event::Closed(ErrorCode::NoSuchSession)
    );
    assert_eq!(network.executed.len(), 1);
    assert_eq!(network.connect(place), [Event::Connected]);
    assert!(matches!(
        network.call(place, ECHO, b"z"),
        Event::Replied { .. }
    ));
}

#[test]
fn a_silent_server_is_noticed_by_an_idle_client() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    network.fate = lose(Kind::Ping, u32::MAX);
    let events = network.pass(1500 * MS);
    assert_eq!(events, [(place, Event::Closed(ErrorCode::NoSuchSession))]);
}

#[test]
fn a_session_answers_only_its_own_peer() {
    let mut network = Network::new(4);
    let owner = network.connected_client();
    let stranger = network.connected_client();
    let session = network.peers[owner].client.session();
    for message in [
        Message::Disconnect,
        Message::Ping,
        Message::Confirm,
        Message::Request {
            rpc_id: ECHO,
            payload: b"stolen",
        },
    ] {
        let request = RequestId(u64::from(message.kind() == Kind::Request));
        let mut datagram = [0; 64];
        let len = Datagram {
            session,
            request,
            message,
        }
        .emit(&mut datagram)
        .unwrap();
        network.serve(stranger, &datagram[..len]);
    }
    assert_eq!(network.server.counters().no_such_session, 4);
    assert_eq!(network.executed, []);
    assert!(matches!(
        network.call(owner, ECHO, b"x"),
        Event::Replied {
            request: RequestId(1),
            ..
        }
    ));
    assert!(matches!(
        network.call(stranger, ECHO, b"x"),
        Event::Replied {
            request: RequestId(1),
            ..
        }
    ));
}

#[test]
fn the_same_key_from_two_peers_is_two_sessions() {
    // So few slots that some of the sessions share a hash chain.
    let mut network = Network::new(8);
    for _ in 0..8 {
        let place = network.add_client_with(client_config(5));
        assert_eq!(network.connect(place), [Event::Connected]);
    }
    assert_eq!(network.server.live_sessions(), 8);
}

#[test]
fn a_server_that_goes_away_says_so() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    network.fate = lose(Kind::Reply, 1);
    network.start_call(place, ECHO, b"x");
    network.pass(0);
    network.server.go_away();
    assert!(
        matches!(network.events_of(place)[..], [Event::Replied { .. }]),
        "a saved reply is still sent"
    );
    assert_eq!(
        network.call(place, ECHO, b"y"),
        Event::Failed {
            request: RequestId(2),
            error: ErrorCode::GoingAway
        }
    );
    let late = network.add_client();
    assert_eq!(
        network.connect(late),
        [Event::Refused(ErrorCode::GoingAway)]
    );
    assert_eq!(network.executed.len(), 1);
}

#[test]
fn a_connect_of_another_version_is_told_so() {
    let mut server = Server::new(SERVER, &mut []);
    let mut out = [0; ANSWER_LEN];
    let action =
        server.handle_datagram(0, 7, &[b'M', b'T', 2, Kind::Connect as u8, 9, 9], &mut out);
    let Action::Answer { len, opened: None } = action else {
        panic!("{action:?}")
    };
    let refusal = Refusal {
        code: ErrorCode::BadVersion,
        client_key: 0,
    };
    assert_eq!(
        Datagram::parse(&out[..len]),
        Ok(Datagram {
            session: SessionId::NONE,
            request: RequestId(0),
            message: Message::Error(refusal)
        })
    );
    let mut network = Network::new(1);
    let place = network.add_client();
    let client = &mut network.peers[place].client;
    client.connect(0);
    assert_eq!(
        client.handle_datagram(0, &out[..len]),
        Ok(Some(Event::Refused(ErrorCode::BadVersion)))
    );
    // Nothing but a Connect of another version is answered.
    for kind in (0..=u8::MAX).filter(|kind| *kind != Kind::Connect as u8) {
        let datagram = [b'M', b'T', 2, kind];
        let action = server.handle_datagram(0, 7, &datagram, &mut out);
        assert!(matches!(action, Action::Ignore(Rejected::Malformed(_))));
    }
}

#[test]
fn twenty_thousand_sessions_are_served_and_refused_in_bounded_time() {
    const SESSIONS: usize = 20_000;
    let mut sessions = vec![Session::new(); SESSIONS];
    let mut server = Server::new(SERVER, &mut sessions);
    let mut out = [0; ANSWER_LEN];
    let mut random = StdRng::seed_from_u64(1);
    let mut opened = 0;
    let mut offered = 0;
    while opened < SESSIONS {
        offered += 1;
        let connect = connect_datagram(random.random());
        if let Action::Answer {
            opened: Some(_), ..
        } = server.handle_datagram(0, 7, &connect, &mut out)
        {
            opened += 1;
        }
    }
    assert_eq!(
        (server.live_sessions(), offered),
        (SESSIONS, SESSIONS),
        "no chain was full"
    );
    let mut now_ns = 0;
    let mut steps = 0;
    while let Some(at) = server.next_timeout_ns() {
        now_ns = at;
        server.handle_timeout(now_ns);
        steps += 1;
    }
    assert!(now_ns <= 260 * MS, "{now_ns}");
    assert!(steps <= 2000, "{steps}");
    assert_eq!(
        std::iter::from_fn(|| server.poll_closed()).count(),
        SESSIONS
    );
}

#[test]
fn a_table_can_be_filled_and_emptied_over_and_over() {
    let mut network = Network::new(8);
    for round in 1..=5 {
        for _ in 0..8 {
            network.connected_client();
        }
        let late = network.add_client();
        assert_eq!(network.connect(late), [Event::Refused(ErrorCode::Busy)]);
        for peer in &mut network.peers {
            peer.client.disconnect();
        }
        network.pass(0);
        assert_eq!(
            (network.server.live_sessions(), network.closed.len()),
            (0, 8 * round)
        );
    }
}

#[test]
fn a_reused_slot_is_another_session() {
    let mut network = Network::new(1);
    let place = network.connected_client();
    let before = network.peers[place].client.session();
    network.peers[place].client.disconnect();
    network.pass(0);
    assert_eq!(network.connect(place), [Event::Connected]);
    let after = network.peers[place].client.session();
    assert_eq!(
        after,
        SessionId {
            generation: 2,
            ..before
        }
    );
    let mut datagram = [0; 64];
    let message = Message::Disconnect;
    let len = Datagram {
        session: before,
        request: RequestId(0),
        message,
    }
    .emit(&mut datagram)
    .unwrap();
    network.serve(place, &datagram[..len]);
    assert_eq!(network.rejected, [Rejected::OtherSession]);
    assert_eq!(network.server.live_sessions(), 1);
}

#[test]
fn a_connecting_client_takes_only_the_answer_to_its_own_connect() {
    let mut network = Network::new(1);
    let mut config = client_config(5);
    config.datagram_len = 1024;
    let place = network.add_client_with(config);
    let client = &mut network.peers[place].client;
    client.connect(0);
    let session = SessionId {
        index: 0,
        generation: 1,
        epoch: 1,
    };
    let accept = Accept {
        client_key: 5,
        datagram_len: 1024,
        slots: 1,
        idle_timeout_ms: 1,
    };
    let busy = |client_key| {
        Message::Error(Refusal {
            code: ErrorCode::Busy,
            client_key,
        })
    };
    for (session, message, result) in [
        (SessionId::NONE, busy(6), Err(Rejected::OtherSession)),
        (SessionId::NONE, busy(0), Err(Rejected::OtherSession)),
        (
            session,
            Message::Accept(Accept {
                client_key: 6,
                ..accept
            }),
            Err(Rejected::OtherSession),
        ),
        (
            session,
            Message::Accept(Accept {
                datagram_len: 1025,
                ..accept
            }),
            Err(Rejected::BadOffer),
        ),
        (session, Message::Accept(accept), Ok(Some(Event::Connected))),
    ] {
        let mut datagram = [0; 64];
        let len = Datagram {
            session,
            request: RequestId(0),
            message,
        }
        .emit(&mut datagram)
        .unwrap();
        assert_eq!(
            client.handle_datagram(0, &datagram[..len]),
            result,
            "{message:?}"
        );
    }
}
