//! The server's short way, for calls of a datagram each way: it does what the long way does, and leaves to that what is not
//! its own (wire.md §8).

use std::collections::BTreeSet;

use crate::network::{bytes_of, ECHO, MS, SERVER};
use mitosis_core::rpc::server::{
    Action, Dispatched, PeerId, Request, Served, Server, ServerConfig, ServerSlot, Session,
    Transmission, ANSWER_LEN,
};
use mitosis_core::session::SessionId;
use mitosis_core::wire::{Connect, Datagram, ErrorCode, Message, Part, Refusal, Words, HEADER_LEN};
use proptest::prelude::*;

const PEER: PeerId = 7;
const STRANGER: PeerId = 8;
const DATAGRAM_LEN: u16 = 256;
/// The longest part of a message.
const PART_LEN: u32 = DATAGRAM_LEN as u32 - HEADER_LEN as u32;
const SLOTS: u16 = 4;
/// The longest messages of the sessions: shorter than a datagram, as long, a little longer, and of several.
const LONGEST: [u32; 4] = [100, PART_LEN, PART_LEN + 1, 3 * PART_LEN];

/// What a handler does.
#[derive(Clone, Copy, Debug)]
enum Handler {
    Replies(u32),
    Fails,
}

/// An execution: slot, number, rpc id and payload of the request.
type Executed = (u16, u64, u32, Vec<u8>);

fn executed(request: &Request<'_>) -> Executed {
    let Dispatched {
        slot,
        request: number,
        ..
    } = request.dispatched;
    (slot, number.0, request.rpc_id, request.payload.to_vec())
}

/// A server with its buffers.
struct Serving {
    server: Server<'static>,
    requests: Vec<Vec<u8>>,
    replies: Vec<Vec<u8>>,
    executed: Vec<Executed>,
    pending: Vec<(Dispatched, Handler)>,
    sent: Vec<Vec<u8>>,
}

fn reply_of(request: &Dispatched, len: u32) -> Vec<u8> {
    (0..len)
        .map(|place| (u64::from(place) + request.request.0) as u8)
        .collect()
}

impl Serving {
    /// One with a session, whose client is to be heard of yet.
    fn new(max_message_len: u32) -> (Self, SessionId) {
        let config = ServerConfig {
            datagram_len: DATAGRAM_LEN,
            max_message_len,
            ..SERVER
        };
        let slots = usize::from(SLOTS) + 1;
        let mut serving = Self {
            server: Server::new(
                config,
                Vec::leak(vec![Session::new(); 2]),
                Vec::leak(vec![ServerSlot::new(); slots]),
            ),
            requests: vec![Vec::new(); slots],
            replies: vec![Vec::new(); slots],
            executed: Vec::new(),
            pending: Vec::new(),
            sent: Vec::new(),
        };
        let connect = Connect {
            client_key: 1,
            client_nonce: 1,
            datagram_len: DATAGRAM_LEN,
            slots: SLOTS,
            credits: 8,
            max_message_len,
            tag: None,
        };
        let connect = bytes_of(SessionId::NONE, 0, 0, Message::Connect(connect));
        serving.handle(0, PEER, &connect, Handler::Fails, false);
        let accept = serving.sent.pop().unwrap();
        (serving, Datagram::parse(&accept).unwrap().session)
    }

    /// By the long way. Whether a whole request was dispatched.
    fn handle(
        &mut self,
        now_ns: u64,
        from: PeerId,
        datagram: &[u8],
        handler: Handler,
        late: bool,
    ) -> bool {
        let mut out = [0; ANSWER_LEN];
        match self.server.handle_any(now_ns, from, datagram, &mut out) {
            Action::Ignore(_) | Action::Done => {}
            Action::Answer { len, .. } => self.sent.push(out[..len].to_vec()),
            Action::Send(transmission) => self.transmit(Some(transmission), &mut out),
            Action::Dispatch(request) => {
                self.begin(&request, handler, late);
                return true;
            }
            Action::Segment(segment) => {
                let buffer = &mut self.requests[segment.dispatched.slot_index as usize];
                buffer.truncate(segment.offset as usize);
                buffer.extend(segment.payload);
                if segment.answer_len > 0 {
                    self.sent.push(out[..segment.answer_len].to_vec());
                }
                if segment.complete {
                    let payload = buffer.clone();
                    let request = Request {
                        dispatched: segment.dispatched,
                        rpc_id: segment.rpc_id,
                        payload: &payload,
                    };
                    self.begin(&request, handler, late);
                }
            }
        }
        while self.server.poll_closed().is_some() {}
        false
    }

