//! A server and its clients joined by queues under a virtual clock, with a fate for each datagram.
#![allow(dead_code)] // Each test binary uses its part.

use std::collections::VecDeque;

use mitosis_core::rpc::client::{Client, ClientConfig, Event, RequestId};
use mitosis_core::rpc::server::{
    Action, Closed, PeerId, Server, ServerConfig, Session, ANSWER_LEN,
};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{Connect, Datagram, ErrorCode, Kind, Message, HEADER_LEN, MAX_DATAGRAM};

pub const MS: u64 = 1_000_000;

/// Sends its payload back.
pub const ECHO: u32 = 1;
/// Runs and fails.
pub const FAILING: u32 = 2;
/// No handler has this id.
pub const UNKNOWN: u32 = 99;

pub const SERVER: ServerConfig = ServerConfig {
    epoch: 0xe0,
    datagram_len: 1024,
    idle_timeout_ns: 1000 * MS,
    handshake_timeout_ns: 200 * MS,
};

pub fn client_config(client_key: u64) -> ClientConfig {
    ClientConfig {
        client_key,
        datagram_len: 4096,
        retransmit_ns: 10 * MS,
        connect_timeout_ns: 500 * MS,
        call_timeout_ns: 400 * MS,
    }
}

/// What happens to a datagram on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    Lost,
    Doubled,
    /// Arrives after what is sent next.
    Overtaken,
}

enum To {
    Server { from: usize },
    Client(usize),
}

pub struct Peer {
    pub client: Client,
    pub id: PeerId,
    buffer: Vec<u8>,
}

pub struct Network {
    pub now_ns: u64,
    pub server: Server<'static>,
    pub peers: Vec<Peer>,
    /// Each execution of a handler: rpc id and payload.
    pub executed: Vec<(u32, Vec<u8>)>,
    pub closed: Vec<Closed>,
    /// What the server and the clients ignored.
    pub rejected: Vec<Rejected>,
    /// How many datagrams of each kind were sent, lost ones included.
    pub sent: [u32; 10],
    pub fate: Box<dyn FnMut(Kind, u32) -> Fate>,
    replies: Vec<Vec<u8>>,
    transit: VecDeque<(To, Vec<u8>)>,
}

impl Network {
    pub fn new(slots: usize) -> Self {
        Self::with_server(SERVER, slots)
    }

    pub fn with_server(config: ServerConfig, slots: usize) -> Self {
        Self {
            now_ns: 0,
            server: new_server(config, slots),
            peers: Vec::new(),
            executed: Vec::new(),
            closed: Vec::new(),
            rejected: Vec::new(),
            sent: [0; 10],
            fate: Box::new(|_, _| Fate::Arrives),
            replies: vec![vec![0; MAX_DATAGRAM]; slots],
            transit: VecDeque::new(),
        }
    }

    /// Adds a client, whose peer id and key follow from its place.
    pub fn add_client(&mut self) -> usize {
        let place = self.peers.len();
        self.add_client_with(client_config(1000 + place as u64))
    }

    pub fn add_client_with(&mut self, config: ClientConfig) -> usize {
        let id = 7 + self.peers.len() as PeerId;
        let buffer = vec![0; MAX_DATAGRAM];
        self.peers.push(Peer {
            client: Client::new(config),
            id,
            buffer,
        });
        self.peers.len() - 1
    }

    /// Replaces the server by one that knows nothing.
    pub fn restart_server(&mut self, config: ServerConfig) {
        self.server = new_server(config, self.replies.len());
    }

    pub fn connect(&mut self, place: usize) -> Vec<Event> {
        self.peers[place].client.connect(self.now_ns);
        self.events_of(place)
    }

    /// Adds a client and connects it.
    pub fn connected_client(&mut self) -> usize {
        let place = self.add_client();
        assert_eq!(self.connect(place), [Event::Connected]);
        place
    }

    pub fn start_call(&mut self, place: usize, rpc_id: u32, payload: &[u8]) -> RequestId {
        let peer = &mut self.peers[place];
        peer.buffer[HEADER_LEN..][..payload.len()].copy_from_slice(payload);
        peer.client
            .call(self.now_ns, rpc_id, payload.len())
            .unwrap()
    }

