//! What people read: each error's text says what, where and how much, and no two cases share one.

use std::collections::BTreeSet;
use std::fmt::Display;

use mitosis_core::descriptor::{DescriptorError, EncodeError};
use mitosis_core::histogram::NoSuchBucket;
use mitosis_core::rpc::client::CallError;
use mitosis_core::rpc::Rejected;
use mitosis_core::session::{RequestId, SessionId};
use mitosis_core::wire::fork::Status;
use mitosis_core::wire::resolution;
use mitosis_core::wire::{BufferTooSmall, ErrorCode, Kind, Malformed, Reason, Refusal};

/// All of them are their texts, and the texts differ.
fn check<T: Display>(cases: &[(T, &str)]) {
    for (error, text) in cases {
        assert_eq!(error.to_string(), *text);
    }
    let texts: BTreeSet<&str> = cases.iter().map(|(_, text)| *text).collect();
    assert_eq!(texts.len(), cases.len());
}

#[test]
fn of_datagrams() {
    check(&[
        (
            Malformed::Truncated {
                what: "accept",
                at: 32,
                need: 40,
            },
            "truncated: accept at byte 32 needs 40 bytes",
        ),
        (
            Malformed::Magic { found: 0xab },
            "magic number 0x00ab is not of this protocol",
        ),
        (
            Malformed::Version { found: 2, kind: 1 },
            "version 2 (kind 1) is not spoken here",
        ),
        (Malformed::Kind { found: 99 }, "no message has kind 99"),
        (Malformed::ErrorCode { found: 10 }, "no error has code 10"),
        (
            Malformed::Field {
                what: "slots",
                found: 65,
            },
            "slots must not be 0x41",
        ),
        (
            Malformed::PayloadLen {
                header: 5,
                actual: 7,
            },
            "payload_len is 5 but 7 bytes follow the header",
        ),
        (
            Malformed::TooLong {
                message_len: 9_000_000,
            },
            "no message is 9000000 bytes long",
        ),
        (
            Malformed::Part {
                message_len: 100,
                offset: 90,
                payload_len: 11,
            },
            "11 bytes at 90 are no part of a message of 100 bytes",
        ),
    ]);
    let small = BufferTooSmall { need: 64, have: 63 };
    check(&[(small, "a datagram of 64 bytes does not fit a buffer of 63")]);
}

#[test]
fn of_what_is_ignored() {
    check(&[
        (
            Rejected::Malformed(Malformed::Kind { found: 99 }),
            "malformed: no message has kind 99",
        ),
        (
            Rejected::Unexpected(Kind::Accept),
            "Accept is not expected here",
        ),
        (Rejected::OtherSession, "of another session"),
        (Rejected::StaleRequest, "of a request that is over"),
        (Rejected::StillExecuting, "a request is being executed"),
        (Rejected::OutOfOrder, "an earlier part is missing"),
        (Rejected::BadPart, "no part of this message"),
        (Rejected::Unconfirmed, "the session is not confirmed"),
        (Rejected::BadTag, "the server does not know the cluster key"),
        (
            Rejected::BadOffer,
            "the accept grants what was not asked for",
        ),
        (Rejected::NoRoom, "no room for the answer"),
    ]);
}

#[test]
fn of_what_is_refused() {
    let refused = |reason| Refusal {
        reason: Some(reason),
        ..Refusal::new(ErrorCode::NotAuthorised)
    };
    check(&[
        (Refusal::new(ErrorCode::Busy), "server is busy"),
        (
            refused(Reason::KeyRequired),
            "not authorised: the server requires a cluster key",
        ),
        (
            refused(Reason::WrongKey),
            "not authorised: the cluster key is another",
        ),
        (
            refused(Reason::NoKeyHere),
            "not authorised: the server has no cluster key",
        ),
        (
            refused(Reason::Replayed),
            "not authorised: the handshake is a replay",
        ),
    ]);
    use resolution::Reason::{Hint, Malformed, Port, Version};
    check(&[
        (Malformed, "it could not read the request"),
        (Version, "it speaks another version"),
        (Hint, "no queue there goes by that hint (server_qd_hint)"),
        (
            Port,
            "it does not serve the port that the request came over",
        ),
    ]);
    check(&[
        (Status::Done.text(), "done"),
        (Status::NoSuchSeed.text(), "there is no such seed"),
        (
            Status::NotEntitled.text(),
            "the capability is not the seed's",
        ),
        (Status::BadRequest.text(), "the request cannot be read"),
        (Status::NoSuchPlace.text(), "the seed has nothing there"),
        (Status::NotAttached.text(), "the connection is gone"),
        (
            Status::Exhausted.text(),
            "the seed's machine is out of memory",
        ),
    ]);
}

#[test]
fn of_calls_and_counts() {
    check(&[
        (CallError::NotConnected, "no session is open"),
        (
            CallError::NoSuchSlot { slot: 8, slots: 7 },
            "the session has 7 slots and no slot 8",
        ),
        (CallError::SlotInUse, "the slot's call is outstanding"),
        (
            CallError::TooLarge {
                request_len: 70,
                limit: 64,
            },
            "a request of 70 bytes exceeds the session's 64",
        ),
    ]);
    let beyond = NoSuchBucket { index: 5_000 };
    check(&[(beyond, "no bucket 5000 in a histogram of 1152")]);
}

#[test]
fn of_descriptors() {
    check(&[
        (
            DescriptorError::Truncated {
                what: "header",
                at: 0,
                need: 96,
            },
            "truncated: header at byte 0 needs 96 bytes",
        ),
        (
            DescriptorError::Magic { found: 0xab },
            "magic number 0x000000ab is no descriptor's",
        ),
        (
            DescriptorError::Version { found: 9 },
            "descriptor version 9 is not understood here",
        ),
        (
            DescriptorError::Length {
                what: "files",
                said: 3,
                need: 8,
            },
            "files is 3 bytes long instead of 8",
        ),
        (
            DescriptorError::TooMany {
                what: "VMAs",
                found: 9,
                limit: 8,
            },
            "9 VMAs are more than 8",
        ),
        (
            DescriptorError::Field {
                what: "flags",
                at: 128,
                found: 0x80,
            },
            "flags of the record at byte 128 must not be 0x80",
        ),
        (
            DescriptorError::Checksum { said: 1, found: 2 },
            "checksum is 0x0000000000000002 instead of 0x0000000000000001",
        ),
    ]);
    check(&[
        (
            EncodeError::Full {
                what: "paths",
                need: 20,
                room: 10,
            },
            "paths needs 20 bytes, and the buffer has 10 left",
        ),
        (
            EncodeError::TooMany {
                what: "files",
                limit: 256,
            },
            "there are more than 256 files",
        ),
        (
            EncodeError::Field {
                what: "xmm",
                found: 16,
            },
            "xmm must not be 0x10",
        ),
        (
            EncodeError::Order { what: "identity" },
            "identity is out of order or missing",
        ),
    ]);
}

#[test]
fn of_names() {
    let session = SessionId {
        index: 7,
        generation: 2,
        epoch: 0xe0,
    };
    assert_eq!(session.to_string(), "7.2@000000e0");
    assert_eq!(RequestId(12).to_string(), "#12");
}
