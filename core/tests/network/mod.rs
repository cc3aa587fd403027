//! A server and its clients joined by queues under a virtual clock, with a fate for each datagram.

use std::collections::VecDeque;

use mitosis_core::rpc::client::{CallError, CallSlot, Client, ClientConfig, Event, RequestId};
use mitosis_core::rpc::server::{
    Action, Closed, Dispatched, PeerId, Server, ServerConfig, ServerSlot, Session, Transmission,
    ANSWER_LEN,
};
use mitosis_core::rpc::Rejected;
use mitosis_core::session::SessionId;
use mitosis_core::wire::{
    Connect, Datagram, ErrorCode, Kind, Message, MAX_CONTROL_LEN, MAX_MESSAGE,
};

pub const MS: u64 = 1_000_000;

/// Sends its payload back.
pub const ECHO: u32 = 1;
/// Runs and fails.
pub const FAILING: u32 = 2;
/// Replies with as many bytes as the first four of its payload say.
pub const LENGTH: u32 = 3;
/// No handler has this id.
pub const UNKNOWN: u32 = 99;

pub const SERVER: ServerConfig = ServerConfig {
    epoch: 0xe0,
    random_seed: 5,
    cluster_key: None,
    datagram_len: 1024,
    receive_buffers: 1 << 20,
    max_slots: 64,
    max_credits: 256,
    max_message_len: MAX_MESSAGE,
    idle_timeout_ns: 1000 * MS,
    handshake_timeout_ns: 200 * MS,
};

