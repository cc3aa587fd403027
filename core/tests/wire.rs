//! Every message: golden bytes, round trips, truncations and mutations.

use mitosis_core::session::{RequestId, SessionId};
use mitosis_core::wire::fork::{Chunk, Status};
use mitosis_core::wire::{
    Accept, Confirm, Connect, Datagram, ErrorCode, Kind, Malformed, Message, Part, Reason, Refusal,
    HEADER_LEN, MAX_DATAGRAM, MAX_FETCH, MAX_MESSAGE,
};
use proptest::prelude::*;

const SESSION: SessionId = SessionId {
    index: 0x0102,
    generation: 3,
    epoch: 0xe0e1_e2e3,
};

/// One datagram of each kind, in the order of the kinds.
fn examples() -> Vec<Datagram<'static>> {
    let connect = Connect {
        client_key: 0x1122_3344_5566_7788,
        client_nonce: 0x99,
        datagram_len: 4096,
        slots: 8,
        credits: 32,
        max_message_len: MAX_MESSAGE,
        tag: None,
    };
    let accept = Accept {
        client_nonce: 0x99,
        server_nonce: 0x77,
        datagram_len: 1024,
        slots: 4,
        credits: 16,
        max_message_len: 4096,
        idle_timeout_ms: 10_000,
        tag: Some([0xaa; 16]),
    };
    let of = |session, request, slot, message| Datagram {
        session,
        request: RequestId(request),
        slot,
        message,
    };
    let ask = Message::Request {
        rpc_id: 0x73,
        part: Part::whole(b"ask"),
    };
    let answer = Message::Reply(Part {
        message_len: 0x32,
        offset: 0x20,
        payload: b"answer",
    });
    let message_len = 0x32;
    let offset = 0x20;
    vec![
        of(SessionId::NONE, 0, 0, Message::Connect(connect)),
        of(SESSION, 0, 0, Message::Accept(accept)),
        of(SESSION, 0, 0, Message::Confirm(Confirm { tag: [0xbb; 16] })),
        of(SESSION, 5, 3, ask),
        of(SESSION, 5, 3, answer),
        of(
            SESSION,
            5,
            3,
            Message::Error(Refusal::new(ErrorCode::HandlerFailed)),
        ),
        of(SESSION, 0, 0, Message::Disconnect),
        of(SESSION, 6, 0, Message::Ping),
        of(SESSION, 6, 0, Message::Pong),
        of(
            SESSION,
            5,
            3,
            Message::CreditReturn {
                message_len,
                offset,
            },
        ),
        of(
            SESSION,
            5,
            3,
            Message::Fetch {
                message_len,
                offset,
                parts: 4,
            },
        ),
    ]
}

fn bytes_of(datagram: &Datagram<'_>) -> Vec<u8> {
    let mut bytes = vec![0xaa; MAX_DATAGRAM];
    let len = datagram.emit(&mut bytes).unwrap();
    assert_eq!(len, datagram.len());
    assert!(
        bytes[len..].iter().all(|byte| *byte == 0xaa),
        "nothing is written past the end"
    );
    bytes.truncate(len);
    bytes
}

