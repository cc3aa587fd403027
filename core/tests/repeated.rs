//! Parts of requests that come again, or too early, by what the server knows of their slot (wire.md §8.4).

use crate::network::{bytes_of, connect_datagram, ECHO, SERVER};
use mitosis_core::rpc::server::{
    Action, Dispatched, PeerId, Server, ServerSlot, Session, ANSWER_LEN,
};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{Datagram, ErrorCode, Message, Part, Refusal};

const PEER: PeerId = 7;
/// The longest part of a message.
const PART_LEN: u32 = 984;
/// A request of three parts, which no CreditReturn answers.
const LEN: u32 = 2 * PART_LEN + 500;
const LAST: u32 = 2 * PART_LEN;

/// What a part came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Taken,
    Ignored(Rejected),
    /// A CreditReturn says that all up to here has come.
    Arrived(u32),
    /// The first part of the saved reply.
    Reply,
    Error(ErrorCode),
}

struct Serving<'a> {
    server: Server<'a>,
    session: SessionId,
    dispatched: Option<Dispatched>,
}

impl Serving<'_> {
    fn part(&mut self, request: u64, offset: u32) -> Came {
        let payload = [0; PART_LEN as usize];
        let len = (LEN - offset).min(PART_LEN) as usize;
        let part = Part {
            message_len: LEN,
            offset,
            payload: &payload[..len],
        };
        let message = Message::Request { rpc_id: ECHO, part };
        let datagram = bytes_of(self.session, request, 0, message);
        let mut out = [0; ANSWER_LEN];
        match self.server.handle_datagram(0, PEER, &datagram, &mut out) {
            Action::Segment(segment) => {
                assert_eq!((segment.offset, segment.answer_len), (offset, 0));
                assert_eq!(segment.complete, offset == LAST);
                self.dispatched = Some(segment.dispatched);
                Came::Taken
            }
            Action::Ignore(rejected) => Came::Ignored(rejected),
            Action::Answer { len, opened: None } => {
                match Datagram::parse(&out[..len]).unwrap().message {
                    Message::CreditReturn {
                        message_len: LEN,
                        offset,
                    } => Came::Arrived(offset),
                    message => panic!("{message:?}"),
                }
            }
            Action::Send(sent) if sent.payload.is_empty() => {
                match Datagram::parse(&out[..sent.header_len]).unwrap().message {
                    Message::Error(Refusal { code, .. }) => Came::Error(code),
                    message => panic!("{message:?}"),
                }
            }
            Action::Send(sent) => {
                assert_eq!(
                    (sent.payload, sent.again, sent.more),
                    (0..PART_LEN, true, false)
                );
                Came::Reply
            }
            action => panic!("{action:?}"),
        }
    }

    /// What each part of the request comes to.
    fn parts(&mut self, request: u64) -> [Came; 3] {
        [0, PART_LEN, LAST].map(|offset| self.part(request, offset))
    }

    fn complete(&mut self, result: Result<u32, ErrorCode>) {
        let dispatched = self.dispatched.take().unwrap();
        let mut out = [0; ANSWER_LEN];
        let sent = self.server.complete(&dispatched, result, &mut out);
        assert!(sent.is_some());
    }
}