pub fn client_config(client_key: u64) -> ClientConfig {
    ClientConfig {
        client_key,
        nonce: client_key ^ 0x5555_5555,
        cluster_key: None,
        datagram_len: 4096,
        slots: 8,
        credits: 8,
        max_message_len: MAX_MESSAGE,
        rto_initial_ns: 10 * MS,
        rto_min_ns: MS,
        rto_max_ns: 320 * MS,
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
    /// Arrives with this bit changed, which the link has not noticed.
    Damaged(usize),
}

enum To {
    Server { from: usize },
    Client(usize),
}

pub struct Peer {
    pub client: Client<'static>,
    pub id: PeerId,
    /// By slot.
    requests: Vec<Vec<u8>>,
    replies: Vec<Vec<u8>>,
}

pub struct Network {
    pub now_ns: u64,
    pub server: Server<'static>,
    pub peers: Vec<Peer>,
    /// Each execution of a handler: rpc id and payload.
    pub executed: Vec<(u32, Vec<u8>)>,
    /// Whether handlers answer only when `finish` is called.
    pub late: bool,
    pub pending: Vec<(Dispatched, u32, Vec<u8>)>,
    /// Whether the server has no memory for requests of several datagrams.
    pub no_memory: bool,
    pub closed: Vec<Closed>,
    /// What the server and the clients ignored.
    pub rejected: Vec<Rejected>,
    /// How many datagrams of each kind were sent, lost ones included.
    pub sent: [u32; 12],
    pub fate: Box<dyn FnMut(Kind, u32) -> Fate>,
    /// Nothing has been doubled or overtaken yet.
    orderly: bool,
    undamaged: bool,
    sessions: usize,
    slots: usize,
    requests: Vec<Vec<u8>>,
    replies: Vec<Vec<u8>>,
    transit: VecDeque<(To, Vec<u8>)>,
}

impl Network {
    pub fn new(sessions: usize) -> Self {
        Self::with_server(SERVER, sessions)
    }

    pub fn with_server(config: ServerConfig, sessions: usize) -> Self {
        Self::with_slots(config, sessions, sessions * 8)
    }

    pub fn with_slots(config: ServerConfig, sessions: usize, slots: usize) -> Self {
        Self {
            now_ns: 0,
            server: new_server(config, sessions, slots),
            peers: Vec::new(),
            executed: Vec::new(),
            late: false,
            pending: Vec::new(),
            no_memory: false,
            closed: Vec::new(),
            rejected: Vec::new(),
            sent: [0; 12],
            fate: Box::new(|_, _| Fate::Arrives),
            orderly: true,
            undamaged: true,
            sessions,
            slots,
            requests: vec![Vec::new(); slots],
            replies: vec![Vec::new(); slots],
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
        let slots = usize::from(config.slots);
        self.peers.push(Peer {
            client: Client::new(config, Vec::leak(vec![CallSlot::new(); slots])),
            id,
            requests: vec![Vec::new(); slots],
            replies: vec![Vec::new(); slots],
        });
        self.peers.len() - 1
    }

    /// Replaces the server by one that knows nothing.
    pub fn restart_server(&mut self, config: ServerConfig) {
        self.server = new_server(config, self.sessions, self.slots);
        self.pending.clear();
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
        self.try_start_call(place, rpc_id, payload).unwrap()
    }

    pub fn try_start_call(
        &mut self,
        place: usize,
        rpc_id: u32,
        payload: &[u8],
    ) -> Result<RequestId, CallError> {
        let peer = &mut self.peers[place];
        let slot = peer.client.free_slot().expect("a slot is free");
        peer.requests[usize::from(slot)] = payload.to_vec();
        let len = payload.len() as u32;
        peer.client.call(self.now_ns, slot, rpc_id, len)
    }

    /// Lets a handler that waits complete.
    pub fn finish(&mut self, which: usize) {
        let (dispatched, rpc_id, payload) = self.pending.remove(which);
        self.execute(&dispatched, rpc_id, &payload);
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
            let mut events = Vec::new();
            while let Some(event) = self.peers[place].client.handle_timeout(self.now_ns) {
                events.push(event);
            }
            if !events.is_empty() {
                self.settle();
                return events;
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
                while let Some(event) = self.peers[place].client.handle_timeout(self.now_ns) {
                    events.push((place, event));
                }
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
    pub fn settle(&mut self) -> Vec<(usize, Event)> {
        let mut events = Vec::new();
        loop {
            for place in 0..self.peers.len() {
                self.transmit(place);
            }
            match self.transit.pop_front() {
                None => return events,
                Some((To::Server { from }, datagram)) => self.serve(from, &datagram),
                Some((To::Client(place), datagram)) => {
                    let event = self.take(place, &datagram);
                    events.extend(event.map(|event| (place, event)));
                }
            }
        }
    }

    /// Sends what the client has to send.
    pub fn transmit(&mut self, place: usize) {
        let mut header = [0; MAX_CONTROL_LEN];
        loop {
            let peer = &mut self.peers[place];
            let Some(transmit) = peer.client.poll_transmit(self.now_ns, &mut header) else {
                return;
            };
            assert!(peer.client.in_flight() <= peer.client.granted().credits);
            let mut datagram = header[..transmit.header_len].to_vec();
            if let Some(payload) = transmit.payload {
                let range = payload.range.start as usize..payload.range.end as usize;
                datagram.extend(&peer.requests[usize::from(payload.slot)][range]);
            }
            let credits = usize::from(peer.client.granted().credits);
            self.send(To::Server { from: place }, &datagram);
            // What the network doubles or holds back comes on top.
            if self.orderly {
                let credited = [Kind::Request, Kind::Fetch];
                assert!(
                    self.coming(
                        |to| matches!(to, To::Server { from } if *from == place),
                        &credited
                    ) <= credits
                );
                let answers = [Kind::Reply, Kind::CreditReturn, Kind::Error];
                assert!(
                    self.coming(|to| matches!(to, To::Client(to) if *to == place), &answers)
                        <= credits
                );
            }
        }
    }

    /// How many datagrams of these kinds are on their way there.
    fn coming(&self, there: impl Fn(&To) -> bool, kinds: &[Kind]) -> usize {
        let coming = self.transit.iter().filter(|(to, datagram)| {
            there(to) && kinds.iter().any(|kind| *kind as u8 == datagram[3])
        });
        coming.count()
    }

    /// Hands a datagram to a client. Parts of replies but the last are no events here.
    pub fn take(&mut self, place: usize, datagram: &[u8]) -> Option<Event> {
        let peer = &mut self.peers[place];
        match peer.client.handle_datagram(self.now_ns, datagram) {
            Ok(Some(Event::Reply {
                request,
                slot,
                message_len,
                offset,
                payload,
                complete,
            })) => {
                let reply = &mut peer.replies[usize::from(slot)];
                if offset == 0 {
                    reply.clear();
                }
                assert_eq!(
                    reply.len(),
                    offset as usize,
                    "parts come in order, once each"
                );
                reply.extend(&datagram[payload.clone()]);
                assert_eq!(complete, reply.len() == message_len as usize);
                if !complete {
                    return None;
                }
                let asked = &peer.requests[usize::from(slot)];
                assert!(
                    !self.undamaged || *reply == *asked || *reply == answer_of_length(asked),
                    "a reply is its own request's"
                );
                Some(Event::Reply {
                    request,
                    slot,
                    message_len,
                    offset,
                    payload,
                    complete,
                })
            }
            Ok(event) => event,
            Err(rejected) => {
                self.rejected.push(rejected);
                None
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
                self.begin(request.dispatched, request.rpc_id, request.payload.to_vec());
            }
            Action::Segment(segment) => {
                if self.no_memory {
                    let error = Err(ErrorCode::Busy);
                    let sent = self.server.complete(&segment.dispatched, error, &mut out);
                    self.send_transmission(sent, &mut out);
                    return;
                }
                let buffer = &mut self.requests[segment.dispatched.slot_index as usize];
                if segment.offset == 0 {
                    buffer.clear();
                }
                assert_eq!(buffer.len(), segment.offset as usize, "in order, once each");
                buffer.extend(segment.payload);
                assert!(buffer.len() <= segment.message_len as usize);
                assert!(!segment.complete || segment.answer_len == 0);
                if segment.complete {
                    assert_eq!(buffer.len(), segment.message_len as usize);
                    let payload = std::mem::take(buffer);
                    self.begin(segment.dispatched, segment.rpc_id, payload);
                } else if segment.answer_len > 0 {
                    self.send(To::Client(from), &out[..segment.answer_len]);
                }
            }
            Action::Send(transmission) => self.send_transmission(Some(transmission), &mut out),
        }
        self.collect_closed();
    }

    fn begin(&mut self, dispatched: Dispatched, rpc_id: u32, payload: Vec<u8>) {
        self.executed.push((rpc_id, payload.clone()));
        if self.late {
            self.pending.push((dispatched, rpc_id, payload));
        } else {
            self.execute(&dispatched, rpc_id, &payload);
        }
    }

    fn execute(&mut self, dispatched: &Dispatched, rpc_id: u32, payload: &[u8]) {
        let reply = &mut self.replies[dispatched.slot_index as usize];
        let result = match rpc_id {
            ECHO | LENGTH => {
                *reply = match rpc_id {
                    ECHO => payload.to_vec(),
                    _ => answer_of_length(payload),
                };
                Ok(reply.len() as u32)
            }
            FAILING => Err(ErrorCode::HandlerFailed),
            _ => Err(ErrorCode::NoSuchRpc),
        };
        let mut out = [0; ANSWER_LEN];
        let sent = self.server.complete(dispatched, result, &mut out);
        self.send_transmission(sent, &mut out);
        self.collect_closed();
    }

    fn send_transmission(&mut self, first: Option<Transmission>, out: &mut [u8]) {
        let mut next = first;
        while let Some(sent) = next {
            self.send_part(&sent, out);
            next = self.server.poll_transmit(out);
            assert_eq!(next.is_some(), sent.more);
        }
    }

    fn send_part(&mut self, sent: &Transmission, out: &[u8]) {
        let place = self.peers.iter().position(|peer| peer.id == sent.peer);
        let range = sent.payload.start as usize..sent.payload.end as usize;
        let mut datagram = out[..sent.header_len].to_vec();
        if !range.is_empty() {
            datagram.extend(&self.replies[sent.slot_index as usize][range]);
        }
        self.send(To::Client(place.unwrap()), &datagram);
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
        let fate = (self.fate)(Kind::from_u8(kind).unwrap(), *count);
        self.orderly &= matches!(fate, Fate::Arrives | Fate::Lost);
        match fate {
            Fate::Lost => {}
            Fate::Arrives => self.transit.push_back((to, datagram.to_vec())),
            Fate::Doubled => {
                self.transit.push_back((to, datagram.to_vec()));
                self.transit.push_back((again, datagram.to_vec()));
            }
            Fate::Damaged(bit) => {
                self.undamaged = false;
                let mut damaged = datagram.to_vec();
                let bit = bit % (8 * damaged.len());
                damaged[bit / 8] ^= 1 << (bit % 8);
                self.transit.push_back((to, damaged));
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

fn new_server(config: ServerConfig, sessions: usize, slots: usize) -> Server<'static> {
    Server::new(
        config,
        Vec::leak(vec![Session::default(); sessions]),
        Vec::leak(vec![ServerSlot::new(); slots]),
    )
}

/// What `LENGTH` replies.
fn answer_of_length(payload: &[u8]) -> Vec<u8> {
    let len = payload
        .first_chunk()
        .map_or(0, |len| u32::from_le_bytes(*len));
    // Damage may ask for more than there is.
    (0..len.min(MAX_MESSAGE + 1))
        .map(|place| (place % 251) as u8)
        .collect()
}

pub fn is_reply(event: &Event) -> bool {
    matches!(event, Event::Reply { complete: true, .. })
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

/// A Connect as a client of this key might send it.
pub fn connect_datagram(client_key: u64) -> Vec<u8> {
    let connect = Connect {
        client_key,
        client_nonce: 1,
        datagram_len: 4096,
        slots: 1,
        credits: 8,
        max_message_len: MAX_MESSAGE,
        tag: None,
    };
    bytes_of(SessionId::NONE, 0, 0, Message::Connect(connect))
}

pub fn bytes_of(session: SessionId, request: u64, slot: u16, message: Message<'_>) -> Vec<u8> {
    let mut bytes = vec![0; 4200];
    let len = Datagram {
        session,
        request: RequestId(request),
        slot,
        message,
    }
    .emit(&mut bytes)
    .unwrap();
    bytes.truncate(len);
    bytes
}