    /// By the short way, if it is that of the datagram.
    fn serve(&mut self, now_ns: u64, from: PeerId, datagram: &[u8], handler: Handler) -> bool {
        let mut header = Words::default();
        let (replies, all) = (&mut self.replies, &mut self.executed);
        let run = |request: &Request<'_>| {
            all.push(executed(request));
            let Handler::Replies(len) = handler else {
                return Err(ErrorCode::HandlerFailed);
            };
            let reply = &mut replies[request.dispatched.slot_index as usize];
            *reply = reply_of(&request.dispatched, len);
            Ok(reply.clone().leak() as &[u8])
        };
        match self
            .server
            .serve_whole(now_ns, from, datagram, &mut header, run)
        {
            None => return false,
            Some(Served::Reply(reply)) => {
                let mut datagram = header.map(u64::to_ne_bytes).concat();
                datagram.extend(reply);
                self.sent.push(datagram);
            }
            Some(Served::Other(dispatched, result)) => self.complete(&dispatched, result),
        }
        true
    }

    fn begin(&mut self, request: &Request<'_>, handler: Handler, late: bool) {
        self.executed.push(executed(request));
        self.pending.push((request.dispatched, handler));
        if !late {
            self.finish();
        }
    }

    /// Lets the handler that was begun last return.
    fn finish(&mut self) {
        let Some((dispatched, handler)) = self.pending.pop() else {
            return;
        };
        let result = match handler {
            Handler::Replies(len) => {
                self.replies[dispatched.slot_index as usize] = reply_of(&dispatched, len);
                Ok(len)
            }
            Handler::Fails => Err(ErrorCode::HandlerFailed),
        };
        self.complete(&dispatched, result);
    }

    fn complete(&mut self, dispatched: &Dispatched, result: Result<u32, ErrorCode>) {
        let mut out = [0; ANSWER_LEN];
        let sent = self.server.complete(dispatched, result, &mut out);
        self.transmit(sent, &mut out);
        while self.server.poll_closed().is_some() {}
    }

    fn transmit(&mut self, first: Option<Transmission>, out: &mut [u8; ANSWER_LEN]) {
        let mut next = first;
        while let Some(sent) = next {
            let mut datagram = out[..sent.header_len].to_vec();
            let range = sent.payload.start as usize..sent.payload.end as usize;
            datagram.extend(&self.replies[sent.slot_index as usize][range]);
            self.sent.push(datagram);
            next = self.server.poll_transmit(out);
            assert_eq!(next.is_some(), sent.more);
        }
    }
}

fn request(payload: &[u8]) -> Message<'_> {
    Message::Request {
        rpc_id: ECHO,
        part: Part::whole(payload),
    }
}

/// One whose session is confirmed.
fn serving(max_message_len: u32) -> (Serving, SessionId) {
    let (mut serving, session) = Serving::new(max_message_len);
    let ping = bytes_of(session, 0, 0, Message::Ping);
    serving.handle(0, PEER, &ping, Handler::Fails, false);
    serving.sent.clear();
    (serving, session)
}

#[test]
fn requests_up_to_the_limits_are_served_in_one_go() {
    for longest in LONGEST {
        for len in [0, 1, 99, 100, 101, PART_LEN - 1, PART_LEN, PART_LEN + 1] {
            let (mut serving, session) = serving(longest);
            let payload = vec![5; len as usize];
            let datagram = bytes_of(session, 1, 2, request(&payload));
            let fits = len <= longest && len <= PART_LEN;
            let served = serving.serve(0, PEER, &datagram, Handler::Replies(0));
            assert_eq!(served, fits, "{len} of {longest}");
            if fits {
                assert_eq!(serving.executed, [(2, 1, ECHO, payload)]);
                let reply = bytes_of(session, 1, 2, Message::Reply(Part::whole(b"")));
                assert_eq!(serving.sent, [reply]);
                assert_eq!(serving.server.counters().requests, 1);
            } else {
                assert_eq!(serving.executed, []);
                assert_eq!(serving.server.counters().requests, 0);
            }
        }
    }
}

