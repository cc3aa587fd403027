//! Handshakes over a network that does as the input says.

use heapless::{Deque, Vec};

use super::{config, Pair, HONEST, KEY, RPC_ID, SHORT, STRANGER};
use crate::rpc::client::{CallSlot, Event};
use crate::rpc::server::{Action, Server, ServerConfig, ServerSlot, Session, ANSWER_LEN};
use crate::session::{ClusterKey, RequestId, SessionId};
use crate::wire::{Confirm, Datagram, Kind, Message, Part, MAX_CONTROL_LEN};

/// What some client knows that is not of the cluster.
const ANOTHER_KEY: ClusterKey = ClusterKey([0x66; 16]);

const SESSIONS: usize = 3;

/// How many datagrams are on their way, and how many are remembered.
const IN_FLIGHT: usize = 8;
const OVERHEARD: usize = 16;

/// How many sessions a run is granted at most that are told apart.
const GRANTED: usize = 64;

type Bytes = Vec<u8, 128>;

/// Where a datagram goes, and whom its receiver takes for its sender.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    ToServer(u32),
    ToClient,
}

/// Takes bytes for the doings of a client, a server and the network between them, the first byte for who knows the key:
///
/// - with a key, only the client that knows it is served, whatever a stranger overhears, changes and sends; and it takes
///   itself for connected only in a session that the server has granted to it;
/// - a session serves its owner alone, and nobody is granted more than was asked for;
/// - an answer is well-formed, and none is an Error to an Error;
/// - sessions that nobody uses expire, and afterwards a member is served.
pub fn handshake(input: &[u8]) {
    let mut input = input.iter().copied();
    let keys = input.next().unwrap_or(0);
    let of_server = (keys & 1 != 0).then_some(KEY);
    let of_client = match keys >> 1 & 3 {
        0 => None,
        1 => Some(ANOTHER_KEY),
        _ => Some(KEY),
    };
    let mut slots = [const { CallSlot::new() }; 4];
    let mut run = Run {
        pair: Pair::new(&mut slots, of_client),
        keyed: of_server.is_some(),
        entitled: of_server.map(|key| key.0) == of_client.map(|key| key.0),
        now_ns: 0,
        flight: Vec::new(),
        overheard: Deque::new(),
        granted: Vec::new(),
        of_stranger: None,
    };
    for life in 0_u32.. {
        let mut sessions = [const { Session::new() }; SESSIONS];
        let mut server_slots = [const { ServerSlot::new() }; 6];
        let config = ServerConfig {
            epoch: life.wrapping_add(1),
            random_seed: u128::from(life).wrapping_add(0x5eed),
            ..config(of_server)
        };
        let mut server = Server::new(config, &mut sessions, &mut server_slots);
        if run.live(&mut server, &mut input) == End::OfInput {
            run.settle(&mut server);
            if run.entitled {
                run.pair.connect_to(&mut server);
                run.pair.call(&mut server, SHORT);
            }
            return;
        }
    }
}

#[derive(PartialEq, Eq)]
enum End {
    OfServer,
    OfInput,
}

struct Run<'a> {
    pair: Pair<'a>,
    keyed: bool,
    /// The client knows what it must.
    entitled: bool,
    now_ns: u64,
    flight: Vec<(Way, Bytes), IN_FLIGHT>,
    overheard: Deque<(Way, Bytes), OVERHEARD>,
    granted: Vec<SessionId, GRANTED>,
    of_stranger: Option<SessionId>,
}

