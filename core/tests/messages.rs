//! Messages of several datagrams and windows of calls (wire.md §8.2, §8.3).

use crate::network::{
    bytes_of, client_config, is_reply, lose, Fate, Network, ECHO, FAILING, LENGTH, MS, SERVER,
};
use mitosis_core::rpc::client::{CallError, ClientConfig, Event, Granted, RequestId};
use mitosis_core::rpc::server::{Action, Closed, ServerConfig, ANSWER_LEN};
use mitosis_core::rpc::Rejected;
use mitosis_core::wire::{ErrorCode, Kind, Message, Part, HEADER_LEN, MAX_FETCH, MAX_MESSAGE};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// One client whose datagrams are so long.
fn pair(datagram_len: u16, credits: u16) -> (Network, usize) {
    let mut network = Network::with_server(
        ServerConfig {
            datagram_len,
            ..SERVER
        },
        2,
    );
    let place = network.add_client_with(ClientConfig {
        datagram_len,
        credits,
        ..client_config(1)
    });
    assert_eq!(network.connect(place), [Event::Connected]);
    (network, place)
}

pub(crate) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|place| (place * 7 % 253) as u8).collect()
}

#[test]
fn messages_of_every_length_travel_both_ways() {
    for datagram_len in [1024, 2048, 4096_u16] {
        let full = usize::from(datagram_len) - HEADER_LEN;
        let lens = [0, 1, full - 1, full, full + 1, 2 * full, 5 * full + 3];
        let long = [MAX_MESSAGE as usize];
        for (place_of, len) in lens.into_iter().chain(long).enumerate() {
            let (mut network, place) = pair(datagram_len, 1 + place_of as u16 * 4);
            let payload = bytes(len);
            let event = network.call(place, ECHO, &payload);
            let Event::Reply {
                message_len,
                complete: true,
                ..
            } = event
            else {
                panic!("{event:?}")
            };
            assert_eq!(message_len as usize, len);
            assert_eq!(network.executed, [(ECHO, payload)]);
            let parts = len.div_ceil(full).max(1) as u32;
            assert_eq!(network.sent(Kind::Request), parts);
            // Credits come back in runs, and parts of the reply are asked for in runs.
            let (returns, wishes) = runs(&network.peers[place].client.granted(), parts);
            assert_eq!(network.sent(Kind::CreditReturn), returns, "{len}");
            assert_eq!(network.sent(Kind::Fetch), wishes, "{len}");
            assert_eq!(network.sent(Kind::Reply), parts);
            assert_eq!(network.rejected, []);
            assert_eq!(network.now_ns, 0, "nothing waited for a timer");
        }
    }
}

/// How many CreditReturns and Fetches a message of so many parts takes that nothing disturbs.
fn runs(granted: &Granted, parts: u32) -> (u32, u32) {
    let (credits, slots) = (u32::from(granted.credits), u32::from(granted.slots));
    let run = match parts * slots <= credits {
        true => parts,
        false => 1 + (credits / (2 * slots)).min(15),
    };
    let returns = (parts - 1) / run;
    // As many as no return has answered come by themselves.
    let unasked = 1 + (parts - 1) % run;
    let (mut left, mut in_flight, mut wishes) = (parts - unasked, unasked - 1, 0);
    while left > 0 {
        if in_flight > credits / 2 {
            in_flight = credits / 2;
        }
        let asked = left.min(credits - in_flight).min(MAX_FETCH);
        left -= asked;
        in_flight += asked;
        wishes += 1;
    }
    (returns, wishes)
}

#[test]
fn a_reply_may_be_long_where_the_request_is_short() {
    let (mut network, place) = pair(2048, 8);
    let event = network.call(place, LENGTH, &100_000_u32.to_le_bytes());
    assert!(is_reply(&event));
    assert_eq!(network.sent(Kind::Request), 1);
    // 49 parts are asked for with 8 credits: 8 at once, and 4 whenever half of them are back.
    assert_eq!(network.sent(Kind::Fetch), 1 + 41_u32.div_ceil(4));
}

