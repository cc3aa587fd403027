//! Every message: golden bytes, round trips, truncations and mutations.

use mitosis_core::session::{RequestId, SessionId};
use mitosis_core::wire::{
    Accept, Connect, Datagram, ErrorCode, Kind, Malformed, Message, Refusal, HEADER_LEN,
    MAX_DATAGRAM,
};
use proptest::prelude::*;

const SESSION: SessionId = SessionId {
    index: 0x0102,
    generation: 3,
    epoch: 0xe0e1_e2e3,
};

/// One datagram of each kind.
fn examples() -> Vec<Datagram<'static>> {
    let connect = Connect {
        client_key: 0x1122_3344_5566_7788,
        datagram_len: 4096,
    };
    let accept = Accept {
        client_key: connect.client_key,
        datagram_len: 1024,
        slots: 1,
        idle_timeout_ms: 10_000,
    };
    let refusal = Refusal {
        code: ErrorCode::HandlerFailed,
        client_key: 0,
    };
    let of = |session, request, message| Datagram {
        session,
        request: RequestId(request),
        message,
    };
    vec![
        of(SessionId::NONE, 0, Message::Connect(connect)),
        of(SESSION, 0, Message::Accept(accept)),
        of(SESSION, 0, Message::Confirm),
        of(
            SESSION,
            5,
            Message::Request {
                rpc_id: 0x73,
                payload: b"ask",
            },
        ),
        of(SESSION, 5, Message::Reply { payload: b"answer" }),
        of(SESSION, 5, Message::Error(refusal)),
        of(SESSION, 0, Message::Disconnect),
        of(SESSION, 6, Message::Ping),
        of(SESSION, 6, Message::Pong),
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
fn golden(kind: u8, session: &str, request: u8, code: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![b'M', b'T', 1, kind];
    bytes.extend(
        session
            .split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).unwrap()),
    );
    bytes.extend([request, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([code, 0, 0, 0]);
    bytes.extend([payload.len() as u8, 0, 0, 0]);
    bytes.extend([0, 0, 0, 0]);
    bytes.extend([payload.len() as u8, 0, 0, 0]);
    bytes.extend(payload);
    bytes
}

#[test]
fn golden_bytes_of_every_kind() {
    const NONE: &str = "00 00 00 00 00 00 00 00 00 00 00 00";
    const SOME: &str = "02 01 00 00 03 00 00 00 e3 e2 e1 e0";
    let connect = [
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0x10, 0, 0, 0, 0, 0, 0,
    ];
    let accept = [
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 4, 1, 0, 0x10, 0x27, 0, 0,
    ];
    let expected = [
        golden(1, NONE, 0, 0, &connect),
        golden(2, SOME, 0, 0, &accept),
        golden(3, SOME, 0, 0, b""),
        golden(4, SOME, 5, 0x73, b"ask"),
        golden(5, SOME, 5, 0, b"answer"),
        golden(6, SOME, 5, 5, &[0; 8]),
        golden(7, SOME, 0, 0, b""),
        golden(8, SOME, 6, 0, b""),
        golden(9, SOME, 6, 0, b""),
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
            (0..40_u8).filter(|len| usize::from(*len) != datagram.message.payload_len())
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
        assert!(matches!(refused(32), Some(Malformed::Segmented { .. })));
        assert!(matches!(
            refused(38),
            Some(Malformed::Field {
                what: "credits",
                ..
            })
        ));
        if !matches!(kind, Kind::Request | Kind::Error) {
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
        if matches!(kind, Kind::Request | Kind::Reply) {
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
        payload in proptest::collection::vec(any::<u8>(), 0..MAX_DATAGRAM - HEADER_LEN),
    ) {
        for message in [Message::Request { rpc_id, payload: &payload }, Message::Reply { payload: &payload }] {
            let datagram = Datagram { session, request: RequestId(request), message };
            let bytes = bytes_of(&datagram);
            prop_assert_eq!(Datagram::parse(&bytes), Ok(datagram));
        }
    }

    #[test]
    fn the_handshake_round_trips(
        session in session_id(),
        client_key: u64,
        datagram_len in 256..=4096_u16,
        slots in 1..=u16::MAX,
        idle_timeout_ms in 1..=u32::MAX,
        code in 0..9_usize,
    ) {
        let request = RequestId(0);
        for datagram in [
            Datagram { session: SessionId::NONE, request, message: Message::Connect(Connect { client_key, datagram_len }) },
            Datagram { session, request, message: Message::Accept(Accept { client_key, datagram_len, slots, idle_timeout_ms }) },
            Datagram { session, request, message: Message::Error(Refusal { code: ErrorCode::ALL[code], client_key }) },
        ] {
            let bytes = bytes_of(&datagram);
            prop_assert_eq!(Datagram::parse(&bytes), Ok(datagram));
        }
    }

    /// Whatever parses, emits to the identical bytes: no byte of a datagram is without meaning.
    #[test]
    fn mutations_parse_to_themselves_or_not_at_all(
        kind in 0..9_usize,
        changes in proptest::collection::vec((0..64_usize, any::<u8>()), 1..4),
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