#[test]
fn replies_up_to_the_limits_are_sent_in_one_go() {
    for longest in LONGEST {
        for len in [0, 1, 99, 100, 101, PART_LEN - 1, PART_LEN, PART_LEN + 1] {
            let (mut serving, session) = serving(longest);
            let datagram = bytes_of(session, 1, 2, request(b"x"));
            let mut header = Words::default();
            let reply = vec![9; len as usize].leak();
            let served = serving
                .server
                .serve_whole(0, PEER, &datagram, &mut header, |_| Ok(&*reply));
            if len <= longest && len <= PART_LEN {
                assert_eq!(served, Some(Served::Reply(&*reply)), "{len} of {longest}");
                let expected = bytes_of(session, 1, 2, Message::Reply(Part::whole(reply)));
                let header = header.map(u64::to_ne_bytes).concat();
                assert_eq!(header, expected[..HEADER_LEN]);
                continue;
            }
            let Some(Served::Other(dispatched, Ok(said))) = served else {
                panic!("{len} of {longest}: {served:?}")
            };
            assert_eq!(said, len);
            // It is not over: the reply is still to be given.
            serving.replies[dispatched.slot_index as usize] = reply.to_vec();
            serving.complete(&dispatched, Ok(said));
            let first = Datagram::parse(&serving.sent[0]).unwrap().message;
            match len <= longest {
                true => assert!(matches!(first, Message::Reply(_)), "{first:?}"),
                false => assert_eq!(first, Message::Error(Refusal::new(ErrorCode::TooLarge))),
            }
        }
    }
}

#[test]
fn a_handler_that_fails_in_one_go_fails_as_any_other() {
    let (mut serving, session) = serving(PART_LEN);
    let datagram = bytes_of(session, 1, 0, request(b"x"));
    assert!(serving.serve(0, PEER, &datagram, Handler::Fails));
    let failed = Message::Error(Refusal::new(ErrorCode::HandlerFailed));
    let failed = bytes_of(session, 1, 0, failed);
    assert_eq!(serving.sent, std::slice::from_ref(&failed));
    // It has run, and will not again: the error is saved.
    assert!(!serving.serve(0, PEER, &datagram, Handler::Replies(1)));
    serving.handle(0, PEER, &datagram, Handler::Replies(1), false);
    assert_eq!(serving.sent, [failed.clone(), failed]);
    assert_eq!(serving.executed.len(), 1);
}

#[test]
fn what_was_served_in_one_go_is_answered_again_and_not_executed() {
    let (mut serving, session) = serving(PART_LEN);
    let older = bytes_of(session, 4, 0, request(b"older"));
    let datagram = bytes_of(session, 5, 0, request(b"x"));
    assert!(serving.serve(0, PEER, &datagram, Handler::Replies(7)));
    for again in [&datagram, &older] {
        assert!(!serving.serve(0, PEER, again, Handler::Replies(8)));
        serving.handle(0, PEER, again, Handler::Replies(8), false);
    }
    assert_eq!(serving.executed, [(0, 5, ECHO, b"x".to_vec())]);
    assert_eq!(serving.sent.len(), 2);
    assert_eq!(serving.sent[0], serving.sent[1]);
    let counters = serving.server.counters();
    assert_eq!((counters.replays, counters.ignored_stale), (1, 1));
    // Another slot knows nothing of it.
    let elsewhere = bytes_of(session, 4, 1, request(b"y"));
    assert!(serving.serve(0, PEER, &elsewhere, Handler::Replies(0)));
}

#[test]
fn a_slot_that_executes_takes_no_other_request() {
    let (mut serving, session) = serving(PART_LEN);
    let first = bytes_of(session, 1, 3, request(b"x"));
    assert!(serving.handle(0, PEER, &first, Handler::Replies(2), true));
    let next = bytes_of(session, 2, 3, request(b"y"));
    for again in [&first, &next] {
        assert!(!serving.serve(0, PEER, again, Handler::Replies(1)));
        serving.handle(0, PEER, again, Handler::Replies(1), false);
    }
    assert_eq!(serving.server.counters().ignored_executing, 2);
    let beside = bytes_of(session, 3, 2, request(b"z"));
    assert!(serving.serve(0, PEER, &beside, Handler::Replies(1)));
    serving.finish();
    assert!(serving.serve(0, PEER, &next, Handler::Replies(1)));
    let executed: Vec<_> = serving
        .executed
        .iter()
        .map(|(_, number, ..)| *number)
        .collect();
    assert_eq!(executed, [1, 3, 2]);
}

