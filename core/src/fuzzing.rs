//! The bodies of the fuzz targets. Each panics if what it states does not hold; the endpoints never
//! do.

mod descriptor;
mod handshake;

pub use descriptor::{descriptor_decode, descriptor_decode_seeds};
pub use handshake::{handshake, handshake_seeds};

use heapless::{Deque, Vec};

use crate::rpc::client::{CallSlot, Client, ClientConfig, Event, RequestId};
use crate::rpc::server::{
    Action, Server, ServerConfig, ServerSlot, Session, Transmission, ANSWER_LEN,
};
use crate::session::{ClusterKey, SessionId};
use crate::wire::{
    Accept, Confirm, Connect, Datagram, ErrorCode, Kind, Message, Part, Reason, Refusal,
    HEADER_LEN, MAX_CONTROL_LEN, MAX_DATAGRAM,
};

const CONFIG: ServerConfig = ServerConfig {
    epoch: 0xe0,
    random_seed: 0x5eed,
    cluster_key: None,
    datagram_len: 256,
    receive_buffers: 64,
    max_slots: 4,
    max_credits: 8,
    max_message_len: 1000,
    idle_timeout_ns: 1_000_000_000,
    handshake_timeout_ns: 200_000_000,
};

/// The cluster's key, where there is one.
const KEY: ClusterKey = ClusterKey([0x4b; 16]);

/// The rpc id of the call that the client has outstanding while it is handed the input.
const RPC_ID: u32 = 0x73;

/// The key and the first nonce of the honest client.
const CLIENT_KEY: u64 = 0x1122_3344_5566_7788;
const CLIENT_NONCE: u64 = 0x10;

/// Owns the honest session, and sends from elsewhere.
const HONEST: u32 = 7;
const STRANGER: u32 = 8;

/// Lengths of requests: of one datagram and of three.
const SHORT: u32 = 4;
const LONG: u32 = 600;

/// Takes any bytes for a datagram:
///
/// - what parses, emits to the identical bytes;
/// - the server answers with something well-formed that is never an Error to an Error, and from a
///   stranger executes nothing in the name of the honest session;
/// - the client, in each of its states, survives it, never has more datagrams unanswered than its
///   credits, and afterwards an honest client connects and is served;
/// - with a cluster key, nothing is executed for a stranger at all.
pub fn rpc_decode(bytes: &[u8]) {
    round_trip(bytes);
    for key in [None, Some(KEY)] {
        hostile_server(bytes, key);
        hostile_client(bytes, key);
    }
}

fn round_trip(bytes: &[u8]) {
    // Longer than any datagram, so that no length is out of reach of the check.
    let mut again = [0; MAX_DATAGRAM + HEADER_LEN];
    let Ok(datagram) = Datagram::parse(bytes) else {
        return;
    };
    match datagram.emit(&mut again) {
        Ok(len) => assert_eq!(again.get(..len), Some(bytes)),
        Err(_) => assert!(bytes.len() > again.len()),
    }
}

/// The input comes to a client from its server, in each of its states.
fn hostile_server(bytes: &[u8], key: Option<ClusterKey>) {
    for stage in 0..5 {
        let mut slots = [const { CallSlot::new() }; 4];
        let mut sessions = [const { Session::new() }; 1];
        let mut server_slots = [const { ServerSlot::new() }; 4];
        let mut server = Server::new(config(key), &mut sessions, &mut server_slots);
        let mut pair = Pair::new(&mut slots, key);
        match stage {
            0 => pair.client.connect(0),
            1 => pair.connect_to(&mut server),
            2 | 3 => {
                pair.connect_to(&mut server);
                let len = if stage == 2 { SHORT } else { LONG };
                assert!(pair.client.call(0, 0, RPC_ID, len).is_ok());
                while pair
                    .client
                    .poll_transmit(0, &mut [0; MAX_CONTROL_LEN])
                    .is_some()
                {}
            }
            _ => {
                // Amid a long reply: only the first part of it has come.
                pair.connect_to(&mut server);
                assert!(pair.client.call(0, 0, RPC_ID, SHORT).is_ok());
                pair.reply_len = LONG;
                pair.step(&mut server);
            }
        }
        survives(&mut pair.client, bytes);
    }
}

