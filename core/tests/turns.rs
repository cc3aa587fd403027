//! What of a client's calls is unanswered, and whose parts are sent next (wire.md §8.2, §8.3).

use crate::network::{bytes_of, client_config, is_reply, Network, ECHO, LENGTH, MS};
use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{Accept, Datagram, Kind, Message, Part, HEADER_LEN, MAX_CONTROL_LEN};

const SESSION: SessionId = SessionId {
    index: 0,
    generation: 1,
    epoch: 0xe0,
};
/// The longest part of a message.
const PART_LEN: u32 = 256 - HEADER_LEN as u32;

/// A client whose session is confirmed.
fn connected(slots: u16, credits: u16) -> Client<'static> {
    let config = ClientConfig {
        slots,
        credits,
        ..client_config(5)
    };
    let slot = vec![CallSlot::new(); usize::from(slots)];
    let mut client = Client::new(config, Vec::leak(slot));
    client.connect(0);
    assert!(!client.is_connected());
    assert_eq!(sent(&mut client, 0), Some((Kind::Connect, 0, 0)));
    let accept = Message::Accept(Accept {
        client_nonce: config.nonce + 1,
        server_nonce: 0,
        datagram_len: 256,
        slots,
        credits,
        max_message_len: 1 << 20,
        idle_timeout_ms: 1000,
        tag: None,
    });
    let accept = bytes_of(SESSION, 0, 0, accept);
    let connected = client.handle_datagram(0, &accept);
    assert_eq!(connected, Ok(Some(Event::Connected)));
    assert!(client.is_connected());
    assert_eq!(sent(&mut client, 0), Some((Kind::Confirm, 0, 0)));
    client
}

/// What the client sends next: its kind, its slot, and where in the message it is.
fn sent(client: &mut Client<'_>, now_ns: u64) -> Option<(Kind, u16, u32)> {
    let mut header = [0; MAX_CONTROL_LEN];
    let transmit = client.poll_transmit(now_ns, &mut header)?;
    let mut datagram = header[..transmit.header_len].to_vec();
    let len = transmit.payload.map_or(0, |payload| payload.range.len());
    datagram.resize(transmit.header_len + len, 0);
    let datagram = Datagram::parse(&datagram).unwrap();
    let offset = match datagram.message {
        Message::Request { part, .. } => part.offset,
        Message::Fetch { offset, .. } => offset,
        _ => 0,
    };
    Some((datagram.message.kind(), datagram.slot, offset))
}

fn credit_return(request: u64, slot: u16, message_len: u32, offset: u32) -> Vec<u8> {
    let message = Message::CreditReturn {
        message_len,
        offset,
    };
    bytes_of(SESSION, request, slot, message)
}

#[test]
fn messages_that_are_longer_than_the_credits_take_turns() {
    let parts = [9, 2, 6, 9_u32];
    // Each part is answered before the next is sent, so that nothing but the turns decides.
    let mut client = connected(4, 4);
    for (slot, parts) in (0..).zip(parts) {
        client.call(0, slot, ECHO, parts * PART_LEN).unwrap();
    }
    let mut order = Vec::new();
    while let Some((kind, slot, offset)) = sent(&mut client, 0) {
        assert_eq!(kind, Kind::Request);
        order.push(slot);
        let end = offset + PART_LEN;
        let message_len = parts[usize::from(slot)] * PART_LEN;
        let request = u64::from(slot) + 1;
        let answer = match end == message_len {
            true => bytes_of(SESSION, request, slot, Message::Reply(Part::whole(b""))),
            false => credit_return(request, slot, message_len, end),
        };
        client.handle_datagram(0, &answer).unwrap();
        assert_eq!(client.in_flight(), 0);
    }
    let turns = [
        (0, 4),
        (1, 2),
        (2, 4),
        (3, 4),
        (0, 4),
        (2, 2),
        (3, 4),
        (0, 1),
        (3, 1),
    ];
    let expected: Vec<u16> = turns
        .into_iter()
        .flat_map(|(slot, parts)| vec![slot; parts])
        .collect();
    assert_eq!(order, expected);
    assert!(client.outstanding().is_empty());
}

#[test]
fn a_short_call_is_not_held_up_by_long_ones() {
    // They are answered with nothing, so that they end with their last part.
    let mut network = Network::new(1);
    let place = network.connected_client();
    for _ in 0..7 {
        network.start_call(place, LENGTH, &[0; 100_000]);
    }
    network.start_call(place, LENGTH, &[0; 4]);
    let events = network.settle();
    assert_eq!(events.len(), 8);
    assert!(matches!(events[0].1, Event::Reply { slot: 7, .. }));
}