#[test]
fn a_server_that_goes_away_serves_nothing_in_one_go() {
    let (mut serving, session) = serving(PART_LEN);
    serving.server.go_away();
    let datagram = bytes_of(session, 1, 0, request(b"x"));
    assert!(!serving.serve(0, PEER, &datagram, Handler::Replies(1)));
    serving.handle(0, PEER, &datagram, Handler::Replies(1), false);
    let refused = Message::Error(Refusal::new(ErrorCode::GoingAway));
    assert_eq!(serving.sent, [bytes_of(session, 1, 0, refused)]);
    assert_eq!(serving.executed, []);
}

#[test]
fn only_an_open_session_and_its_own_peer_are_served_in_one_go() {
    let (mut half_open, session) = Serving::new(PART_LEN);
    let datagram = bytes_of(session, 1, 0, request(b"x"));
    assert!(!half_open.serve(0, PEER, &datagram, Handler::Replies(1)));
    assert!(half_open.handle(0, PEER, &datagram, Handler::Replies(1), false));
    let (mut serving, session) = serving(PART_LEN);
    assert!(!serving.serve(0, STRANGER, &datagram, Handler::Replies(1)));
    for other in [
        SessionId {
            index: 1,
            ..session
        },
        SessionId {
            generation: 2,
            ..session
        },
        SessionId {
            epoch: session.epoch + 1,
            ..session
        },
    ] {
        let datagram = bytes_of(other, 1, 0, request(b"x"));
        assert!(!serving.serve(0, PEER, &datagram, Handler::Replies(1)));
    }
    // The first slot behind the session's, which there is, and numbers of none.
    for slot in [SLOTS, SLOTS + 1, u16::MAX] {
        let datagram = bytes_of(session, 1, slot, request(b"x"));
        assert!(!serving.serve(0, PEER, &datagram, Handler::Replies(1)));
        serving.handle(0, PEER, &datagram, Handler::Replies(1), false);
    }
    assert_eq!(serving.server.counters().bad_requests, 3);
    assert_eq!(serving.executed, []);
    let last = bytes_of(session, 1, SLOTS - 1, request(b"x"));
    assert!(serving.serve(0, PEER, &last, Handler::Replies(1)));
}

/// A request that is served in one go is a sign of life, and its session can end afterwards.
#[test]
fn being_served_in_one_go_keeps_a_session() {
    let (mut serving, session) = serving(PART_LEN);
    let mut number = 0;
    for now_ns in [900, 1800, 2700].map(|now_ms| now_ms * MS) {
        number += 1;
        let datagram = bytes_of(session, number, 0, request(b"x"));
        assert!(serving.serve(now_ns, PEER, &datagram, Handler::Replies(1)));
        serving.server.handle_timeout(now_ns + 999 * MS);
        assert_eq!(serving.server.live_sessions(), 1);
    }
    // While it executes nothing, it expires; and it is gone at once when it is ended.
    serving.server.handle_timeout(3750 * MS);
    assert_eq!(serving.server.live_sessions(), 0);
    assert!(serving.server.poll_closed().is_some());

    let (mut serving, session) = self::serving(PART_LEN);
    for (number, handler) in [(1, Handler::Replies(1)), (2, Handler::Fails)] {
        let datagram = bytes_of(session, number, 0, request(b"x"));
        assert!(serving.serve(0, PEER, &datagram, handler));
    }
    let disconnect = bytes_of(session, 0, 0, Message::Disconnect);
    let action = serving
        .server
        .handle_any(0, PEER, &disconnect, &mut [0; ANSWER_LEN]);
    assert_eq!(action, Action::Done);
    assert!(serving.server.poll_closed().is_some());
}

#[derive(Clone, Debug)]
enum Shape {
    Whole,
    First,
    Second,
}