    /// Calls and returns the event that ends the call. The payload of a reply is checked to be the
    /// request's.
    pub fn call(&mut self, place: usize, rpc_id: u32, payload: &[u8]) -> Event {
        self.start_call(place, rpc_id, payload);
        let mut events = self.events_of(place);
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    /// Runs until the client has something to say, or has nothing to wait for.
    pub fn events_of(&mut self, place: usize) -> Vec<Event> {
        loop {
            let events = self.settle();
            let of_place: Vec<_> = events
                .into_iter()
                .filter(|(of, _)| *of == place)
                .map(|(_, event)| event)
                .collect();
            if !of_place.is_empty() {
                return of_place;
            }
            let Some(at) = self.peers[place].client.next_timeout_ns() else {
                return Vec::new();
            };
            self.now_ns = self.now_ns.max(at);
            if let Some(event) = self.peers[place].client.handle_timeout(self.now_ns) {
                self.settle();
                return vec![event];
            }
        }
    }

    /// Lets time pass, timer by timer, and returns the events.
    pub fn pass(&mut self, duration_ns: u64) -> Vec<(usize, Event)> {
        let end_ns = self.now_ns + duration_ns;
        let mut events = self.settle();
        loop {
            let clients = self
                .peers
                .iter()
                .filter_map(|peer| peer.client.next_timeout_ns());
            let next_ns = clients
                .chain(self.server.next_timeout_ns())
                .min()
                .unwrap_or(u64::MAX);
            if next_ns > end_ns {
                self.now_ns = end_ns;
                return events;
            }
            assert!(next_ns < u64::MAX);
            self.now_ns = self.now_ns.max(next_ns);
            for place in 0..self.peers.len() {
                events.extend(
                    self.peers[place]
                        .client
                        .handle_timeout(self.now_ns)
                        .map(|event| (place, event)),
                );
            }
            self.server.handle_timeout(self.now_ns);
            self.collect_closed();
            events.extend(self.settle());
        }
    }

    /// As [`Network::pass`], with every client dead.
    pub fn pass_without_clients(&mut self, duration_ns: u64) {
        let end_ns = self.now_ns + duration_ns;
        while let Some(at) = self.server.next_timeout_ns().filter(|at| *at <= end_ns) {
            self.now_ns = self.now_ns.max(at);
            self.server.handle_timeout(self.now_ns);
            self.collect_closed();
        }
        self.now_ns = end_ns;
    }

    /// Sends and delivers until everything has arrived.
    fn settle(&mut self) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        loop {
            for place in 0..self.peers.len() {
                let mut buffer = std::mem::take(&mut self.peers[place].buffer);
                while let Some(len) = self.peers[place]
                    .client
                    .poll_transmit(self.now_ns, &mut buffer)
                {
                    self.send(To::Server { from: place }, &buffer[..len]);
                }
                self.peers[place].buffer = buffer;
            }
            match self.transit.pop_front() {
                None => return events,
                Some((To::Server { from }, datagram)) => self.serve(from, &datagram),
                Some((To::Client(place), datagram)) => {
                    let peer = &mut self.peers[place];
                    match peer.client.handle_datagram(self.now_ns, &datagram) {
                        Ok(event) => {
                            if let Some(Event::Replied { payload, .. }) = &event {
                                let sent = &peer.buffer[HEADER_LEN..][..payload.len()];
                                assert_eq!(
                                    &datagram[payload.clone()],
                                    sent,
                                    "a reply is its own request's"
                                );
                            }
                            events.extend(event.map(|event| (place, event)));
                        }
                        Err(rejected) => self.rejected.push(rejected),
                    }
                }
            }
        }
    }

    /// Hands a datagram to the server as if the client at `from` had sent it.
    pub fn serve(&mut self, from: usize, datagram: &[u8]) {
        let peer = self.peers[from].id;
        let mut out = [0; ANSWER_LEN];
        match self
            .server
            .handle_datagram(self.now_ns, peer, datagram, &mut out)
        {
            Action::Ignore(rejected) => self.rejected.push(rejected),
            Action::Done => {}
            Action::Answer { len, .. } => self.send(To::Client(from), &out[..len]),
            Action::Dispatch(request) => {
                self.executed
                    .push((request.rpc_id, request.payload.to_vec()));
                let index = request.dispatched.session_index as usize;
                let mut reply = std::mem::take(&mut self.replies[index]);
                let result = match request.rpc_id {
                    ECHO => {
                        reply[HEADER_LEN..][..request.payload.len()]
                            .copy_from_slice(request.payload);
                        Ok(request.payload.len())
                    }
                    FAILING => Err(ErrorCode::HandlerFailed),
                    _ => Err(ErrorCode::NoSuchRpc),
                };
                let len = self
                    .server
                    .complete(&request.dispatched, result, &mut reply);
                self.send(To::Client(from), &reply[..len]);
                self.replies[index] = reply;
            }
            Action::Resend { session_index, len } => {
                let reply = self.replies[session_index as usize][..len].to_vec();
                self.send(To::Client(from), &reply);
            }
        }
        self.collect_closed();
    }

    fn collect_closed(&mut self) {
        while let Some(closed) = self.server.poll_closed() {
            self.closed.push(closed);
        }
    }

    fn send(&mut self, to: To, datagram: &[u8]) {
        let kind = datagram[3];
        let count = &mut self.sent[usize::from(kind)];
        *count += 1;
        let again = match to {
            To::Server { from } => To::Server { from },
            To::Client(place) => To::Client(place),
        };
        match (self.fate)(Kind::from_u8(kind).unwrap(), *count) {
            Fate::Lost => {}
            Fate::Arrives => self.transit.push_back((to, datagram.to_vec())),
            Fate::Doubled => {
                self.transit.push_back((to, datagram.to_vec()));
                self.transit.push_back((again, datagram.to_vec()));
            }
            Fate::Overtaken => {
                let last = self.transit.pop_back();
                self.transit.push_back((to, datagram.to_vec()));
                self.transit.extend(last);
            }
        }
    }

    pub fn sent(&self, kind: Kind) -> u32 {
        self.sent[kind as usize]
    }
}

fn new_server(config: ServerConfig, slots: usize) -> Server<'static> {
    Server::new(config, Vec::leak(vec![Session::default(); slots]))
}

/// Loses the first `count` datagrams of `kind`.
pub fn lose(kind: Kind, count: u32) -> Box<dyn FnMut(Kind, u32) -> Fate> {
    Box::new(move |of, nth| {
        if of == kind && nth <= count {
            Fate::Lost
        } else {
            Fate::Arrives
        }
    })
}

/// A Connect as a client of this key sends it.
pub fn connect_datagram(client_key: u64) -> Vec<u8> {
    let mut datagram = [0; 64];
    let message = Message::Connect(Connect {
        client_key,
        datagram_len: 4096,
    });
    let len = Datagram {
        session: SessionId::NONE,
        request: RequestId(0),
        message,
    }
    .emit(&mut datagram)
    .unwrap();
    datagram[..len].to_vec()
}
