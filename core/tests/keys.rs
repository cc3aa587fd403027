//! Who may be a member: handshakes with and without a cluster key (wire.md §7.5).

use crate::network::{bytes_of, client_config, is_reply, lose, Network, ECHO, MS, SERVER};
use mitosis_core::rpc::client::{ClientConfig, Event};
use mitosis_core::rpc::server::ServerConfig;
use mitosis_core::rpc::Rejected;
use mitosis_core::session::{ClusterKey, SessionId};
use mitosis_core::wire::{
    Accept, Confirm, Connect, Datagram, ErrorCode, Kind, Message, Part, Reason, HEADER_LEN,
    MAX_CONTROL_LEN,
};

const KEY: ClusterKey = ClusterKey([1; 16]);
const OTHER: ClusterKey = ClusterKey([2; 16]);

fn keyed() -> Network {
    Network::with_server(
        ServerConfig {
            cluster_key: Some(KEY),
            ..SERVER
        },
        16,
    )
}

fn add(network: &mut Network, cluster_key: Option<ClusterKey>) -> usize {
    let key = network.peers.len() as u64 + 1;
    network.add_client_with(ClientConfig {
        cluster_key,
        ..client_config(key)
    })
}

fn not_authorised(events: &[Event], reason: Reason) -> bool {
    matches!(events, [Event::Refused(refusal)]
        if refusal.code == ErrorCode::NotAuthorised && refusal.reason == Some(reason))
}

/// The datagram that the client would send next.
fn next_of(network: &mut Network, place: usize) -> Vec<u8> {
    let mut header = [0; MAX_CONTROL_LEN];
    let client = &mut network.peers[place].client;
    let transmit = client.poll_transmit(network.now_ns, &mut header).unwrap();
    header[..transmit.header_len].to_vec()
}

/// What the server answers to bytes that come from the address of the client at `place`.
fn answer_to(network: &mut Network, place: usize, datagram: &[u8]) -> Vec<u8> {
    let mut out = [0; MAX_CONTROL_LEN];
    let peer = network.peers[place].id;
    let now_ns = network.now_ns;
    let action = network
        .server
        .handle_datagram(now_ns, peer, datagram, &mut out);
    match action {
        mitosis_core::rpc::server::Action::Answer { len, .. } => out[..len].to_vec(),
        _ => Vec::new(),
    }
}

#[test]
fn a_member_is_served() {
    let mut network = keyed();
    let place = add(&mut network, Some(KEY));
    assert_eq!(network.connect(place), [Event::Connected]);
    for _ in 0..3 {
        assert!(is_reply(&network.call(place, ECHO, &[5; 3000])));
    }
    assert_eq!(network.sent(Kind::Confirm), 1);
    assert_eq!(network.rejected, []);
}

#[test]
fn others_are_refused_with_the_reason() {
    let mut network = keyed();
    let wrong = add(&mut network, Some(OTHER));
    let missing = add(&mut network, None);
    assert!(not_authorised(&network.connect(wrong), Reason::WrongKey));
    assert!(not_authorised(
        &network.connect(missing),
        Reason::KeyRequired
    ));
    let mut open = Network::new(4);
    let superfluous = add(&mut open, Some(KEY));
    assert!(not_authorised(
        &open.connect(superfluous),
        Reason::NoKeyHere
    ));
    let counters = network.server.counters();
    assert_eq!(
        (counters.refused_wrong_key, counters.refused_key_required),
        (1, 1)
    );
    assert_eq!(open.server.counters().refused_no_key_here, 1);
    assert_eq!(
        network.server.live_sessions() + open.server.live_sessions(),
        0
    );
}

#[test]
fn every_bit_of_a_connect_is_vouched_for() {
    let mut network = keyed();
    let place = add(&mut network, Some(KEY));
    network.peers[place].client.connect(0);
    let connect = next_of(&mut network, place);
    for bit in HEADER_LEN * 8..connect.len() * 8 {
        let mut changed = connect.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let answer = answer_to(&mut network, place, &changed);
        let answer = Datagram::parse(&answer).unwrap();
        assert!(matches!(answer.message, Message::Error(_)), "bit {bit}");
    }
    assert_eq!(network.server.live_sessions(), 0);
}

#[test]
fn every_bit_of_an_accept_is_vouched_for() {
    let mut network = keyed();
    let place = add(&mut network, Some(KEY));
    network.peers[place].client.connect(0);
    let connect = next_of(&mut network, place);
    let accept = answer_to(&mut network, place, &connect);
    let client = &mut network.peers[place].client;
    for bit in 32..accept.len() * 8 {
        let mut changed = accept.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(client.handle_datagram(0, &changed).is_err(), "bit {bit}");
    }
    assert_eq!(
        client.handle_datagram(0, &accept),
        Ok(Some(Event::Connected))
    );
}

#[test]
fn a_server_without_the_key_is_not_believed() {
    let mut network = Network::new(1);
    let place = add(&mut network, Some(KEY));
    let open = add(&mut network, None);
    let session = SessionId {
        index: 0,
        generation: 1,
        epoch: 1,
    };
    for (place, tag) in [(place, None), (place, Some([9; 16])), (open, Some([9; 16]))] {
        network.peers[place].client.connect(0);
        let connect = next_of(&mut network, place);
        let Message::Connect(Connect { client_nonce, .. }) =
            Datagram::parse(&connect).unwrap().message
        else {
            panic!()
        };
        let accept = Message::Accept(Accept {
            client_nonce,
            server_nonce: 0,
            datagram_len: 1024,
            slots: 1,
            credits: 1,
            max_message_len: 100,
            idle_timeout_ms: 1,
            tag,
        });
        let client = &mut network.peers[place].client;
        assert_eq!(
            client.handle_datagram(0, &bytes_of(session, 0, 0, accept)),
            Err(Rejected::BadTag)
        );
    }
}

