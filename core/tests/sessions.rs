//! How sessions begin, are kept and end, over a network that loses and doubles.

use crate::network::{
    bytes_of, client_config, connect_datagram, is_reply, lose, Network, ECHO, MS, SERVER,
};
use mitosis_core::rpc::client::{ClientConfig, Event, RequestId};
use mitosis_core::rpc::server::{
    Action, Closed, Server, ServerConfig, ServerSlot, Session, ANSWER_LEN,
};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{
    Accept, Confirm, Connect, Datagram, ErrorCode, Kind, Message, Part, Refusal, MAX_CONTROL_LEN,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

fn refused(events: &[Event], code: ErrorCode) -> bool {
    matches!(events, [Event::Refused(refusal)] if refusal.code == code)
}

/// Whether the event says that the session is gone, and with it so many calls.
fn lost(event: &Event, calls: u32) -> bool {
    matches!(event, Event::Closed { error, lost }
        if error.code == ErrorCode::NoSuchSession && lost.len() == calls)
}

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
            (10 + 10 + 20) * MS,
            "{kind:?}: the interval doubles every second time"
        );
        assert!(is_reply(&network.call(place, ECHO, b"x")));
    }
}

#[test]
fn a_lost_confirm_is_made_up_for_by_the_next_datagram() {
    let mut network = Network::new(4);
    network.fate = lose(Kind::Confirm, 4);
    let idle = network.connected_client();
    let calling = network.connected_client();
    assert!(is_reply(&network.call(calling, ECHO, b"x")));
    // Longer than the handshake timeout: the idle client repeats its Confirm.
    assert_eq!(network.pass(500 * MS), []);
    assert!(is_reply(&network.call(idle, ECHO, b"x")));
    assert_eq!(network.server.counters().expired, 0);
}

#[test]
fn a_full_table_refuses_with_a_reason() {
    let mut network = Network::new(2);
    let first = network.connected_client();
    network.connected_client();
    let third = network.add_client();
    assert!(refused(&network.connect(third), ErrorCode::Busy));
    assert_eq!(network.server.counters().refused_busy, 1);

    network.peers[first].client.disconnect();
    network.pass(0);
    assert_eq!(
        network.closed,
        [Closed {
            session_index: 0,
            peer: 7,
            first_slot_index: 0,
            slots: 8
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
    assert!(refused(&network.connect(place), ErrorCode::Busy));
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
    assert!(is_reply(&network.call(place, ECHO, b"x")));
}

#[test]
fn a_dead_client_expires() {
    let mut network = Network::new(300);
    let half_open = network.add_client();
    network.fate = lose(Kind::Accept, 1);
    network.peers[half_open].client.connect(0);
    network.peers[half_open]
        .client
        .poll_transmit(0, &mut [0; MAX_CONTROL_LEN]);
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
    assert_eq!((network.closed.len(), network.closed[0].peer), (1, 7));
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
    assert!(lost(&network.call(place, ECHO, b"x"), 1));
    assert_eq!(network.connect(place), [Event::Connected]);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
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
    assert!(lost(&network.call(place, ECHO, b"y"), 1));
    assert_eq!(network.executed.len(), 1);
    assert_eq!(network.connect(place), [Event::Connected]);
    assert!(is_reply(&network.call(place, ECHO, b"z")));
}

#[test]
fn a_silent_server_is_noticed_by_an_idle_client() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    network.fate = lose(Kind::Ping, u32::MAX);
    let events = network.pass(1500 * MS);
    assert_eq!((events.len(), events[0].0), (1, place));
    assert!(lost(&events[0].1, 0));
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
        Message::Confirm(Confirm { tag: [0; 16] }),
        Message::Request {
            rpc_id: ECHO,
            part: Part::whole(b"stolen"),
        },
        Message::Fetch {
            message_len: 2000,
            offset: 984,
            parts: 1,
        },
    ] {
        let request = match message.kind() {
            Kind::Request | Kind::Fetch => 1,
            _ => 0,
        };
        network.serve(stranger, &bytes_of(session, request, 0, message));
    }
    assert_eq!(network.server.counters().no_such_session, 5);
    assert_eq!(network.executed, []);
    assert!(is_reply(&network.call(owner, ECHO, b"x")));
    assert!(is_reply(&network.call(stranger, ECHO, b"x")));
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
        is_reply(&network.events_of(place)[0]),
        "a saved reply is still sent"
    );
    assert_eq!(
        network.call(place, ECHO, b"y"),
        Event::Failed {
            request: RequestId(2),
            slot: 0,
            error: ErrorCode::GoingAway
        }
    );
    let late = network.add_client();
    assert!(refused(&network.connect(late), ErrorCode::GoingAway));
    assert_eq!(network.executed.len(), 1);
}