fn survives(client: &mut Client<'_>, bytes: &[u8]) {
    let mut header = [0; MAX_CONTROL_LEN];
    if let Ok(Some(Event::Reply {
        payload,
        message_len,
        offset,
        ..
    })) = client.handle_datagram(0, bytes)
    {
        let Some(part) = bytes.get(payload) else {
            panic!("the payload does not lie in the datagram")
        };
        let end = (offset as usize).saturating_add(part.len());
        assert!(end <= message_len as usize && message_len <= client.granted().max_message_len);
    }
    for _ in 0..8 {
        while let Some(transmit) = client.poll_transmit(0, &mut header) {
            let payload = transmit.payload.map_or(0..0, |payload| payload.range);
            let mut sent: Vec<u8, 512> = Vec::new();
            let head = header.get(..transmit.header_len).unwrap_or_default();
            assert!(sent.extend_from_slice(head).is_ok());
            assert!(sent
                .resize(sent.len().saturating_add(payload.len()), 0)
                .is_ok());
            assert!(Datagram::parse(&sent).is_ok());
            assert!(client.in_flight() <= client.granted().credits);
        }
        if let Some(at) = client.next_timeout_ns() {
            while client.handle_timeout(at).is_some() {}
        }
    }
}

/// The input comes to a server, from a stranger and from the owner of a session, before and after
/// an honest call.
fn hostile_client(bytes: &[u8], key: Option<ClusterKey>) {
    for from in [STRANGER, HONEST] {
        let mut slots = [const { CallSlot::new() }; 4];
        let mut pair = Pair::new(&mut slots, key);
        let mut sessions = [const { Session::new() }; 4];
        let mut server_slots = [const { ServerSlot::new() }; 8];
        let mut server = Server::new(config(key), &mut sessions, &mut server_slots);
        injected(&mut server, from, bytes);
        pair.connect_to(&mut server);
        let honest = server.live_sessions();
        for (request_len, reply_len) in [(SHORT, SHORT), (LONG, LONG)] {
            pair.reply_len = reply_len;
            pair.call(&mut server, request_len);
        }
        injected(&mut server, from, bytes);
        if from == STRANGER {
            assert!(
                server.live_sessions() >= honest,
                "a stranger ends nobody's session"
            );
            pair.call(&mut server, LONG);
        }
        while let Some(at) = server.next_timeout_ns() {
            server.handle_timeout(at);
        }
        assert_eq!(server.live_sessions(), 0, "whatever was opened, expires");
    }
}

fn injected(server: &mut Server<'_>, from: u32, bytes: &[u8]) {
    let mut out = [0; ANSWER_LEN];
    let owner = server.peer_of(bytes);
    match server.handle_datagram(0, from, bytes, &mut out) {
        Action::Answer { len, .. } => {
            let answer = out.get(..len).map(Datagram::parse);
            let Some(Ok(answer)) = answer else {
                panic!("the answer is malformed: {answer:?}")
            };
            if bytes.get(3) == Some(&(Kind::Error as u8)) {
                panic!("an Error was answered: {answer:?}");
            }
        }
        Action::Dispatch(request) => {
            assert_eq!(owner, Some(from), "a session serves its owner alone");
            let len = request.payload.len() as u32;
            sent(
                server.complete(&request.dispatched, Ok(len), &mut out),
                &out,
            );
        }
        Action::Segment(segment) => {
            assert_eq!(owner, Some(from), "a session serves its owner alone");
            let end = (segment.offset as usize).saturating_add(segment.payload.len());
            assert!(end <= segment.message_len as usize);
            assert!(segment.message_len <= CONFIG.max_message_len);
            let busy = Err(ErrorCode::Busy);
            sent(server.complete(&segment.dispatched, busy, &mut out), &out);
        }
        Action::Send(transmission) => {
            assert_eq!(owner, Some(from), "a saved reply goes to its owner alone");
            sent(Some(transmission), &out);
            while let Some(transmission) = server.poll_transmit(&mut out) {
                sent(Some(transmission), &out);
            }
        }
        Action::Ignore(_) | Action::Done => {}
    }
    while server.poll_closed().is_some() {}
}

/// Puts together what is to be sent, and checks it.
fn sent(transmission: Option<Transmission>, out: &[u8]) -> Vec<u8, 512> {
    let mut datagram = Vec::new();
    if let Some(transmission) = transmission {
        let head = out.get(..transmission.header_len).unwrap_or_default();
        assert!(datagram.extend_from_slice(head).is_ok());
        let len = datagram.len().saturating_add(transmission.payload.len());
        assert!(datagram.resize(len, 0).is_ok());
        assert!(Datagram::parse(&datagram).is_ok());
    }
    datagram
}

fn config(cluster_key: Option<ClusterKey>) -> ServerConfig {
    ServerConfig {
        cluster_key,
        ..CONFIG
    }
}

/// An honest client and the link to whatever server it is given. Payloads are zeros.
struct Pair<'a> {
    client: Client<'a>,
    link: Deque<Vec<u8, 512>, 8>,
    reply_len: u32,
}