fn with_server(body: impl FnOnce(Serving<'_>)) {
    let mut sessions = [Session::new()];
    let mut slots = [ServerSlot::new()];
    let mut server = Server::new(SERVER, &mut sessions, &mut slots);
    let mut out = [0; ANSWER_LEN];
    let connect = connect_datagram(1);
    let action = server.handle_datagram(0, PEER, &connect, &mut out);
    let Action::Answer { len, .. } = action else {
        panic!("{action:?}")
    };
    let session = Datagram::parse(&out[..len]).unwrap().session;
    body(Serving {
        server,
        session,
        dispatched: None,
    });
}

#[test]
fn while_parts_are_missing() {
    with_server(|mut serving| {
        assert_eq!(
            serving.part(5, PART_LEN),
            Came::Ignored(Rejected::OutOfOrder)
        );
        assert_eq!(serving.part(5, 0), Came::Taken);
        assert_eq!(serving.part(5, LAST), Came::Ignored(Rejected::OutOfOrder));
        assert_eq!(serving.part(5, 0), Came::Arrived(PART_LEN));
        assert_eq!(serving.part(5, PART_LEN), Came::Taken);
        for offset in [0, PART_LEN] {
            assert_eq!(serving.part(5, offset), Came::Arrived(LAST));
        }
        let stale = Came::Ignored(Rejected::StaleRequest);
        assert_eq!(serving.parts(4), [stale; 3]);
        // A later request takes its place.
        assert_eq!(serving.parts(6), [Came::Taken; 3]);
        assert_eq!(serving.parts(5), [stale; 3]);
        assert_eq!(serving.server.counters().requests, 1);
    });
}

#[test]
fn while_it_is_executed() {
    with_server(|mut serving| {
        assert_eq!(serving.parts(5), [Came::Taken; 3]);
        let executing = Came::Ignored(Rejected::StillExecuting);
        let arrived = Came::Arrived(LAST);
        assert_eq!(serving.parts(5), [arrived, arrived, executing]);
        assert_eq!(serving.parts(6), [executing; 3]);
        let stale = Came::Ignored(Rejected::StaleRequest);
        assert_eq!(serving.parts(4), [stale; 3]);
        assert_eq!(serving.server.counters().requests, 1);
    });
}

#[test]
fn once_it_is_answered() {
    with_server(|mut serving| {
        assert_eq!(serving.parts(5), [Came::Taken; 3]);
        serving.complete(Ok(3 * PART_LEN));
        for _ in 0..2 {
            let arrived = Came::Arrived(LAST);
            assert_eq!(serving.parts(5), [arrived, arrived, Came::Reply]);
        }
        let stale = Came::Ignored(Rejected::StaleRequest);
        assert_eq!(serving.parts(4), [stale; 3]);
        assert_eq!(serving.parts(6), [Came::Taken; 3]);
        assert_eq!(serving.server.counters().requests, 2);
    });
}

#[test]
fn once_it_has_failed_or_is_given_up() {
    with_server(|mut serving| {
        assert_eq!(serving.parts(5), [Came::Taken; 3]);
        serving.complete(Err(ErrorCode::HandlerFailed));
        let failed = Came::Error(ErrorCode::HandlerFailed);
        assert_eq!(serving.part(5, LAST), failed);
        // With its first part: the Error answers each.
        assert_eq!(serving.part(6, 0), Came::Taken);
        serving.complete(Err(ErrorCode::Busy));
        assert_eq!(serving.parts(6), [Came::Error(ErrorCode::Busy); 3]);
        assert_eq!(serving.server.counters().requests, 1);
    });
}

/// What is asked for the first time is not sent again, which the buffer's owner has to know.
#[test]
fn parts_of_a_reply_are_sent_again_only_if_they_were_sent() {
    with_server(|mut serving| {
        assert_eq!(serving.parts(5), [Came::Taken; 3]);
        serving.complete(Ok(4 * PART_LEN));
        let mut fetch = |offset, parts| {
            let wish = Message::Fetch {
                message_len: 4 * PART_LEN,
                offset,
                parts,
            };
            let datagram = bytes_of(serving.session, 5, 0, wish);
            let mut out = [0; ANSWER_LEN];
            let mut sent = Vec::new();
            match serving.server.handle_datagram(0, PEER, &datagram, &mut out) {
                Action::Send(first) => sent.push((first.payload.start / PART_LEN, first.again)),
                action => panic!("{action:?}"),
            }
            while let Some(next) = serving.server.poll_transmit(&mut out) {
                sent.push((next.payload.start / PART_LEN, next.again));
            }
            sent
        };
        assert_eq!(fetch(PART_LEN, 2), [(1, false), (2, false)]);
        assert_eq!(fetch(2 * PART_LEN, 2), [(2, true), (3, false)]);
        assert_eq!(fetch(PART_LEN, 3), [(1, true), (2, true), (3, true)]);
    });
}

#[test]
fn a_request_is_completed_once() {
    with_server(|mut serving| {
        assert_eq!(serving.parts(5), [Came::Taken; 3]);
        let first = serving.dispatched.unwrap();
        serving.complete(Ok(8));
        assert_eq!(serving.parts(6), [Came::Taken; 3]);
        let mut out = [0; ANSWER_LEN];
        assert_eq!(serving.server.complete(&first, Ok(8), &mut out), None);
        let executing = Came::Ignored(Rejected::StillExecuting);
        assert_eq!(serving.part(6, LAST), executing);
        serving.complete(Ok(8));
    });
}