impl Run<'_> {
    /// The doings, until the server's end or that of the input.
    fn live(&mut self, server: &mut Server<'_>, input: &mut impl Iterator<Item = u8>) -> End {
        while let Some(doing) = input.next() {
            let argument = input.next().unwrap_or(0);
            let place = usize::from(argument);
            match doing % 15 {
                0 => self.pair.client.connect(self.now_ns),
                1 => self.transmit(),
                2 | 3 => self.deliver(server, place),
                4 => drop(self.take(place)),
                5 => self.double(place),
                6 => self.spoil(place, input.next().unwrap_or(0), input.next().unwrap_or(0)),
                7 => self.repeat(place, STRANGER),
                8 => self.repeat(place, HONEST),
                9 => self.pass(server, argument),
                10 => {
                    if let Some(slot) = self.pair.client.free_slot() {
                        assert!(self.pair.client.call(self.now_ns, slot, RPC_ID, 0).is_ok());
                    }
                }
                11 => {
                    let forged: Bytes = input.take(place % 112).collect();
                    let to_client = argument & 0x80 != 0;
                    let way = if to_client {
                        Way::ToClient
                    } else {
                        Way::ToServer(STRANGER)
                    };
                    self.arrive(server, way, &forged);
                }
                12 => self.pair.client.disconnect(),
                13 => self.stranger_speaks(server, argument),
                _ => return End::OfServer,
            }
        }
        End::OfInput
    }

    /// What the client has to say, is on its way.
    fn transmit(&mut self) {
        let mut header = [0; MAX_CONTROL_LEN];
        let now_ns = self.now_ns;
        if let Some(transmit) = self.pair.client.poll_transmit(now_ns, &mut header) {
            assert!(transmit
                .payload
                .is_none_or(|payload| payload.range.is_empty()));
            let bytes = header.get(..transmit.header_len).unwrap_or_default();
            self.send(Way::ToServer(HONEST), bytes);
        }
    }

    /// Where there is no room, it is lost.
    fn send(&mut self, way: Way, bytes: &[u8]) {
        let Ok(bytes) = Bytes::from_slice(bytes) else {
            panic!("{} bytes were to be sent", bytes.len())
        };
        assert!(Datagram::parse(&bytes).is_ok());
        if self.overheard.is_full() {
            self.overheard.pop_front();
        }
        assert!(self.overheard.push_back((way, bytes.clone())).is_ok());
        let _ = self.flight.push((way, bytes));
    }

    fn take(&mut self, place: usize) -> Option<(Way, Bytes)> {
        let place = place.checked_rem(self.flight.len())?;
        Some(self.flight.swap_remove(place))
    }

    fn deliver(&mut self, server: &mut Server<'_>, place: usize) {
        if let Some((way, bytes)) = self.take(place) {
            self.arrive(server, way, &bytes);
        }
    }

    fn double(&mut self, place: usize) {
        if let Some(double) = place
            .checked_rem(self.flight.len())
            .and_then(|place| self.flight.get(place).cloned())
        {
            let _ = self.flight.push(double);
        }
    }

    /// A stranger who has been granted a session, for a Connect of its own or one that it overheard, uses it.
    fn stranger_speaks(&mut self, server: &mut Server<'_>, argument: u8) {
        let Some(session) = self.of_stranger else {
            return;
        };
        let overheard = self.overheard.iter().rev().find_map(|(_, bytes)| {
            match Datagram::parse(bytes).ok()?.message {
                Message::Confirm(confirm) => Some(confirm),
                _ => None,
            }
        });
        let nothing = Part::whole(&[]);
        let message = match argument % 5 {
            0 => Message::Confirm(Confirm {
                tag: [argument; 16],
            }),
            1 => Message::Confirm(overheard.unwrap_or(Confirm { tag: [0; 16] })),
            2 => Message::Ping,
            3 => Message::Disconnect,
            _ => Message::Request {
                rpc_id: RPC_ID,
                part: nothing,
            },
        };
        let asks = matches!(message, Message::Request { .. });
        let spoken = Datagram {
            session,
            request: RequestId(u64::from(asks)),
            slot: 0,
            message,
        };
        let mut bytes = [0; 128];
        let Ok(len) = spoken.emit(&mut bytes) else {
            panic!("{spoken:?} cannot be written")
        };
        let bytes = bytes.get(..len).unwrap_or_default();
        self.arrive(server, Way::ToServer(STRANGER), bytes);
    }

    /// Somebody on the way changes a byte.
    fn spoil(&mut self, place: usize, at: u8, with: u8) {
        let place = place.checked_rem(self.flight.len()).unwrap_or(0);
        if let Some((_, bytes)) = self.flight.get_mut(place) {
            let at = usize::from(at).checked_rem(bytes.len()).unwrap_or(0);
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= with;
            }
        }
    }

    /// Something that was sent before comes once more; to the server, from `from`.
    fn repeat(&mut self, place: usize, from: u32) {
        let place = place.checked_rem(self.overheard.len()).unwrap_or(0);
        if let Some((way, bytes)) = self.overheard.iter().nth(place).cloned() {
            let way = match way {
                Way::ToServer(_) => Way::ToServer(from),
                Way::ToClient => Way::ToClient,
            };
            let _ = self.flight.push((way, bytes));
        }
    }

    fn pass(&mut self, server: &mut Server<'_>, tens_of_ms: u8) {
        let passed_ns = u64::from(tens_of_ms).saturating_mul(10_000_000);
        self.now_ns = self.now_ns.saturating_add(passed_ns);
        server.handle_timeout(self.now_ns);
        while server.poll_closed().is_some() {}
        while self.pair.client.handle_timeout(self.now_ns).is_some() {}
    }

    fn arrive(&mut self, server: &mut Server<'_>, way: Way, bytes: &[u8]) {
        match way {
            Way::ToServer(from) => self.at_server(server, from, bytes),
            Way::ToClient => self.at_client(bytes),
        }
        assert!(server.live_sessions() <= SESSIONS);
    }

    fn at_server(&mut self, server: &mut Server<'_>, from: u32, bytes: &[u8]) {
        let mut out = [0; ANSWER_LEN];
        let owner = server.peer_of(bytes);
        let answer_len = match server.handle_datagram(self.now_ns, from, bytes, &mut out) {
            Action::Answer { len, .. } => {
                assert_ne!(bytes.get(3), Some(&(Kind::Error as u8)), "to an Error");
                len
            }
            Action::Dispatch(request) => {
                assert_eq!(owner, Some(from), "a session serves its owner alone");
                let entitled = from == HONEST && self.entitled;
                assert!(
                    !self.keyed || entitled,
                    "who does not know the key is served"
                );
                let done = server.complete(&request.dispatched, Ok(0), &mut out);
                done.map_or(0, |reply| reply.header_len)
            }
            Action::Segment(segment) => {
                assert!(!self.keyed || self.entitled && from == HONEST);
                segment.answer_len
            }
            Action::Send(transmission) => {
                assert_eq!(owner, Some(from), "a saved reply goes to its owner alone");
                transmission.header_len
            }
            Action::Ignore(_) | Action::Done => 0,
        };
        while server.poll_closed().is_some() {}
        let answer = out.get(..answer_len).unwrap_or_default();
        if answer.is_empty() {
            return;
        }
        let Ok(datagram) = Datagram::parse(answer) else {
            panic!("the answer is malformed: {answer:?}")
        };
        if matches!(datagram.message, Message::Accept(_)) {
            let known = self.granted.contains(&datagram.session);
            let _ = known || self.granted.push(datagram.session).is_ok();
        }
        // What is answered to a stranger, the client does not hear.
        if from == STRANGER {
            let granted = matches!(datagram.message, Message::Accept(_));
            self.of_stranger = granted.then_some(datagram.session).or(self.of_stranger);
        } else {
            self.send(Way::ToClient, answer);
        }
    }

    fn at_client(&mut self, bytes: &[u8]) {
        let event = self.pair.client.handle_datagram(self.now_ns, bytes);
        let granted = self.pair.client.granted();
        if event == Ok(Some(Event::Connected)) {
            assert!(granted.slots <= 4 && granted.credits <= 4 && granted.datagram_len <= 4096);
            assert!(granted.max_message_len <= 1000);
            assert!(
                !self.keyed || self.entitled,
                "a server of another key is taken for ours"
            );
            let session = self.pair.client.session();
            let known = self.granted.contains(&session) || self.granted.is_full();
            assert!(!self.keyed || known, "{session:?} was granted by nobody");
        }
    }

    /// Time passes until whatever was opened is over.
    fn settle(&mut self, server: &mut Server<'_>) {
        self.flight.clear();
        self.pair.client.disconnect();
        self.pair.link.clear();
        while self
            .pair
            .client
            .poll_transmit(self.now_ns, &mut [0; MAX_CONTROL_LEN])
            .is_some()
        {}
        for _ in 0..1000 {
            let Some(at) = server.next_timeout_ns() else {
                break;
            };
            server.handle_timeout(at);
            while server.poll_closed().is_some() {}
        }
        assert_eq!(server.live_sessions(), 0, "whatever was opened, expires");
    }
}