/// A header in hex, as in wire.md §2, and its payload.
fn golden(kind: u8, session: &str, call: [u8; 3], part: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let [request, code, slot] = call;
    let [message_len, offset] = part;
    let mut bytes = vec![b'M', b'T', 1, kind];
    bytes.extend(
        session
            .split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap()),
    );
    bytes.extend([request, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([code, 0, 0, 0]);
    bytes.extend([message_len, 0, 0, 0]);
    bytes.extend([offset, 0, 0, 0]);
    bytes.extend([payload.len() as u8, 0, slot, 0]);
    bytes.extend(payload);
    bytes
}

#[test]
fn golden_bytes_of_every_kind() {
    const NONE: &str = "00 00 00 00 00 00 00 00 00 00 00 00";
    const SOME: &str = "02 01 00 00 03 00 00 00 e3 e2 e1 e0";
    const CALL: [u8; 3] = [5, 0, 3];
    let mut connect = vec![0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11];
    connect.extend([0x99, 0, 0, 0, 0, 0, 0, 0]);
    connect.extend([0; 16]);
    connect.extend([0, 0x10, 8, 0, 32, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 0]);
    let mut accept = vec![0x99, 0, 0, 0, 0, 0, 0, 0, 0x77, 0, 0, 0, 0, 0, 0, 0];
    accept.extend([0xaa; 16]);
    accept.extend([0, 4, 4, 0, 16, 0, 1, 0, 0, 0x10, 0, 0, 0x10, 0x27, 0, 0]);
    let expected = [
        golden(1, NONE, [0; 3], [48, 0], &connect),
        golden(2, SOME, [0; 3], [48, 0], &accept),
        golden(3, SOME, [0; 3], [16, 0], &[0xbb; 16]),
        golden(4, SOME, [5, 0x73, 3], [3, 0], b"ask"),
        golden(5, SOME, CALL, [0x32, 0x20], b"answer"),
        golden(6, SOME, [5, 5, 3], [12, 0], &[0; 12]),
        golden(7, SOME, [0; 3], [0, 0], b""),
        golden(8, SOME, [6, 0, 0], [0, 0], b""),
        golden(9, SOME, [6, 0, 0], [0, 0], b""),
        golden(10, SOME, CALL, [0x32, 0x20], b""),
        golden(11, SOME, [5, 4, 3], [0x32, 0x20], b""),
    ];
    for (datagram, expected) in examples().iter().zip(expected) {
        assert_eq!(bytes_of(datagram), expected, "{datagram:?}");
        assert_eq!(Datagram::parse(&expected), Ok(*datagram));
    }
}

#[test]
fn every_truncation_and_extension_is_malformed() {
    for datagram in examples() {
        let bytes = bytes_of(&datagram);
        for len in 0..bytes.len() {
            let parsed = Datagram::parse(&bytes[..len]);
            if len < HEADER_LEN {
                assert_eq!(
                    parsed,
                    Err(Malformed::Truncated {
                        what: "header",
                        at: 0,
                        need: HEADER_LEN
                    })
                );
            } else {
                let (header, actual) = (bytes.len() - HEADER_LEN, len - HEADER_LEN);
                assert_eq!(parsed, Err(Malformed::PayloadLen { header, actual }));
            }
            assert!(datagram.emit(&mut vec![0; len]).is_err());
        }
        let mut longer = bytes.clone();
        longer.push(0);
        assert!(matches!(
            Datagram::parse(&longer),
            Err(Malformed::PayloadLen { .. })
        ));
    }
}

#[test]
fn a_body_of_the_wrong_length_is_malformed_even_if_the_header_agrees() {
    for kind in [
        Kind::Connect,
        Kind::Accept,
        Kind::Error,
        Kind::Confirm,
        Kind::Disconnect,
        Kind::Ping,
        Kind::Pong,
    ] {
        let datagram = examples()[kind as usize - 1];
        for payload_len in
            (0..80_u8).filter(|len| usize::from(*len) != datagram.message.payload_len())
        {
            let mut bytes = bytes_of(&datagram);
            bytes.resize(HEADER_LEN + usize::from(payload_len), 0);
            bytes[28] = payload_len;
            bytes[36] = payload_len;
            assert!(
                Datagram::parse(&bytes).is_err(),
                "{kind:?} of {payload_len}"
            );
        }
    }
}

#[test]
fn fields_that_a_kind_does_not_have_must_be_zero() {
    for datagram in examples() {
        let kind = datagram.message.kind();
        let refused = |at: usize| {
            let mut bytes = bytes_of(&datagram);
            bytes[at] = bytes[at].wrapping_add(1);
            Datagram::parse(&bytes).err()
        };
        assert!(matches!(refused(0), Some(Malformed::Magic { .. })));
        assert!(matches!(
            refused(2),
            Some(Malformed::Version { found: 2, .. })
        ));
        let parted = matches!(kind, Kind::Reply | Kind::CreditReturn | Kind::Fetch);
        if !parted {
            assert!(
                matches!(refused(32), Some(Malformed::Part { .. })),
                "{kind:?}"
            );
        }
        let slotted = parted || matches!(kind, Kind::Request | Kind::Error);
        if !slotted {
            assert!(matches!(
                refused(38),
                Some(Malformed::Field { what: "slot", .. })
            ));
        }
        if !matches!(kind, Kind::Request | Kind::Error | Kind::Fetch) {
            assert!(matches!(
                refused(24),
                Some(Malformed::Field { what: "code", .. })
            ));
        }
        if matches!(
            kind,
            Kind::Connect | Kind::Accept | Kind::Confirm | Kind::Disconnect
        ) {
            assert!(matches!(
                refused(16),
                Some(Malformed::Field {
                    what: "request id",
                    ..
                })
            ));
        }
    }
}

/// An error that says what a field holds does not say 0 of one that is not 0.
#[test]
fn what_should_be_zero_and_is_not_is_said() {
    let connect = bytes_of(&examples()[0]);
    let found = |at: [usize; 2]| {
        let mut bytes = connect.clone();
        for at in at {
            bytes[at] = 1;
        }
        match Datagram::parse(&bytes) {
            Err(Malformed::Field { what, found }) => (what, found),
            parsed => panic!("{parsed:?}"),
        }
    };
    for at in [[4, 4], [8, 8], [12, 12], [4, 8], [4, 12], [8, 12]] {
        assert_eq!(found(at), ("session of a connect", 1), "{at:?}");
    }
    let tag_at = HEADER_LEN + 16;
    for byte in 0..16 {
        assert_eq!(found([tag_at, tag_at + byte]), ("tag", 1), "{byte}");
    }
}

#[test]
fn calls_and_sessions_are_numbered_from_one() {
    for datagram in examples() {
        let kind = datagram.message.kind();
        if !matches!(kind, Kind::Connect | Kind::Error) {
            let session = SessionId {
                generation: 0,
                ..SESSION
            };
            let bytes = bytes_of(&Datagram {
                session,
                ..datagram
            });
            assert_eq!(
                Datagram::parse(&bytes),
                Err(Malformed::Field {
                    what: "session generation",
                    found: 0
                })
            );
        }
        if matches!(
            kind,
            Kind::Request | Kind::Reply | Kind::CreditReturn | Kind::Fetch
        ) {
            let bytes = bytes_of(&Datagram {
                request: RequestId(0),
                ..datagram
            });
            assert_eq!(
                Datagram::parse(&bytes),
                Err(Malformed::Field {
                    what: "request id",
                    found: 0
                })
            );
        }
    }
}

#[test]
fn a_part_lies_in_its_message() {
    let of = |message_len: u32, offset: u32, payload_len: usize| {
        let part = Part {
            message_len,
            offset,
            payload: &[0; 100][..payload_len],
        };
        let datagram = Datagram {
            message: Message::Reply(part),
            ..examples()[4]
        };
        Datagram::parse(&bytes_of(&datagram)).err()
    };
    for (message_len, offset, payload_len) in [
        (0, 0, 0),
        (1, 0, 1),
        (9, 8, 1),
        (9, 0, 8),
        (MAX_MESSAGE, MAX_MESSAGE - 1, 1),
    ] {
        assert_eq!(of(message_len, offset, payload_len), None);
    }
    for (message_len, offset, payload_len) in [
        (9, 0, 0),
        (9, 9, 0),
        (9, 8, 2),
        (0, 0, 1),
        (9, u32::MAX, 1),
        (9, 10, 1),
        (0, 1, 0),
    ] {
        assert_eq!(
            of(message_len, offset, payload_len),
            Some(Malformed::Part {
                message_len,
                offset,
                payload_len: payload_len as u16
            })
        );
    }
    let message_len = MAX_MESSAGE + 1;
    assert_eq!(
        of(message_len, 0, 1),
        Some(Malformed::TooLong { message_len })
    );

    for (message_len, offset, fits) in [
        (2, 1, true),
        (1, 1, false),
        (2, 0, false),
        (2, 3, false),
        (MAX_MESSAGE + 1, 1, false),
    ] {
        for message in [
            Message::Fetch {
                message_len,
                offset,
                parts: 1,
            },
            Message::CreditReturn {
                message_len,
                offset,
            },
        ] {
            let bytes = bytes_of(&Datagram {
                message,
                ..examples()[10]
            });
            assert_eq!(Datagram::parse(&bytes).is_ok(), fits, "{message:?}");
        }
    }
}

#[test]
fn a_fetch_asks_for_some_parts_and_not_for_many() {
    for (parts, fits) in [
        (0, false),
        (1, true),
        (MAX_FETCH, true),
        (MAX_FETCH + 1, false),
    ] {
        let message = Message::Fetch {
            message_len: 2,
            offset: 1,
            parts,
        };
        let bytes = bytes_of(&Datagram {
            message,
            ..examples()[10]
        });
        let refused = Malformed::Field {
            what: "number of parts",
            found: u64::from(parts),
        };
        let parsed = Datagram::parse(&bytes);
        assert_eq!(parsed.is_ok(), fits);
        assert!(fits || parsed == Err(refused));
    }
}

#[test]
fn malformed_datagrams_are_described() {
    let mut bytes = bytes_of(&examples()[3]);
    bytes[3] = 0x77;
    assert_eq!(
        Datagram::parse(&bytes).unwrap_err().to_string(),
        "no message has kind 119"
    );
    bytes[0] = 0;
    assert_eq!(
        Datagram::parse(&bytes).unwrap_err().to_string(),
        "magic number 0x5400 is not of this protocol"
    );
    assert_eq!(
        Datagram::parse(b"").unwrap_err().to_string(),
        "truncated: header at byte 0 needs 40 bytes"
    );
}

prop_compose! {
    fn session_id()(index: u32, generation in 1..=u32::MAX, epoch: u32) -> SessionId {
        SessionId { index, generation, epoch }
    }
}

proptest! {
    #[test]
    fn calls_round_trip(
        session in session_id(),
        request in 1..=u64::MAX,
        rpc_id: u32,
        slot: u16,
        offset in 0..MAX_MESSAGE / 2,
        after in 0..MAX_MESSAGE / 3,
        parts in 1..=MAX_FETCH,
        payload in proptest::collection::vec(any::<u8>(), 1..MAX_DATAGRAM - HEADER_LEN),
    ) {
        let message_len = offset + payload.len() as u32 + after;
        let part = Part { message_len, offset, payload: &payload };
        let whole = Part::whole(&payload);
        let offset = offset + 1;
        for message in [
            Message::Request { rpc_id, part },
            Message::Reply(part),
            Message::Request { rpc_id, part: whole },
            Message::Reply(whole),
            Message::Fetch { message_len: message_len + 1, offset, parts },
            Message::CreditReturn { message_len: message_len + 1, offset },
        ] {
            let datagram = Datagram { session, request: RequestId(request), slot, message };
            let bytes = bytes_of(&datagram);
            prop_assert_eq!(Datagram::parse(&bytes), Ok(datagram));
        }
    }

    #[test]
    fn the_handshake_round_trips(
        session in session_id(),
        words: [u64; 3],
        datagram_len in 256..=4096_u16,
        slots in 1..=u16::MAX,
        credits in 1..=u16::MAX,
        max_message_len: u32,
        idle_timeout_ms in 1..=u32::MAX,
        tag: Option<[u8; 16]>,
        code in 0..9_usize,
        reason in 1..=4_u32,
    ) {
        let [client_key, client_nonce, server_nonce] = words;
        let server_nonce = if tag.is_some() { server_nonce } else { 0 };
        let connect = Connect { client_key, client_nonce, datagram_len, slots, credits, max_message_len, tag };
        let accept = Accept {
            client_nonce, server_nonce, datagram_len, slots, credits, max_message_len, idle_timeout_ms, tag,
        };
        let code = ErrorCode::ALL[code];
        let reason = Reason::from_u32(reason).filter(|_| code == ErrorCode::NotAuthorised);
        let refusal = Refusal { code, reason, client_nonce };
        for (session, message) in [
            (SessionId::NONE, Message::Connect(connect)),
            (session, Message::Accept(accept)),
            (session, Message::Confirm(Confirm { tag: tag.unwrap_or_default() })),
            (SessionId::NONE, Message::Error(refusal)),
        ] {
            let datagram = Datagram { session, request: RequestId(0), slot: 0, message };
            let bytes = bytes_of(&datagram);
            prop_assert_eq!(Datagram::parse(&bytes), Ok(datagram));
        }
    }

    /// Whatever parses, emits to the identical bytes: no byte of a datagram is without meaning.
    #[test]
    fn mutations_parse_to_themselves_or_not_at_all(
        kind in 0..11_usize,
        changes in proptest::collection::vec((0..90_usize, any::<u8>()), 1..4),
    ) {
        let mut bytes = bytes_of(&examples()[kind]);
        for (at, value) in changes {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        if let Ok(datagram) = Datagram::parse(&bytes) {
            prop_assert_eq!(bytes_of(&datagram), bytes);
        }
    }
}

#[test]
fn a_chunk_that_is_refused_says_why_and_nothing_else() {
    for status in [Status::Done, Status::NoSuchSeed, Status::Exhausted] {
        let chunk: [u8; 144] = zerocopy::transmute!(Chunk::refused(status));
        let mut expected = [0; 144];
        expected[0] = status as u8;
        assert_eq!(chunk, expected);
    }
}