#[derive(Clone, Debug)]
enum Step {
    Request {
        strange: bool,
        slot: u16,
        /// How many more than the last number of all.
        more: i64,
        shape: Shape,
        len: u32,
        handler: Handler,
        late: bool,
    },
    Finish,
    Ping,
    Disconnect,
    GoAway,
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
    let handler = prop_oneof![4 => len().prop_map(Handler::Replies), 1 => Just(Handler::Fails)];
    let shape =
        prop_oneof![6 => Just(Shape::Whole), 1 => Just(Shape::First), 1 => Just(Shape::Second)];
    let more = prop_oneof![4 => Just(1), 2 => Just(0), 1 => -4..0_i64];
    let seldom = || proptest::bool::weighted(0.1);
    let request = (
        seldom(),
        0..SLOTS + 2,
        more,
        shape,
        len(),
        handler,
        seldom(),
    )
        .prop_map(
            |(strange, slot, more, shape, len, handler, late)| Step::Request {
                strange,
                slot,
                more,
                shape,
                len,
                handler,
                late,
            },
        );
    let step = prop_oneof![
        40 => request,
        6 => Just(Step::Finish),
        2 => Just(Step::Ping),
        1 => Just(Step::Disconnect),
        1 => Just(Step::GoAway),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    /// Of two servers that are told the same, one serves in one go what it can: they send the same, execute the same, once at
    /// most, and count the same; and in one go is served what is dispatched whole in an open session, and nothing else.
    #[test]
    fn serving_in_one_go_is_no_different(
        steps in steps(),
        longest in prop::sample::select(&LONGEST[..]),
        confirmed: bool,
    ) {
        let new = || match confirmed {
            true => serving(longest),
            false => Serving::new(longest),
        };
        let ((mut long, session), (mut short, _)) = (new(), new());
        let mut last = 5;
        for (step, now_ns) in steps.into_iter().zip(0..) {
            match step {
                Step::Request { strange, slot, more, shape, len, handler, late } => {
                    let number = last + more;
                    last = last.max(number);
                    let bytes = vec![number as u8; 4 * PART_LEN as usize];
                    let longer = PART_LEN + len;
                    let part = match shape {
                        Shape::Whole => Part::whole(&bytes[..len as usize]),
                        Shape::First => Part {
                            message_len: longer,
                            offset: 0,
                            payload: &bytes[..PART_LEN as usize],
                        },
                        Shape::Second => Part {
                            message_len: longer,
                            offset: PART_LEN,
                            payload: &bytes[..len.min(PART_LEN) as usize],
                        },
                    };
                    let message = Message::Request { rpc_id: ECHO, part };
                    let datagram = bytes_of(session, number as u64, slot, message);
                    let from = if strange { STRANGER } else { PEER };
                    let dispatched = long.handle(now_ns, from, &datagram, handler, late);
                    let served = !late && short.serve(now_ns, from, &datagram, handler);
                    prop_assert!(dispatched || !served);
                    if confirmed && !late {
                        prop_assert_eq!(served, dispatched);
                    }
                    if !served {
                        short.handle(now_ns, from, &datagram, handler, late);
                    }
                }
                Step::Finish => {
                    long.finish();
                    short.finish();
                }
                Step::GoAway => {
                    long.server.go_away();
                    short.server.go_away();
                }
                Step::Ping | Step::Disconnect => {
                    let message = match step {
                        Step::Ping => Message::Ping,
                        _ => Message::Disconnect,
                    };
                    let datagram = bytes_of(session, 0, 0, message);
                    long.handle(now_ns, PEER, &datagram, Handler::Fails, false);
                    short.handle(now_ns, PEER, &datagram, Handler::Fails, false);
                }
            }
            prop_assert_eq!(&short.sent, &long.sent);
            prop_assert_eq!(short.server.counters(), long.server.counters());
            prop_assert_eq!(short.server.live_sessions(), long.server.live_sessions());
        }
        prop_assert_eq!(&short.executed, &long.executed);
        let requests: BTreeSet<_> = long.executed.iter().map(|(slot, number, ..)| (slot, number)).collect();
        prop_assert_eq!(requests.len(), long.executed.len(), "once at most");
    }
}
