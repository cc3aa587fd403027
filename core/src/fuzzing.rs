//! The bodies of the fuzz targets. Each panics if what it states does not hold; the endpoints never
//! do.

use heapless::{Deque, Vec};

use crate::rpc::client::{Client, ClientConfig, Event};
use crate::rpc::server::{Action, Server, ServerConfig, Session, ANSWER_LEN};
use crate::session::{RequestId, SessionId};
use crate::wire::{
    Accept, Connect, Datagram, ErrorCode, Kind, Message, Refusal, HEADER_LEN, MAX_DATAGRAM,
};

const CONFIG: ServerConfig = ServerConfig {
    epoch: 0xe0,
    datagram_len: 1024,
    idle_timeout_ns: 1_000_000_000,
    handshake_timeout_ns: 200_000_000,
};

/// The rpc id of the call that the client has outstanding while it is handed the input.
const RPC_ID: u32 = 0x73;

/// The key of the honest client.
const CLIENT_KEY: u64 = 0x1122_3344_5566_7788;

/// Owns the honest session, and sends from elsewhere.
const HONEST: u32 = 7;
const STRANGER: u32 = 8;

/// Takes any bytes for a datagram:
///
/// - what parses, emits to the identical bytes;
/// - the server answers with something well-formed that is never an Error to an Error, and from a
///   stranger executes nothing in the name of the honest session;
/// - the client, in each of its states, survives it, and afterwards an honest client connects and
///   is served.
pub fn rpc_decode(bytes: &[u8]) {
    round_trip(bytes);
    hostile_server(bytes);
    hostile_client(bytes);
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

/// The input comes to a client from its server, while it connects, is idle and calls.
fn hostile_server(bytes: &[u8]) {
    let mut pair = Pair::new();
    let mut connecting = pair.client.clone();
    connecting.connect(0);
    survives(&mut connecting, bytes);
    pair.connect();
    survives(&mut pair.client.clone(), bytes);
    assert!(pair.client.call(0, RPC_ID, 4).is_ok());
    survives(&mut pair.client.clone(), bytes);
}

fn survives(client: &mut Client, bytes: &[u8]) {
    let mut buffer = [0; MAX_DATAGRAM];
    if let Ok(Some(Event::Replied { payload, .. })) = client.handle_datagram(0, bytes) {
        assert!(
            bytes.get(payload).is_some(),
            "the payload lies in the datagram"
        );
    }
    for _ in 0..8 {
        while let Some(len) = client.poll_transmit(0, &mut buffer) {
            assert!(buffer
                .get(..len)
                .is_some_and(|sent| Datagram::parse(sent).is_ok()));
        }
        if let Some(at) = client.next_timeout_ns() {
            client.handle_timeout(at);
        }
    }
}

/// The input comes to a server, from a stranger and from the owner of a session, before and after
/// an honest call.
fn hostile_client(bytes: &[u8]) {
    for from in [STRANGER, HONEST] {
        let mut pair = Pair::new();
        let mut sessions = [const { Session::new() }; 4];
        let mut server = Server::new(CONFIG, &mut sessions);
        injected(&mut server, from, bytes);
        pair.connect_to(&mut server);
        let honest = server.live_sessions();
        pair.call(&mut server);
        injected(&mut server, from, bytes);
        if from == STRANGER {
            assert!(
                server.live_sessions() >= honest,
                "a stranger ends nobody's session"
            );
            pair.call(&mut server);
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
            let mut reply = [0; MAX_DATAGRAM];
            let len = server.complete(&request.dispatched, Ok(request.payload.len()), &mut reply);
            assert!(reply
                .get(..len)
                .is_some_and(|reply| Datagram::parse(reply).is_ok()));
        }
        Action::Resend { .. } => {
            assert_eq!(owner, Some(from), "a saved reply goes to its owner alone")
        }
        Action::Ignore(_) | Action::Done => {}
    }
    while server.poll_closed().is_some() {}
}

/// An honest client and the link to whatever server it is given.
struct Pair {
    client: Client,
    link: Deque<Vec<u8, 128>, 4>,
}

impl Pair {
    fn new() -> Self {
        let client = Client::new(ClientConfig {
            client_key: CLIENT_KEY,
            datagram_len: 4096,
            retransmit_ns: 1_000_000,
            connect_timeout_ns: 10_000_000,
            call_timeout_ns: 10_000_000,
        });
        Self {
            client,
            link: Deque::new(),
        }
    }

    /// Connects to a server of its own, which is then gone.
    fn connect(&mut self) {
        let mut sessions = [const { Session::new() }; 1];
        self.connect_to(&mut Server::new(CONFIG, &mut sessions));
    }

    fn connect_to(&mut self, server: &mut Server<'_>) {
        self.client.connect(0);
        assert_eq!(self.run(server), Some(Event::Connected));
        assert_eq!(self.run(server), None);
    }

    fn call(&mut self, server: &mut Server<'_>) {
        let Ok(called) = self.client.call(0, RPC_ID, 4) else {
            panic!("not connected")
        };
        match self.run(server) {
            Some(Event::Replied { request, .. }) => assert_eq!(request, called),
            event => panic!("{event:?}"),
        }
    }

    /// Delivers until the client has something to say.
    fn run(&mut self, server: &mut Server<'_>) -> Option<Event> {
        let mut buffer = [0; 128];
        while let Some(len) = self.client.poll_transmit(0, &mut buffer) {
            let mut out = [0; ANSWER_LEN];
            let mut reply = [0; 128];
            let answer = match server.handle_datagram(0, HONEST, buffer.get(..len)?, &mut out) {
                Action::Answer { len, .. } => out.get(..len),
                Action::Dispatch(request) => {
                    let len =
                        server.complete(&request.dispatched, Ok(request.payload.len()), &mut reply);
                    reply.get(..len)
                }
                Action::Ignore(_) | Action::Done | Action::Resend { .. } => None,
            };
            if let Some(Ok(answer)) = answer.map(Vec::from_slice) {
                assert!(self.link.push_back(answer).is_ok());
            }
            while let Some(answer) = self.link.pop_front() {
                match self.client.handle_datagram(0, &answer) {
                    Ok(Some(event)) => return Some(event),
                    Ok(None) => {}
                    Err(rejected) => panic!("{rejected}"),
                }
            }
        }
        None
    }
}

/// Calls `each` with the name and the bytes of each seed of `rpc_decode`'s corpus: a message of
/// every kind as the honest client and its server send it, and the classic ways to spoil one.
pub fn rpc_decode_seeds(each: &mut dyn FnMut(&str, &[u8])) {
    let client_key = CLIENT_KEY;
    let session = SessionId {
        index: 0,
        generation: 1,
        epoch: CONFIG.epoch,
    };
    let accept = Accept {
        client_key,
        datagram_len: 1024,
        slots: 1,
        idle_timeout_ms: 1000,
    };
    let refusal = |code, client_key| Message::Error(Refusal { code, client_key });
    let seeds = [
        (
            "connect",
            SessionId::NONE,
            0,
            Message::Connect(Connect {
                client_key,
                datagram_len: 4096,
            }),
        ),
        (
            "connect-of-another",
            SessionId::NONE,
            0,
            Message::Connect(Connect {
                client_key: 1,
                datagram_len: 256,
            }),
        ),
        ("accept", session, 0, Message::Accept(accept)),
        ("confirm", session, 0, Message::Confirm),
        (
            "request-empty",
            session,
            1,
            Message::Request {
                rpc_id: RPC_ID,
                payload: b"",
            },
        ),
        (
            "request-payload",
            session,
            1,
            Message::Request {
                rpc_id: RPC_ID,
                payload: b"payload",
            },
        ),
        (
            "request-next",
            session,
            2,
            Message::Request {
                rpc_id: RPC_ID,
                payload: b"",
            },
        ),
        (
            "reply",
            session,
            1,
            Message::Reply {
                payload: b"payload",
            },
        ),
        (
            "error-no-such-rpc",
            session,
            1,
            refusal(ErrorCode::NoSuchRpc, 0),
        ),
        (
            "error-no-such-session",
            session,
            1,
            refusal(ErrorCode::NoSuchSession, 0),
        ),
        (
            "error-busy",
            SessionId::NONE,
            0,
            refusal(ErrorCode::Busy, client_key),
        ),
        (
            "error-bad-version",
            SessionId::NONE,
            0,
            refusal(ErrorCode::BadVersion, 0),
        ),
        ("disconnect", session, 0, Message::Disconnect),
        ("ping", session, 1, Message::Ping),
        ("pong", session, 1, Message::Pong),
    ];
    for (name, session, request, message) in seeds {
        let mut bytes = [0; 128];
        let datagram = Datagram {
            session,
            request: RequestId(request),
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
                spoil(sent, 29, 1);
                each("request-segmented", sent);
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