#[test]
fn a_replayed_connect_yields_a_session_that_nobody_can_open() {
    let mut network = keyed();
    let place = add(&mut network, Some(KEY));
    network.peers[place].client.connect(0);
    let connect = next_of(&mut network, place);
    let accept = answer_to(&mut network, place, &connect);
    let client = &mut network.peers[place].client;
    assert_eq!(
        client.handle_datagram(0, &accept),
        Ok(Some(Event::Connected))
    );
    let confirm = next_of(&mut network, place);
    assert!(!answer_to(&mut network, place, &confirm).is_empty());
    network.peers[place].client.disconnect();
    network.settle();
    assert_eq!(network.server.live_sessions(), 0);

    // Everything that was overheard is said again from the same address.
    let again = answer_to(&mut network, place, &connect);
    let session = Datagram::parse(&again).unwrap().session;
    assert_ne!(again, accept, "another session, another nonce");
    assert_eq!(network.server.live_sessions(), 1);
    let refused = answer_to(&mut network, place, &confirm);
    let refused = Datagram::parse(&refused).unwrap();
    assert!(
        matches!(refused.message, Message::Error(refusal) if refusal.code == ErrorCode::NoSuchSession),
        "the old Confirm names the old session"
    );
    let Message::Confirm(Confirm { tag }) = Datagram::parse(&confirm).unwrap().message else {
        panic!()
    };
    let forged = bytes_of(session, 0, 0, Message::Confirm(Confirm { tag }));
    let refused = answer_to(&mut network, place, &forged);
    let refused = Datagram::parse(&refused).unwrap();
    assert!(matches!(refused.message, Message::Error(refusal)
        if refusal.code == ErrorCode::NotAuthorised && refusal.reason == Some(Reason::Replayed)));
    assert_eq!(network.server.counters().refused_replayed, 1);

    // Nothing else opens it, nor keeps it.
    let request = Message::Request {
        rpc_id: ECHO,
        part: Part::whole(b"x"),
    };
    let fetch = Message::Fetch {
        message_len: 2000,
        offset: 984,
        parts: 1,
    };
    for (number, message) in [
        (1, request),
        (1, fetch),
        (0, Message::Ping),
        (0, Message::Disconnect),
    ] {
        network.serve(place, &bytes_of(session, number, 0, message));
        assert_eq!(network.rejected.last(), Some(&Rejected::Unconfirmed));
    }
    assert_eq!(network.executed, []);
    assert_eq!(network.server.counters().ignored_unconfirmed, 4);
    network.pass_without_clients(260 * MS);
    assert_eq!(network.server.live_sessions(), 0);
}

#[test]
fn a_replayed_connect_does_not_touch_the_live_session() {
    let mut network = keyed();
    let place = add(&mut network, Some(KEY));
    network.peers[place].client.connect(0);
    let old = next_of(&mut network, place);
    // The client gives up and connects with another nonce; then the old Connect is replayed.
    assert_eq!(network.connect(place), [Event::Connected]);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
    for _ in 0..20 {
        answer_to(&mut network, place, &old);
    }
    assert_eq!(network.server.live_sessions(), 2);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
    network.pass(300 * MS);
    assert_eq!(network.server.live_sessions(), 1);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
}

#[test]
fn a_lost_confirm_is_repeated_until_heard() {
    for kind in [Kind::Confirm, Kind::Pong] {
        let mut network = keyed();
        network.fate = lose(kind, 3);
        let place = add(&mut network, Some(KEY));
        assert_eq!(network.connect(place), [Event::Connected]);
        network.pass(150 * MS);
        assert_eq!(network.sent(Kind::Confirm), 4);
        assert!(is_reply(&network.call(place, ECHO, b"x")));
    }
    // Also while a call is outstanding, which waits for it.
    let mut network = keyed();
    network.fate = lose(Kind::Confirm, 2);
    let place = add(&mut network, Some(KEY));
    assert_eq!(network.connect(place), [Event::Connected]);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
    assert_eq!(network.executed.len(), 1);
    assert!(network.server.counters().ignored_unconfirmed > 0);
}

#[test]
fn a_member_finds_its_way_back_after_a_restart() {
    let mut network = keyed();
    let place = add(&mut network, Some(KEY));
    assert_eq!(network.connect(place), [Event::Connected]);
    network.restart_server(ServerConfig {
        epoch: 0xe1,
        random_seed: 6,
        cluster_key: Some(KEY),
        ..SERVER
    });
    assert!(matches!(
        network.call(place, ECHO, b"x"),
        Event::Closed { .. }
    ));
    assert_eq!(network.connect(place), [Event::Connected]);
    assert!(is_reply(&network.call(place, ECHO, b"x")));
}

#[test]
fn a_key_is_not_printed() {
    assert_eq!(format!("{KEY:?}"), "ClusterKey(secret)");
}