/// Calls `each` with the name and the bytes of each seed of `handshake`'s corpus.
pub fn handshake_seeds(each: &mut dyn FnMut(&str, &[u8])) {
    // Connect; it, the Accept, the Confirm and the Pong arrive; a call.
    let opened = [
        0, 0, 1, 0, 2, 0, 2, 0, 1, 0, 2, 0, 2, 0, 10, 0, 1, 0, 2, 0, 2, 0,
    ];
    for (name, keys) in [
        ("without-a-key", 0),
        ("of-a-member", 5),
        ("of-another", 3),
        ("key-missing", 1),
        ("key-of-nobody", 4),
    ] {
        let mut seed: Vec<u8, 64> = Vec::new();
        assert!(seed.push(keys).is_ok() && seed.extend_from_slice(&opened).is_ok());
        each(name, &seed);
    }
    for (name, rest) in [
        (
            "overheard-by-a-stranger",
            &[7, 0, 7, 2, 7, 4, 2, 0, 2, 0, 2, 0][..],
        ),
        (
            "stranger-is-granted",
            &[7, 0, 2, 0, 13, 0, 13, 4, 13, 1, 13, 4, 13, 2, 13, 3],
        ),
        (
            "late-and-doubled",
            &[8, 0, 8, 1, 8, 2, 5, 0, 3, 3, 3, 2, 3, 1, 3, 0],
        ),
        (
            "restarted",
            &[
                14, 0, 8, 0, 8, 2, 3, 0, 3, 0, 0, 0, 1, 0, 2, 0, 2, 0, 1, 0, 2, 0,
            ],
        ),
        (
            "expired",
            &[9, 120, 10, 0, 1, 0, 2, 0, 2, 0, 0, 0, 1, 0, 2, 0],
        ),
        (
            "damaged",
            &[12, 0, 0, 0, 1, 0, 1, 0, 6, 0, 40, 1, 2, 0, 2, 0],
        ),
    ] {
        let mut seed: Vec<u8, 64> = Vec::new();
        assert!(seed.push(5).is_ok() && seed.extend_from_slice(&opened).is_ok());
        assert!(seed.extend_from_slice(rest).is_ok());
        each(name, &seed);
    }
}