#[test]
fn a_connect_of_another_version_is_told_so() {
    let mut server = Server::new(SERVER, &mut [], &mut []);
    let mut out = [0; ANSWER_LEN];
    let action =
        server.handle_datagram(0, 7, &[b'M', b'T', 2, Kind::Connect as u8, 9, 9], &mut out);
    let Action::Answer { len, opened: None } = action else {
        panic!("{action:?}")
    };
    let refusal = Refusal::new(ErrorCode::BadVersion);
    assert_eq!(
        out[..len],
        bytes_of(SessionId::NONE, 0, 0, Message::Error(refusal))
    );
    let mut network = Network::new(1);
    let place = network.add_client();
    let client = &mut network.peers[place].client;
    client.connect(0);
    assert_eq!(
        client.handle_datagram(0, &out[..len]),
        Ok(Some(Event::Refused(refusal)))
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
    let mut slots = vec![ServerSlot::new(); SESSIONS + 1000];
    let memory = size_of_val(&sessions[..]) + size_of_val(&slots[..SESSIONS]);
    assert_eq!(memory / SESSIONS, 96, "bytes a session of one slot");
    let mut server = Server::new(SERVER, &mut sessions, &mut slots);
    let mut out = [0; ANSWER_LEN];
    let mut random = StdRng::seed_from_u64(1);
    let mut opened = Vec::new();
    for peer in 0..SESSIONS as u32 {
        let connect = connect_datagram(random.random());
        let action = server.handle_datagram(0, peer, &connect, &mut out);
        let Action::Answer {
            len,
            opened: Some(_),
        } = action
        else {
            panic!("{peer}: {action:?}")
        };
        opened.push(Datagram::parse(&out[..len]).unwrap().session);
    }
    assert_eq!(server.live_sessions(), SESSIONS, "no chain was full");
    let late = connect_datagram(random.random());
    let action = server.handle_datagram(0, 1, &late, &mut out);
    assert!(matches!(action, Action::Answer { opened: None, .. }));
    for (peer, session) in opened.iter().enumerate() {
        let message = Message::Request {
            rpc_id: ECHO,
            part: Part::whole(b"x"),
        };
        let request = bytes_of(*session, 1, 0, message);
        let action = server.handle_datagram(0, peer as u32, &request, &mut out);
        let Action::Dispatch(request) = action else {
            panic!("{peer}: {action:?}")
        };
        let sent = server.complete(&request.dispatched, Ok(1), &mut out);
        assert_eq!(sent.unwrap().peer, peer as u32);
    }
    let mut now_ns = 0;
    let mut steps = 0;
    while let Some(at) = server.next_timeout_ns() {
        now_ns = at;
        server.handle_timeout(now_ns);
        steps += 1;
    }
    assert!(now_ns <= 1060 * MS, "{now_ns}");
    assert!(steps <= 10_000, "{steps}");
    assert_eq!(
        std::iter::from_fn(|| server.poll_closed()).count(),
        SESSIONS
    );
}

#[test]
fn a_connect_without_room_for_its_answer_opens_nothing() {
    let mut sessions = [Session::new()];
    let mut slots = [ServerSlot::new()];
    let mut server = Server::new(SERVER, &mut sessions, &mut slots);
    let connect = connect_datagram(1);
    for len in [0, ANSWER_LEN - 1] {
        let action = server.handle_datagram(0, 7, &connect, &mut vec![0; len]);
        assert_eq!(action, Action::Ignore(Rejected::NoRoom), "{len}");
    }
    assert_eq!((server.live_sessions(), server.counters().no_room), (0, 2));
    // More room than it takes is as good.
    let action = server.handle_datagram(0, 7, &connect, &mut [0; ANSWER_LEN + 1]);
    assert!(
        matches!(
            action,
            Action::Answer {
                opened: Some(_),
                ..
            }
        ),
        "{action:?}"
    );
}

#[test]
fn half_open_sessions_of_a_peer_are_few() {
    let mut sessions = vec![Session::new(); 100];
    let mut slots = vec![ServerSlot::new(); 100];
    let mut server = Server::new(SERVER, &mut sessions, &mut slots);
    let mut out = [0; ANSWER_LEN];
    let mut opened = |server: &mut Server<'_>, peer, key| {
        let connect = connect_datagram(key);
        let action = server.handle_datagram(0, peer, &connect, &mut out);
        let Action::Answer { len, opened } = action else {
            panic!("{action:?}")
        };
        let session = Datagram::parse(&out[..len]).unwrap().session;
        opened.map(|_| session)
    };
    let first = opened(&mut server, 7, 1).unwrap();
    for key in 2..=8 {
        assert!(opened(&mut server, 7, key).is_some());
    }
    assert!(opened(&mut server, 7, 9).is_none());
    assert_eq!(server.counters().refused_busy, 1);
    assert!(opened(&mut server, 8, 9).is_some(), "of another peer");
    // Once one is confirmed, there is room for the next; and likewise when they expire.
    let ping = bytes_of(first, 0, 0, Message::Ping);
    server.handle_datagram(0, 7, &ping, &mut [0; ANSWER_LEN]);
    assert!(opened(&mut server, 7, 9).is_some());
    assert!(opened(&mut server, 7, 10).is_none());
    while server.live_sessions() > 1 {
        let at = server.next_timeout_ns().unwrap();
        server.handle_timeout(at);
        while server.poll_closed().is_some() {}
    }
    for key in 11..=18 {
        assert!(opened(&mut server, 7, key).is_some(), "{key}");
    }
}

