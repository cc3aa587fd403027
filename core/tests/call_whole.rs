//! The client's short ways, for calls of a datagram each way: they do what the long ways do, and leave to those what is not
//! their own (wire.md §8).

use crate::network::{bytes_of, client_config, ECHO, MS};
use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event, Transmit};
use mitosis_core::session::SessionId;
use mitosis_core::wire::{
    Accept, Datagram, ErrorCode, Header, Message, Part, Refusal, HEADER_LEN, MAX_CONTROL_LEN,
};
use proptest::prelude::*;
use zerocopy::IntoBytes;

const SESSION: SessionId = SessionId {
    index: 3,
    generation: 2,
    epoch: 0xe0,
};
/// The longest part of a message.
const PART_LEN: u32 = 256 - HEADER_LEN as u32;
/// The longest messages of the sessions: shorter than a datagram, as long, a little longer, and of several.
const LONGEST: [u32; 4] = [100, PART_LEN, PART_LEN + 1, 3 * PART_LEN];

/// A client of a session of four slots, which has been told that its server has heard of that.
fn connected(max_message_len: u32, credits: u16) -> Client<'static> {
    let config = ClientConfig {
        slots: 4,
        credits,
        max_message_len,
        ..client_config(5)
    };
    let mut client = Client::new(config, Vec::leak(vec![CallSlot::new(); 4]));
    let mut header = [0; MAX_CONTROL_LEN];
    assert!(!client.has_to_transmit());
    client.connect(0);
    assert!(client.has_to_transmit());
    client.poll_transmit(0, &mut header).unwrap();
    assert!(!client.has_to_transmit());
    let accept = Message::Accept(Accept {
        client_nonce: config.nonce + 1,
        server_nonce: 0,
        datagram_len: 256,
        slots: 4,
        credits,
        max_message_len,
        idle_timeout_ms: 1000,
        tag: None,
    });
    let accept = bytes_of(SESSION, 0, 0, accept);
    assert_eq!(client.handle_any(0, &accept), Ok(Some(Event::Connected)));
    let pong = bytes_of(SESSION, 0, 0, Message::Pong);
    assert_eq!(client.handle_any(0, &pong), Ok(None));
    client
}

/// With nothing to be sent.
fn rested(max_message_len: u32, credits: u16) -> Client<'static> {
    let mut client = connected(max_message_len, credits);
    assert!(client.has_to_transmit(), "the Confirm");
    assert!(sent(&mut client, 0).is_some());
    assert!(!client.has_to_transmit());
    client
}

/// What the client sends next: the header, and what of a request follows it.
fn sent(client: &mut Client<'_>, now_ns: u64) -> Option<(Vec<u8>, Transmit)> {
    let mut header = [0; MAX_CONTROL_LEN];
    let waits = client.has_to_transmit();
    let transmit = client.poll_transmit(now_ns, &mut header);
    assert!(waits || transmit.is_none());
    transmit.map(|transmit| (header[..transmit.header_len].to_vec(), transmit))
}

/// Starts a call by the short way. Its slot, and the header.
fn in_one_go(client: &mut Client<'_>, now_ns: u64, len: u32) -> Option<(u16, Vec<u8>)> {
    let called = client.call_whole(now_ns, ECHO, len, |slot, header| {
        (slot, header.as_bytes().to_vec())
    });
    called.map(|(request, slot, (given, header))| {
        assert_eq!(given, slot);
        assert_eq!(
            Datagram::parse(&whole(&header, len)).unwrap().request,
            request
        );
        (slot, header)
    })
}

/// The header with a payload.
fn whole(header: &[u8], len: u32) -> Vec<u8> {
    let mut datagram = header.to_vec();
    datagram.resize(HEADER_LEN + len as usize, 0);
    datagram
}

fn reply(request: u64, slot: u16, len: u32) -> Vec<u8> {
    let payload = vec![7; len as usize];
    bytes_of(
        SESSION,
        request,
        slot,
        Message::Reply(Part::whole(&payload)),
    )
}

#[test]
fn requests_up_to_the_limits_are_sent_in_one_go() {
    for longest in LONGEST {
        for len in [0, 1, 99, 100, 101, PART_LEN - 1, PART_LEN, PART_LEN + 1] {
            let mut client = rested(longest, 8);
            let (slot, header) = match in_one_go(&mut client, 0, len) {
                Some(called) => called,
                None => {
                    assert!(len > longest || len > PART_LEN, "{len} of {longest}");
                    assert!(client.outstanding().is_empty());
                    assert_eq!(client.in_flight(), 0);
                    continue;
                }
            };
            assert!(len <= longest && len <= PART_LEN, "{len} of {longest}");
            let payload = vec![0; len as usize];
            let expected = Message::Request {
                rpc_id: ECHO,
                part: Part::whole(&payload),
            };
            assert_eq!(whole(&header, len), bytes_of(SESSION, 1, slot, expected));
            assert_eq!(client.in_flight(), 1);
            assert!(client.outstanding().contains(slot));
            assert_eq!(sent(&mut client, 0), None);
        }
    }
}

