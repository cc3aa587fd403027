//! The core's client and server as endpoints of the world. Nothing else here knows their interface.

mod client;
mod server;
mod stranger;

pub use client::{ClientMemory, SimulatedClient};
pub use server::{ServerMemory, SimulatedServer};
pub use stranger::Stranger;

use mitosis_core::rpc::client::{CallSlot, Client};
use mitosis_core::rpc::server::Server;
use mitosis_core::session::{ClusterKey, ServerSlot, Session};
use mitosis_core::wire::{Header, Kind};

use crate::network::Address;
use crate::oracle::Violation;
use crate::random::Random;
use crate::world::Port;

/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

/// The limits and times of both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The longest datagram that both ends take, in bytes.
    pub datagram_len: u16,
    /// How many calls a client has outstanding at most.
    pub slots: u16,
    /// How many datagrams of a client are unanswered at most.
    pub credits: u16,
    /// For how many sessions the server has room.
    pub sessions: u32,
    /// How many receive buffers the server shares out as credits.
    pub receive_buffers: u32,
    /// The longest request and reply, in bytes.
    pub max_message_len: u32,
    /// Whether both ends prove that they know a common key.
    pub keyed: bool,
    /// The first, the shortest and the longest retransmission interval.
    pub rto_ns: (u64, u64, u64),
    /// How long a client tries to open a session.
    pub connect_timeout_ns: u64,
    /// How long a call may take.
    pub call_timeout_ns: u64,
    /// How long the server keeps a silent session.
    pub idle_timeout_ns: u64,
    /// How long the server keeps an unconfirmed session.
    pub handshake_timeout_ns: u64,
    /// The least and the greatest time that a late handler takes.
    pub late_ns: (u64, u64),
}

impl Settings {
    /// Calls that wait for as long as it takes, and sessions that outlive any series of losses that
    /// a run can contain: under loss, doubling and reordering each call must be answered.
    pub const PATIENT: Self = Self {
        datagram_len: 1024,
        slots: 4,
        credits: 8,
        sessions: 16,
        receive_buffers: 1 << 16,
        max_message_len: 64 * 1024,
        keyed: false,
        rto_ns: (100_000, 20_000, 2 * MS),
        connect_timeout_ns: u64::MAX,
        call_timeout_ns: u64::MAX,
        idle_timeout_ns: 60_000 * MS,
        handshake_timeout_ns: 60_000 * MS,
        late_ns: (1_000, 3 * MS),
    };

    /// Calls and sessions that end soon, so that a short story is long enough to see them end.
    pub const IMPATIENT: Self = Self {
        connect_timeout_ns: 20 * MS,
        call_timeout_ns: 30 * MS,
        idle_timeout_ns: 40 * MS,
        handshake_timeout_ns: 20 * MS,
        ..Self::PATIENT
    };

    /// Whether a call may end without its answer only because it takes long.
    pub fn is_impatient(&self) -> bool {
        self.call_timeout_ns < Self::PATIENT.call_timeout_ns
    }

    /// The key of a run.
    fn cluster_key(&self, seed: u64) -> Option<ClusterKey> {
        let mut key = [0; 16];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        self.keyed.then_some(ClusterKey(key))
    }
}

/// The generator of an endpoint in one of its lives.
fn random_of(seed: u64, address: u32, life: u32) -> Random {
    Random::new(seed, 1 + u64::from(address) + (u64::from(life) << 32))
}

/// Sends a datagram, which must fit the path.
fn send(port: &mut Port<'_>, settings: &Settings, to: Address, header: &[u8], payload: &[u8]) {
    let len = header.len() + payload.len();
    if len > usize::from(settings.datagram_len) {
        port.oracle.violated(Violation::Oversized { len });
    }
    port.send(to, header, payload);
}

/// How much memory the core takes for each of these, in bytes; buffers are the glue's own.
pub fn memory_sizes() -> [(&'static str, usize); 5] {
    [
        ("Session", size_of::<Session>()),
        ("ServerSlot", size_of::<ServerSlot>()),
        ("CallSlot", size_of::<CallSlot>()),
        ("Client", size_of::<Client<'_>>()),
        ("Server", size_of::<Server<'_>>()),
    ]
}

/// What a datagram is, for a trace. Its header is enough.
pub(crate) fn describe(datagram: &[u8]) -> String {
    let Ok((header, _)) = Header::parse(datagram) else {
        return format!("{} bytes", datagram.len());
    };
    let Header {
        kind,
        session,
        request,
        code,
        message_len_bytes,
        offset_bytes,
        payload_len_bytes,
        slot,
    } = header;
    let mut text = format!("{kind:?}");
    if session.generation != 0 {
        text += &format!(" {session}");
    }
    if request.0 != 0 {
        text += &format!(" {request} slot {slot}");
    }
    if matches!(kind, Kind::Request | Kind::Error) {
        text += &format!(" code {code}");
    }
    text + &format!(" [{offset_bytes}+{payload_len_bytes} of {message_len_bytes}]")
}