#[test]
fn any_part_can_be_lost_once() {
    for kind in [Kind::Request, Kind::CreditReturn, Kind::Reply, Kind::Fetch] {
        for lost in 1..=6 {
            let (mut network, place) = pair(1024, 3);
            let sent = network.sent[kind as usize];
            network.fate = Box::new(move |of, nth| match of == kind && nth == sent + lost {
                true => Fate::Lost,
                false => Fate::Arrives,
            });
            let payload = bytes(5 * 984 + 1);
            assert!(
                is_reply(&network.call(place, ECHO, &payload)),
                "{kind:?} {lost}"
            );
            assert_eq!(network.executed, [(ECHO, payload)]);
            assert_eq!(network.peers[place].client.in_flight(), 0);
        }
    }
}

#[test]
fn a_window_of_calls_is_answered_in_any_order() {
    let (mut network, place) = pair(1024, 32);
    network.late = true;
    let requests: Vec<_> = (0..8_u8)
        .map(|number| network.start_call(place, ECHO, &vec![number; 500 * usize::from(number)]))
        .collect();
    assert_eq!(network.peers[place].client.free_slot(), None);
    assert_eq!(network.settle(), []);
    assert_eq!(network.pending.len(), 8, "all are executed at once");
    // The last that was dispatched is answered first; the others are still waited for.
    for left in (0..8).rev() {
        network.finish(left);
        let events = network.settle();
        assert_eq!(events.len(), 1);
        assert!(is_reply(&events[0].1));
    }
    assert_eq!(network.executed.len(), 8);
    assert_eq!(requests.last(), Some(&RequestId(8)));
    assert_eq!(network.peers[place].client.in_flight(), 0);
}

#[test]
fn a_late_handler_is_waited_for_and_runs_once() {
    let (mut network, place) = pair(1024, 8);
    network.late = true;
    let payload = bytes(3000);
    network.start_call(place, ECHO, &payload);
    assert_eq!(network.pass(300 * MS), []);
    assert!(network.sent(Kind::Request) > 4, "the last part is repeated");
    assert_eq!(
        network.server.counters().ignored_executing,
        u64::from(network.sent(Kind::Request)) - 4
    );
    assert_eq!(network.pending.len(), 1);
    network.finish(0);
    assert!(is_reply(&network.events_of(place)[0]));
    assert_eq!(network.executed.len(), 1);
}

#[test]
fn a_call_that_is_given_up_leaves_its_slot_to_the_next() {
    for len in [10, 3000] {
        let (mut network, place) = pair(1024, 8);
        network.late = true;
        network.start_call(place, ECHO, &bytes(len));
        let request = RequestId(1);
        assert_eq!(
            network.events_of(place),
            [Event::TimedOut { request, slot: 0 }]
        );
        // The handler still runs: the slot's next call waits for it, unanswered.
        network.start_call(place, ECHO, &bytes(len + 1));
        network.pass(20 * MS);
        assert_eq!(network.executed.len(), 1);
        network.finish(0);
        network.late = false;
        assert!(is_reply(&network.events_of(place)[0]));
        assert_eq!(network.executed.len(), 2);
        assert!(network.rejected.contains(&Rejected::StillExecuting));
    }
}

#[test]
fn half_a_request_is_forgotten_when_the_next_begins() {
    let (mut network, place) = pair(1024, 1);
    network.start_call(place, ECHO, &bytes(3000));
    // Only the first part arrives.
    let sent = network.sent(Kind::Request);
    network.fate = Box::new(
        move |kind, nth| match kind == Kind::Request && nth > sent + 1 {
            true => Fate::Lost,
            false => Fate::Arrives,
        },
    );
    assert!(matches!(
        network.events_of(place)[..],
        [Event::TimedOut { .. }]
    ));
    network.fate = lose(Kind::Request, 0);
    for len in [2500, 10] {
        assert!(is_reply(&network.call(place, ECHO, &bytes(len))));
    }
    assert_eq!(network.executed.len(), 2);
}