impl<'a> Pair<'a> {
    fn new(slots: &'a mut [CallSlot], cluster_key: Option<ClusterKey>) -> Self {
        let config = ClientConfig {
            client_key: CLIENT_KEY,
            nonce: CLIENT_NONCE,
            cluster_key,
            datagram_len: 4096,
            slots: 4,
            credits: 4,
            max_message_len: 1000,
            rto_initial_ns: 1_000_000,
            rto_min_ns: 1_000_000,
            rto_max_ns: 32_000_000,
            connect_timeout_ns: 10_000_000,
            call_timeout_ns: 10_000_000,
        };
        Self {
            client: Client::new(config, slots),
            link: Deque::new(),
            reply_len: SHORT,
        }
    }

    fn connect_to(&mut self, server: &mut Server<'_>) {
        self.client.connect(0);
        assert_eq!(self.run(server), Some(Event::Connected));
        assert_eq!(self.run(server), None);
    }

    fn call(&mut self, server: &mut Server<'_>, len: u32) {
        let Ok(called) = self.client.call(0, 0, RPC_ID, len) else {
            panic!("not connected")
        };
        loop {
            match self.run(server) {
                Some(Event::Reply {
                    request, complete, ..
                }) => {
                    assert_eq!(request, called);
                    if complete {
                        return;
                    }
                }
                event => panic!("{event:?}"),
            }
        }
    }

    /// Delivers until the client has something to say.
    fn run(&mut self, server: &mut Server<'_>) -> Option<Event> {
        loop {
            while let Some(answer) = self.link.pop_front() {
                match self.client.handle_datagram(0, &answer) {
                    Ok(Some(event)) => return Some(event),
                    Ok(None) => {}
                    Err(rejected) => panic!("{rejected}"),
                }
            }
            if !self.transmit(server) {
                return None;
            }
        }
    }

    /// Lets one datagram of the client and its answer through.
    fn step(&mut self, server: &mut Server<'_>) {
        self.transmit(server);
        if let Some(answer) = self.link.pop_front() {
            assert!(self.client.handle_datagram(0, &answer).is_ok());
        }
    }

    /// Sends one datagram of the client, if it has any.
    fn transmit(&mut self, server: &mut Server<'_>) -> bool {
        let mut header = [0; MAX_CONTROL_LEN];
        let Some(transmit) = self.client.poll_transmit(0, &mut header) else {
            return false;
        };
        let payload = transmit.payload.map_or(0..0, |payload| payload.range);
        let mut datagram: Vec<u8, 512> = Vec::new();
        let head = header.get(..transmit.header_len).unwrap_or_default();
        assert!(datagram.extend_from_slice(head).is_ok());
        let len = datagram.len().saturating_add(payload.len());
        assert!(datagram.resize(len, 0).is_ok());
        let mut out = [0; ANSWER_LEN];
        let answer = match server.handle_datagram(0, HONEST, &datagram, &mut out) {
            Action::Answer { len, .. } => {
                Vec::from_slice(out.get(..len).unwrap_or_default()).unwrap_or_default()
            }
            Action::Dispatch(request) => {
                let done = server.complete(&request.dispatched, Ok(self.reply_len), &mut out);
                self.deliver(server, done, &mut out);
                return true;
            }
            Action::Segment(segment) if segment.complete => {
                let done = server.complete(&segment.dispatched, Ok(self.reply_len), &mut out);
                self.deliver(server, done, &mut out);
                return true;
            }
            Action::Segment(segment) => {
                let answer = out.get(..segment.answer_len).unwrap_or_default();
                Vec::from_slice(answer).unwrap_or_default()
            }
            Action::Send(transmission) => {
                self.deliver(server, Some(transmission), &mut out);
                return true;
            }
            Action::Ignore(_) | Action::Done => Vec::new(),
        };
        if !answer.is_empty() {
            assert!(self.link.push_back(answer).is_ok());
        }
        true
    }

    /// Puts a part of a reply on the link, and those that follow it.
    fn deliver(&mut self, server: &mut Server<'_>, first: Option<Transmission>, out: &mut [u8]) {
        let mut next = first;
        while let Some(transmission) = next {
            let more = transmission.more;
            assert!(self.link.push_back(sent(Some(transmission), out)).is_ok());
            next = server.poll_transmit(out);
            assert_eq!(next.is_some(), more);
        }
    }
}