#[test]
fn credits_and_slots_bound_the_calls_in_one_go() {
    for (credits, calls) in [(1, 1), (3, 3), (4, 4), (5, 4)] {
        let mut client = rested(PART_LEN, credits);
        for call in 0..calls {
            let (slot, _) = in_one_go(&mut client, 0, 1).unwrap();
            assert_eq!((slot, client.in_flight()), (call, call + 1));
        }
        assert_eq!(in_one_go(&mut client, 0, 1), None);
        assert_eq!(client.outstanding().len(), u32::from(calls));
        // An answer makes room.
        assert!(client.handle_whole(0, &reply(1, 0, 5)).is_some());
        assert_eq!(client.in_flight(), calls - 1);
        assert!(in_one_go(&mut client, 0, 1).is_some());
    }
}

#[test]
fn what_waits_to_be_sent_goes_before_a_call_in_one_go() {
    let mut client = connected(PART_LEN, 8);
    assert_eq!(in_one_go(&mut client, 0, 1), None, "the Confirm waits");
    sent(&mut client, 0).unwrap();
    client.call(0, 2, ECHO, 1).unwrap();
    assert_eq!(in_one_go(&mut client, 0, 1), None, "a call waits");
    sent(&mut client, 0).unwrap();
    assert_eq!(in_one_go(&mut client, 0, 1).unwrap().0, 0);
    client.disconnect();
    assert_eq!(in_one_go(&mut client, 0, 1), None, "no session");
}

#[test]
fn a_call_in_one_go_is_repeated_and_given_up_as_any_other() {
    let mut client = rested(PART_LEN, 8);
    let (_, header) = in_one_go(&mut client, 5 * MS, 1).unwrap();
    assert_eq!(client.next_timeout_ns(), Some(15 * MS));
    assert_eq!(client.handle_timeout(15 * MS - 1), None);
    assert_eq!(sent(&mut client, 15 * MS - 1), None);
    assert_eq!(client.handle_timeout(15 * MS), None);
    let (again, transmit) = sent(&mut client, 15 * MS).unwrap();
    assert_eq!(again, header);
    assert!(transmit.again);
    // The patience of its calls is 400 ms.
    assert_eq!(client.handle_timeout(405 * MS - 1), None);
    let event = client.handle_timeout(405 * MS);
    assert!(matches!(event, Some(Event::TimedOut { slot: 0, .. })));
    assert_eq!(client.in_flight(), 0);
}

/// A long request whose turn was cut short by its end does not shorten that of another.
#[test]
fn a_call_in_one_go_has_its_own_turn() {
    let mut client = rested(PART_LEN + 1, 2);
    client.call(0, 0, ECHO, PART_LEN + 1).unwrap();
    sent(&mut client, 0).unwrap();
    let failed = Refusal::new(ErrorCode::HandlerFailed);
    let failed = bytes_of(SESSION, 1, 0, Message::Error(failed));
    let event = client.handle_datagram(0, &failed);
    assert!(matches!(event, Ok(Some(Event::Failed { slot: 0, .. }))));
    assert_eq!(in_one_go(&mut client, 0, 0).unwrap().0, 0);
    client.call(0, 1, ECHO, PART_LEN + 1).unwrap();
    let slot = |client: &mut _, now_ns| {
        let (header, _) = sent(client, now_ns).unwrap();
        Header::parse(&header).unwrap().0.slot
    };
    assert_eq!(slot(&mut client, 0), 1);
    assert_eq!(client.handle_timeout(10 * MS), None);
    assert_eq!(slot(&mut client, 10 * MS), 1, "its turn is not over");
}