#[test]
fn without_memory_a_long_request_fails_as_busy() {
    let (mut network, place) = pair(1024, 4);
    network.no_memory = true;
    // The first refusal is lost; the saved one is sent again.
    network.fate = lose(Kind::Error, 1);
    assert_eq!(
        network.call(place, ECHO, &bytes(5000)),
        Event::Failed {
            request: RequestId(1),
            slot: 0,
            error: ErrorCode::Busy
        }
    );
    assert_eq!(network.executed, []);
    // It is given up with its first part; those that follow are answered with the saved Error.
    assert_eq!(network.server.counters().requests, 0);
    assert_eq!(network.server.counters().segments, 1);
    network.no_memory = false;
    assert!(is_reply(&network.call(place, ECHO, &bytes(5000))));
}

#[test]
fn a_handler_fails_after_a_long_request() {
    let (mut network, place) = pair(1024, 4);
    network.fate = lose(Kind::Error, 2);
    assert_eq!(
        network.call(place, FAILING, &bytes(5000)),
        Event::Failed {
            request: RequestId(1),
            slot: 0,
            error: ErrorCode::HandlerFailed
        }
    );
    assert_eq!(network.executed.len(), 1);
}

#[test]
fn a_restart_amid_a_window_names_every_lost_call() {
    let (mut network, place) = pair(1024, 8);
    network.late = true;
    for _ in 0..5 {
        network.start_call(place, ECHO, b"x");
    }
    network.settle();
    network.restart_server(ServerConfig {
        epoch: 0xe1,
        ..SERVER
    });
    network.late = false;
    let events = network.events_of(place);
    let [Event::Closed { error, lost }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(error.code, ErrorCode::NoSuchSession);
    assert_eq!(lost.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!(network.connect(place), [Event::Connected]);
    assert_eq!(
        network.start_call(place, ECHO, b"y"),
        RequestId(6),
        "the numbers go on"
    );
    assert!(is_reply(&network.events_of(place)[0]));
}

#[test]
fn a_session_that_ends_while_several_handlers_run_drains() {
    let (mut network, place) = pair(1024, 8);
    network.late = true;
    for _ in 0..3 {
        network.start_call(place, ECHO, b"x");
    }
    network.settle();
    network.peers[place].client.disconnect();
    network.settle();
    assert_eq!(network.server.live_sessions(), 0);
    for left in (0..3).rev() {
        assert_eq!(network.closed, []);
        network.finish(left);
    }
    assert_eq!(
        network.closed,
        [Closed {
            session_index: 0,
            peer: 7,
            first_slot_index: 0,
            slots: 8
        }]
    );
    assert_eq!(network.sent(Kind::Reply), 0);
}

#[test]
fn wishes_are_checked() {
    let (mut network, place) = pair(1024, 8);
    let session = network.peers[place].client.session();
    assert!(is_reply(&network.call(
        place,
        LENGTH,
        &3000_u32.to_le_bytes()
    )));
    let replies = network.sent(Kind::Reply);
    let fetch = |message_len, offset| Message::Fetch {
        message_len,
        offset,
        parts: 1,
    };
    network.serve(place, &bytes_of(session, 1, 0, fetch(3000, 984)));
    assert_eq!(network.sent(Kind::Reply), replies + 1);
    for (slot, message) in [
        (0, fetch(3001, 984)),
        (0, fetch(3000, 983)),
        (8, fetch(3000, 984)),
    ] {
        network.serve(place, &bytes_of(session, 1, slot, message));
    }
    assert_eq!(network.server.counters().bad_requests, 3);
    network.serve(place, &bytes_of(session, 2, 0, fetch(3000, 984)));
    network.serve(place, &bytes_of(session, 1, 1, fetch(3000, 984)));
    assert_eq!(network.server.counters().ignored_stale, 2);
    assert_eq!(network.sent(Kind::Reply), replies + 1);

    // As many parts as are asked for, but none behind the end.
    for (offset, parts, sent) in [(984, 2, 2), (984, 3, 3), (984, MAX_FETCH, 3), (2952, 2, 1)] {
        let replies = network.sent(Kind::Reply);
        let fetch = Message::Fetch {
            message_len: 3000,
            offset,
            parts,
        };
        network.serve(place, &bytes_of(session, 1, 0, fetch));
        assert_eq!(network.sent(Kind::Reply), replies + sent);
    }
}

#[test]
fn parts_that_are_not_taken_are_forgotten() {
    let (mut network, place) = pair(1024, 8);
    let session = network.peers[place].client.session();
    let asked = 3000_u32.to_le_bytes();
    assert!(is_reply(&network.call(place, LENGTH, &asked)));
    let fetch = Message::Fetch {
        message_len: 3000,
        offset: 984,
        parts: 3,
    };
    let peer = network.peers[place].id;
    let mut out = [0; ANSWER_LEN];
    let fetch = bytes_of(session, 1, 0, fetch);
    let server = &mut network.server;
    let first = server.handle_datagram(0, peer, &fetch, &mut out);
    assert!(matches!(first, Action::Send(sent) if sent.payload == (984..1968)));
    let next = server.poll_transmit(&mut out).unwrap();
    assert_eq!(next.payload, 1968..2952);
    assert!(next.again, "it was sent with the call");
    // The slot has a new request: what was left of the old reply is nobody's.
    assert!(is_reply(&network.call(place, LENGTH, &asked)));
    assert_eq!(network.server.poll_transmit(&mut out), None);
}

#[test]
fn a_reply_comes_once_although_its_request_was_repeated() {
    let payload = bytes(5 * 984);
    for credits in [3, 8, 40] {
        // The handler takes longer than the client waits before it repeats the request.
        let (mut network, place) = pair(1024, credits);
        network.late = true;
        network.start_call(place, ECHO, &payload);
        network.settle();
        assert_eq!(network.pass(300 * MS), []);
        assert!(network.sent(Kind::Request) > 5, "it was repeated");
        network.finish(0);
        network.settle();
        assert_eq!(network.sent(Kind::Reply), 5, "{credits}");

        // Its first part is lost, so that all are new to the server when they come again.
        let (mut network, place) = pair(1024, credits);
        network.fate = lose(Kind::Request, 1);
        assert!(is_reply(&network.call(place, ECHO, &payload)));
        assert_eq!(network.sent(Kind::Reply), 5, "{credits}");
    }
}

#[test]
fn parts_of_replies_are_checked() {
    let (mut network, place) = pair(1024, 8);
    network.fate = lose(Kind::Fetch, u32::MAX);
    network.start_call(place, LENGTH, &3000_u32.to_le_bytes());
    network.settle();
    let client = &mut network.peers[place].client;
    let session = client.session();
    let part = |message_len, offset, len: usize| {
        let payload = &[0; 4096][..len];
        let part = Part {
            message_len,
            offset,
            payload,
        };
        bytes_of(session, 1, 0, Message::Reply(part))
    };
    for (datagram, why) in [
        (part(3000, 0, 984), Rejected::StaleRequest),
        (part(3000, 1968, 984), Rejected::OutOfOrder),
        (part(3001, 984, 984), Rejected::BadPart),
        (part(3000, 984, 983), Rejected::BadPart),
        (part(3000, 983, 984), Rejected::StaleRequest),
        (part(MAX_MESSAGE, 984, 985), Rejected::BadPart),
    ] {
        assert_eq!(client.handle_datagram(0, &datagram), Err(why));
    }
    assert!(matches!(
        client.handle_datagram(0, &part(3000, 984, 984)),
        Ok(Some(Event::Reply {
            offset: 984,
            complete: false,
            ..
        }))
    ));
}

#[test]
fn a_long_message_does_not_hold_up_a_short_one() {
    let (mut network, place) = pair(1024, 4);
    network.start_call(place, ECHO, &bytes(1 << 20));
    network.start_call(place, ECHO, b"short");
    let events = network.settle();
    assert!(matches!(events[0].1, Event::Reply { slot: 1, .. }));
    assert!(matches!(events[1].1, Event::Reply { slot: 0, .. }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Windows of messages of any length under any faults: each is executed once and answered with
    /// its own reply, and nothing is left over.
    #[test]
    fn under_any_faults_a_window_is_answered_once(
        seed: u64,
        loss in 0..35_u32,
        doubling in 0..30_u32,
        reordering in 0..30_u32,
        late in 0..40_u32,
        datagram_len in prop::sample::select(vec![256_u16, 1024, 2048, 4096]),
        slots in 1..=16_u16,
        credits in 1..=20_u16,
    ) {
        let mut random = StdRng::seed_from_u64(seed);
        let config = ServerConfig { datagram_len, idle_timeout_ns: u64::MAX / 2, ..SERVER };
        let mut network = Network::with_slots(config, 2, 32);
        let place = network.add_client_with(ClientConfig {
            slots,
            credits,
            connect_timeout_ns: u64::MAX,
            call_timeout_ns: u64::MAX,
            ..client_config(seed)
        });
        let mut faults = StdRng::seed_from_u64(seed ^ 1);
        network.fate = Box::new(move |_, _| match faults.random_range(0..100) {
            dice if dice < loss => Fate::Lost,
            dice if dice < loss + doubling => Fate::Doubled,
            dice if dice < loss + doubling + reordering => Fate::Overtaken,
            _ => Fate::Arrives,
        });
        network.late = late > 0;
        prop_assert_eq!(network.connect(place), [Event::Connected]);
        let mut called = Vec::new();
        let mut answered = 0;
        let mut steps = 0;
        while answered < 40 {
            while called.len() < 40 && network.peers[place].client.free_slot().is_some() {
                let most = if random.random_range(0..4) == 0 { 60_000 } else { 100 };
                let mut payload = bytes(random.random_range(4..most));
                payload[..4].copy_from_slice(&(called.len() as u32 * 100).to_le_bytes());
                let rpc_id = if random.random_range(0..2) == 0 { ECHO } else { LENGTH };
                network.start_call(place, rpc_id, &payload);
                called.push((rpc_id, payload));
            }
            let mut events = network.settle();
            if events.is_empty() {
                if !network.pending.is_empty() && random.random_range(0..100) >= late {
                    let which = random.random_range(0..network.pending.len());
                    network.finish(which);
                } else if let Some(at) = network.peers[place].client.next_timeout_ns() {
                    network.now_ns = network.now_ns.max(at);
                    while let Some(event) = network.peers[place].client.handle_timeout(network.now_ns) {
                        events.push((place, event));
                    }
                }
            }
            for (_, event) in events {
                prop_assert!(is_reply(&event), "{:?}", event);
                answered += 1;
            }
            steps += 1;
            prop_assert!(steps < 200_000, "no progress");
        }
        let mut executed = network.executed.clone();
        executed.sort();
        called.sort();
        prop_assert_eq!(executed, called);
        prop_assert_eq!(network.peers[place].client.in_flight(), 0);
    }

    /// Damage that the link does not notice may be taken for what it says, but stops nobody: when it
    /// is over, the same client and server go on.
    #[test]
    fn damage_costs_no_more_than_the_calls_that_it_hits(seed: u64, damage in 1..60_u32) {
        let config = ServerConfig { max_message_len: 20_000, ..SERVER };
        let mut network = Network::with_server(config, 4);
        let place = network.add_client();
        let mut faults = StdRng::seed_from_u64(seed);
        network.fate = Box::new(move |_, _| match faults.random_range(0..100) {
            dice if dice < damage => Fate::Damaged(faults.random_range(0..8 * 88)),
            _ => Fate::Arrives,
        });
        let mut random = StdRng::seed_from_u64(seed ^ 1);
        for _ in 0..30 {
            if !network.peers[place].client.is_connected() {
                network.connect(place);
                continue;
            }
            if network.peers[place].client.free_slot().is_some() {
                let payload = bytes(random.random_range(4..5000));
                match network.try_start_call(place, ECHO, &payload) {
                    Ok(_) => {}
                    // A damaged Accept may grant less room than the call needs.
                    Err(CallError::TooLarge { .. }) => network.peers[place].client.disconnect(),
                    Err(error) => prop_assert!(false, "{:?}", error),
                }
            }
            network.events_of(place);
        }
        network.fate = Box::new(|_, _| Fate::Arrives);
        network.pass(2000 * MS);
        prop_assert_eq!(network.connect(place), [Event::Connected]);
        for _ in 0..3 {
            prop_assert!(network.peers[place].client.outstanding().is_empty());
            let event = network.call(place, ECHO, &bytes(3000));
            prop_assert!(is_reply(&event), "{:?}", event);
        }
    }
}