/// Calls `each` with the name and the bytes of each seed of `rpc_decode`'s corpus: a message of
/// every kind as the honest client and its server send it, and the classic ways to spoil one.
pub fn rpc_decode_seeds(each: &mut dyn FnMut(&str, &[u8])) {
    let session = SessionId {
        index: 0,
        generation: 1,
        epoch: CONFIG.epoch,
    };
    let connect = Connect {
        client_key: CLIENT_KEY,
        client_nonce: CLIENT_NONCE + 1,
        datagram_len: 4096,
        slots: 4,
        credits: 4,
        max_message_len: 1000,
        tag: None,
    };
    let another = Connect {
        client_key: 1,
        datagram_len: 256,
        ..connect
    };
    let for_more = Connect {
        credits: 0xf3,
        ..connect
    };
    let for_nothing = Connect {
        max_message_len: 0,
        ..connect
    };
    let member = Connect {
        tag: Some(KEY.connect_tag(&connect)),
        ..connect
    };
    let accept = Accept {
        client_nonce: connect.client_nonce,
        server_nonce: 0,
        datagram_len: 256,
        slots: 4,
        credits: 4,
        max_message_len: 1000,
        idle_timeout_ms: 1000,
        tag: None,
    };
    let keyed = Accept {
        server_nonce: 5,
        tag: Some([0; 16]),
        ..accept
    };
    let keyed = Accept {
        tag: Some(KEY.accept_tag(session, &keyed)),
        ..keyed
    };
    let ask = |part| Message::Request {
        rpc_id: RPC_ID,
        part,
    };
    let part = |offset, payload| Part {
        message_len: LONG,
        offset,
        payload,
    };
    let of_connect = |code, reason| {
        Message::Error(Refusal {
            code,
            reason,
            client_nonce: connect.client_nonce,
        })
    };
    let error = |code| Message::Error(Refusal::new(code));
    let none = SessionId::NONE;
    let zeros = &[0; 216][..];
    let message_len = LONG;
    let seeds = [
        ("connect", none, 0, Message::Connect(connect)),
        ("connect-of-another", none, 0, Message::Connect(another)),
        ("connect-for-more", none, 0, Message::Connect(for_more)),
        (
            "connect-for-nothing",
            none,
            0,
            Message::Connect(for_nothing),
        ),
        ("connect-of-a-member", none, 0, Message::Connect(member)),
        ("accept", session, 0, Message::Accept(accept)),
        ("accept-of-a-member", session, 0, Message::Accept(keyed)),
        (
            "confirm",
            session,
            0,
            Message::Confirm(Confirm { tag: [0; 16] }),
        ),
        ("request-empty", session, 1, ask(Part::whole(b""))),
        ("request-payload", session, 1, ask(Part::whole(b"payload"))),
        ("request-next", session, 3, ask(Part::whole(b""))),
        ("request-first-part", session, 3, ask(part(0, zeros))),
        ("request-last-part", session, 2, ask(part(432, &[0; 168]))),
        ("reply", session, 1, Message::Reply(Part::whole(b"payload"))),
        (
            "reply-first-part",
            session,
            1,
            Message::Reply(part(0, zeros)),
        ),
        (
            "reply-next-part",
            session,
            1,
            Message::Reply(part(216, zeros)),
        ),
        (
            "credit-return",
            session,
            1,
            Message::CreditReturn {
                message_len,
                offset: 216,
            },
        ),
        (
            "fetch",
            session,
            2,
            Message::Fetch {
                message_len,
                offset: 216,
                parts: 3,
            },
        ),
        ("error-no-such-rpc", session, 1, error(ErrorCode::NoSuchRpc)),
        (
            "error-no-such-session",
            session,
            1,
            error(ErrorCode::NoSuchSession),
        ),
        ("error-busy", none, 0, of_connect(ErrorCode::Busy, None)),
        (
            "error-wrong-key",
            none,
            0,
            of_connect(ErrorCode::NotAuthorised, Some(Reason::WrongKey)),
        ),
        ("error-bad-version", none, 0, error(ErrorCode::BadVersion)),
        ("disconnect", session, 0, Message::Disconnect),
        ("ping", session, 1, Message::Ping),
        ("pong", session, 1, Message::Pong),
    ];
    for (name, session, request, message) in seeds {
        let mut bytes = [0; 512];
        let datagram = Datagram {
            session,
            request: RequestId(request),
            slot: 0,
            message,
        };
        let sent = datagram
            .emit(&mut bytes)
            .ok()
            .and_then(|len| bytes.get_mut(..len));
        let Some(sent) = sent else {
            panic!("{name} is longer than the buffer")
        };
        each(name, sent);
        match name {
            "connect" => {
                spoil(sent, 2, 2);
                each("connect-of-version-2", sent);
            }
            "request-payload" => {
                each(
                    "request-truncated",
                    sent.get(..HEADER_LEN - 1).unwrap_or_default(),
                );
                spoil(sent, 31, 1);
                each("request-too-long", sent);
            }
            _ => {}
        }
    }
}

fn spoil(bytes: &mut [u8], at: usize, value: u8) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte = value;
    }
}