#[test]
fn what_is_unanswered_is_counted() {
    let mut client = connected(4, 8);
    assert_eq!(client.in_flight(), 0);
    for slot in 0..3 {
        client
            .call(0, slot, ECHO, u32::from(slot) * PART_LEN)
            .unwrap();
    }
    for unanswered in 1..=4 {
        assert!(sent(&mut client, 0).is_some());
        assert_eq!(client.in_flight(), unanswered);
    }
    assert_eq!(sent(&mut client, 0), None);
    let reply = |request, slot| bytes_of(SESSION, request, slot, Message::Reply(Part::whole(b"")));
    for (request, slot, unanswered) in [(1, 0, 3), (3, 2, 1), (2, 1, 0)] {
        client.handle_datagram(0, &reply(request, slot)).unwrap();
        assert_eq!(client.in_flight(), unanswered);
    }
    // What is regarded as lost is unanswered no longer.
    client.call(0, 0, ECHO, 3 * PART_LEN).unwrap();
    while sent(&mut client, 0).is_some() {}
    assert_eq!(client.in_flight(), 3);
    assert_eq!(
        client.handle_timeout(client.next_timeout_ns().unwrap()),
        None
    );
    assert_eq!(client.in_flight(), 0);
    client.disconnect();
    assert_eq!(client.in_flight(), 0);
}

/// Of a request without bytes, nothing follows the header.
#[test]
fn an_empty_request_has_no_payload() {
    for len in 0..3 {
        let mut client = connected(1, 1);
        client.call(0, 0, ECHO, len).unwrap();
        let transmit = client.poll_transmit(0, &mut [0; MAX_CONTROL_LEN]).unwrap();
        let range = transmit.payload.map(|payload| payload.range);
        assert_eq!(range, (len > 0).then_some(0..len));
    }
}

#[test]
fn returns_are_checked() {
    let len = 6 * PART_LEN;
    let mut client = connected(1, 4);
    client.call(0, 0, ECHO, len).unwrap();
    while sent(&mut client, 0).is_some() {}
    assert_eq!(client.in_flight(), 4);
    let refused = |client: &mut Client<'_>, message_len, offset, why| {
        let answer = credit_return(1, 0, message_len, offset);
        let before = client.in_flight();
        assert_eq!(client.handle_datagram(MS, &answer), Err(why), "{offset}");
        assert_eq!(client.in_flight(), before);
    };
    for (message_len, offset) in [
        // Of a message of another length.
        (len + 1, PART_LEN),
        (len - 1, PART_LEN),
        // Where no part ends.
        (len, 1),
        (len, PART_LEN - 1),
        (len, 2 * PART_LEN + 1),
        // Of what has not been sent.
        (len, 4 * PART_LEN + 1),
        (len, 5 * PART_LEN),
    ] {
        refused(&mut client, message_len, offset, Rejected::BadPart);
    }
    let answer = credit_return(1, 0, len, 3 * PART_LEN);
    assert_eq!(client.handle_datagram(MS, &answer), Ok(None));
    assert_eq!(client.in_flight(), 1);
    for offset in [PART_LEN, 3 * PART_LEN] {
        refused(&mut client, len, offset, Rejected::StaleRequest);
    }
    // All that has been sent.
    let answer = credit_return(1, 0, len, 4 * PART_LEN);
    assert_eq!(client.handle_datagram(MS, &answer), Ok(None));
    assert_eq!(client.in_flight(), 0);
    assert_eq!(
        sent(&mut client, MS),
        Some((Kind::Request, 0, 4 * PART_LEN))
    );
}

/// An answer to what was regarded as lost: what has arrived is not sent again.
#[test]
fn a_late_return_is_taken() {
    let len = 6 * PART_LEN;
    let mut client = connected(1, 4);
    client.call(0, 0, ECHO, len).unwrap();
    while sent(&mut client, 0).is_some() {}
    let late_ns = client.next_timeout_ns().unwrap();
    assert_eq!(client.handle_timeout(late_ns), None);
    let beyond = credit_return(1, 0, len, 5 * PART_LEN);
    assert_eq!(
        client.handle_datagram(late_ns, &beyond),
        Err(Rejected::BadPart)
    );
    let answer = credit_return(1, 0, len, 4 * PART_LEN);
    assert_eq!(client.handle_datagram(late_ns, &answer), Ok(None));
    assert_eq!(client.in_flight(), 0);
    for part in 4..6 {
        let expected = Some((Kind::Request, 0, part * PART_LEN));
        assert_eq!(sent(&mut client, late_ns), expected);
    }
    assert_eq!(client.in_flight(), 2);
}

/// Replies that fill their last datagram, to requests of any number of parts: nothing is announced that does not follow.
#[test]
fn replies_that_fill_their_datagrams_end_with_them() {
    // In a session whose requests leave several parts unanswered, and in one whose requests leave one.
    for slots in [1, 8] {
        for parts in 1..5 {
            for reply_len in [parts * 984 - 1, parts * 984, parts * 984 + 1_u32] {
                for request_len in [4, 984, 985, 2 * 984, 2500, 5 * 984] {
                    let mut network = Network::new(1);
                    let place = network.add_client_with(ClientConfig {
                        slots,
                        ..client_config(5)
                    });
                    assert_eq!(network.connect(place), [Event::Connected]);
                    let mut payload = vec![0; request_len];
                    payload[..4].copy_from_slice(&reply_len.to_le_bytes());
                    assert!(is_reply(&network.call(place, LENGTH, &payload)));
                    assert_eq!(network.sent(Kind::Reply), reply_len.div_ceil(984));
                    assert_eq!(network.now_ns, 0, "nothing waited for a timer");
                }
            }
        }
    }
}