#[test]
fn a_client_that_connects_again_has_one_session() {
    let mut network = Network::new(4);
    let place = network.connected_client();
    let before = network.peers[place].client.session();
    network.call(place, ECHO, b"x");
    // The client forgets its session without a word.
    assert_eq!(network.connect(place), [Event::Connected]);
    assert_ne!(network.peers[place].client.session(), before);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
    assert_eq!(network.server.live_sessions(), 1);
    assert_eq!(network.server.counters().superseded, 1);
    // A late datagram of the old session does nothing to the new one.
    network.serve(place, &bytes_of(before, 0, 0, Message::Disconnect));
    assert_eq!(network.server.live_sessions(), 1);
}

#[test]
fn a_connect_that_asks_for_something_else_does_not_get_the_session_of_another() {
    let honest = Connect {
        client_key: 5,
        client_nonce: client_config(5).nonce + 1,
        datagram_len: 4096,
        slots: 8,
        credits: 8,
        max_message_len: 1_000_000,
        tag: None,
    };
    let config = ClientConfig {
        max_message_len: honest.max_message_len,
        ..client_config(5)
    };
    let changes: [fn(&mut Connect); 6] = [
        |connect| connect.credits += 1,
        |connect| connect.slots *= 2,
        |connect| connect.datagram_len = 512,
        |connect| connect.max_message_len += 1,
        |connect| connect.max_message_len = 0,
        |_| {},
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut network = Network::new(4);
        let place = network.add_client_with(config);
        let mut other = honest;
        change(&mut other);
        let first = bytes_of(SessionId::NONE, 0, 0, Message::Connect(other));
        // Its answer is lost.
        let from = network.peers[place].id;
        let answer = network
            .server
            .handle_datagram(0, from, &first, &mut [0; ANSWER_LEN]);
        assert!(matches!(answer, Action::Answer { .. }), "{answer:?}");
        assert_eq!(network.connect(place), [Event::Connected], "{index}");
        assert!(is_reply(&network.call(place, ECHO, &[7; 100])), "{index}");
        let counters = network.server.counters();
        let same = u64::from(other == honest);
        assert_eq!(counters.repeated_connects, same, "{index}");
        assert_eq!(counters.connects, 2 - same, "{index}");
    }
}

#[test]
fn a_table_can_be_filled_and_emptied_over_and_over() {
    let mut network = Network::new(8);
    for round in 1..=5 {
        for _ in 0..8 {
            network.connected_client();
        }
        let late = network.add_client();
        assert!(refused(&network.connect(late), ErrorCode::Busy));
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
    network.serve(place, &bytes_of(before, 0, 0, Message::Disconnect));
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
    let nonce = config.nonce + 1;
    let accept = Accept {
        client_nonce: nonce,
        server_nonce: 0,
        datagram_len: 1024,
        slots: 8,
        credits: 8,
        max_message_len: 100,
        idle_timeout_ms: 1,
        tag: None,
    };
    let busy = |client_nonce| {
        Message::Error(Refusal {
            client_nonce,
            ..Refusal::new(ErrorCode::Busy)
        })
    };
    let offer = |change: fn(&mut Accept)| {
        let mut accept = accept;
        change(&mut accept);
        Message::Accept(accept)
    };
    for (session, message, result) in [
        (
            SessionId::NONE,
            busy(nonce - 1),
            Err(Rejected::OtherSession),
        ),
        (SessionId::NONE, busy(0), Err(Rejected::OtherSession)),
        (
            session,
            offer(|accept| accept.client_nonce -= 1),
            Err(Rejected::OtherSession),
        ),
        (
            session,
            offer(|accept| accept.datagram_len += 1),
            Err(Rejected::BadOffer),
        ),
        (
            session,
            offer(|accept| accept.slots += 1),
            Err(Rejected::BadOffer),
        ),
        (
            session,
            offer(|accept| accept.credits += 1),
            Err(Rejected::BadOffer),
        ),
        (
            session,
            offer(|accept| accept.max_message_len = u32::MAX),
            Err(Rejected::BadOffer),
        ),
        (session, Message::Accept(accept), Ok(Some(Event::Connected))),
    ] {
        let datagram = bytes_of(session, 0, 0, message);
        assert_eq!(client.handle_datagram(0, &datagram), result, "{message:?}");
    }
}

#[test]
fn a_datagram_of_a_session_says_whose_it_is() {
    let mut network = Network::new(4);
    for place in [network.connected_client(), network.connected_client()] {
        let peer = &network.peers[place];
        let session = peer.client.session();
        let ping = bytes_of(session, 0, 0, Message::Ping);
        assert_eq!(network.server.peer_of(&ping), Some(peer.id));
        assert_eq!(network.server.peer_of(&ping[..15]), None);
        let another = SessionId {
            generation: session.generation.wrapping_add(1),
            ..session
        };
        let ping = bytes_of(another, 0, 0, Message::Ping);
        assert_eq!(network.server.peer_of(&ping), None);
    }
}