#[derive(Clone, Debug)]
enum Step {
    /// In the slots that are free, with so many bytes.
    Call(u32),
    /// Sends one datagram.
    Send,
    /// An answer to one of the last calls, in a session that may be another.
    Reply {
        back: u64,
        slot: u16,
        len: u32,
        ours: bool,
    },
    Fails {
        back: u64,
        slot: u16,
    },
    Waits(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = || {
        prop_oneof![
            0..4_u32,
            98..103_u32,
            PART_LEN - 2..PART_LEN + 3,
            0..3 * PART_LEN + 2,
        ]
    };
    let ours = proptest::bool::weighted(0.9);
    let step = prop_oneof![
        4 => len().prop_map(Step::Call),
        2 => Just(Step::Send),
        5 => (0..5_u64, 0..5_u16, len(), ours)
            .prop_map(|(back, slot, len, ours)| Step::Reply { back, slot, len, ours }),
        1 => (0..5_u64, 0..5_u16).prop_map(|(back, slot)| Step::Fails { back, slot }),
        2 => (0..30 * MS).prop_map(Step::Waits),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// Of two clients that are told the same, one calls in one go and takes replies in one go where it can: they send and say
    /// the same. It calls so what fits a datagram while nothing waits, and takes so each reply that is a datagram; nothing
    /// else.
    #[test]
    fn calling_in_one_go_is_no_different(
        steps in steps(),
        longest in prop::sample::select(&LONGEST[..]),
        credits in 1..6_u16,
    ) {
        let (mut long, mut short) = (rested(longest, credits), rested(longest, credits));
        let mut now_ns = 0;
        let mut slots = vec![0; 6];
        for step in steps {
            match step {
                Step::Call(len) => {
                    let Some(slot) = long.free_slot() else {
                        prop_assert_eq!(short.free_slot(), None);
                        prop_assert_eq!(in_one_go(&mut short, now_ns, len), None);
                        continue;
                    };
                    let in_go = !long.has_to_transmit()
                        && long.in_flight() < credits
                        && len <= longest
                        && len <= PART_LEN;
                    let called = in_one_go(&mut short, now_ns, len);
                    prop_assert_eq!(called.is_some(), in_go);
                    let begun = long.call(now_ns, slot, ECHO, len);
                    prop_assert_eq!(begun.is_ok(), len <= longest);
                    match called {
                        Some((given, header)) => {
                            prop_assert_eq!(given, slot);
                            let (expected, transmit) = sent(&mut long, now_ns).unwrap();
                            prop_assert_eq!(header, expected);
                            prop_assert!(!transmit.again);
                            let payload = transmit.payload.map(|payload| payload.range);
                            prop_assert_eq!(payload, (len > 0).then_some(0..len));
                        }
                        None => prop_assert_eq!(short.call(now_ns, slot, ECHO, len), begun),
                    }
                    if let Ok(request) = begun {
                        slots.push(slot);
                        prop_assert_eq!(request.0, slots.len() as u64 - 6);
                    }
                }
                Step::Send => prop_assert_eq!(sent(&mut short, now_ns), sent(&mut long, now_ns)),
                Step::Reply { back, slot, len, ours } => {
                    // Mostly in the slot that it was called in.
                    let number = slots.len() as u64 - 6 - back.min(slots.len() as u64 - 6);
                    let of_call = slots.get(5 + number as usize).copied();
                    let slot = if slot == 4 { 0 } else { of_call.unwrap_or(0) };
                    let session = SessionId { generation: 2 + u32::from(!ours), ..SESSION };
                    let payload = vec![7; len as usize];
                    let message = Message::Reply(Part::whole(&payload));
                    let datagram = bytes_of(session, number, slot, message);
                    let expected = long.handle_any(now_ns, &datagram);
                    let whole = short.handle_whole(now_ns, &datagram);
                    prop_assert_eq!(whole.is_some(), matches!(expected, Ok(Some(_))));
                    match whole {
                        Some(whole) => {
                            prop_assert_eq!(whole.payload, &payload);
                            prop_assert_eq!((whole.request.0, whole.slot), (number, slot));
                        }
                        None => prop_assert_eq!(short.handle_any(now_ns, &datagram), expected),
                    }
                }
                Step::Fails { back, slot } => {
                    let number = slots.len() as u64 - 6 - back.min(slots.len() as u64 - 6);
                    let message = Message::Error(Refusal::new(ErrorCode::HandlerFailed));
                    let datagram = bytes_of(SESSION, number.max(1), slot, message);
                    prop_assert_eq!(short.handle_whole(now_ns, &datagram), None);
                    prop_assert_eq!(
                        short.handle_any(now_ns, &datagram),
                        long.handle_any(now_ns, &datagram)
                    );
                }
                Step::Waits(wait_ns) => {
                    now_ns += wait_ns;
                    loop {
                        let event = long.handle_timeout(now_ns);
                        prop_assert_eq!(&short.handle_timeout(now_ns), &event);
                        if event.is_none() {
                            break;
                        }
                    }
                }
            }
            prop_assert_eq!(short.in_flight(), long.in_flight());
            prop_assert_eq!(short.outstanding(), long.outstanding());
            prop_assert_eq!(short.next_timeout_ns(), long.next_timeout_ns());
            prop_assert_eq!(short.has_to_transmit(), long.has_to_transmit());
        }
    }
}
