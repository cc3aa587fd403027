//! One thread that calls: it keeps a session, measures each call, and finds the server again when it is lost.
//!
//! A server is lost when it says that it does not know the session, or when it is silent for so long that it is looked for
//! and is not there, or not the same. A call that was under way then may have been executed: it is not repeated, but
//! counted as interrupted.

use mitosis_core::histogram::Histogram;
use mitosis_core::rpc::client::{CallSlot, ClientConfig, Event as ClientEvent};
use mitosis_core::sync::gauge::Gauge;
use mitosis_core::sync::stop::Stop;

use super::connection::{Connection, Waited};
use super::failure::CallerFailure;
use super::Test;
use crate::cm::{self, Route, Unresolved};
use crate::devices::Devices;
use crate::errno::Errno;
use crate::info;
use crate::memory::Owned;
use crate::payload;
use crate::thread::{now_ns, random, Event};

/// Before the first retransmission, until a round trip has been measured.
const RTO_INITIAL_NS: u64 = 100_000_000;
/// Longer than a busy virtual machine leaves a thread waiting: what is repeated too soon is work for nothing.
const RTO_MIN_NS: u64 = 20_000_000;
/// Longer than a thousand synchronous callers queue at one server.
const RTO_MAX_NS: u64 = 1_000_000_000;
const CONNECT_TIMEOUT_NS: u64 = 8_000_000_000;
/// A call is given up only with its server, which [`SILENCE_NS`] finds out: this is for a server that is there but does
/// not answer.
const CALL_TIMEOUT_NS: u64 = 60_000_000_000;
/// Silence after which to look whether the server is still there.
const SILENCE_NS: u64 = 3_000_000_000;
/// Between two looks for a server that was lost.
const LOOK_INTERVAL_NS: u64 = 250_000_000;
/// Callers of a machine that connect at the same time. Hundreds of machines' and callers' handshakes at once would only
/// repeat themselves: a server that finds a sender's address for the first time asks the network for it.
const AT_ONCE: u64 = 4;
/// Longest sleep before it is admitted, so that the wish to stop is looked at.
const NAP_NS: u64 = 500_000_000;
/// A server that was lost must be back within this; and one that was found must have let a thread in.
const ABSENCE_NS: u64 = 60_000_000_000;

/// What all callers look at.
pub struct Shared<'a> {
    /// What to do.
    pub test: &'a Test,
    /// This machine's devices.
    pub devices: &'a Devices<'a>,
    /// The way to the server as it was found at the start.
    pub route: &'a Route,
    /// Signalled when a caller's state changes.
    pub main: &'a Event,
    /// When to end at once.
    pub stop: Stop,
    /// When to stop calling; 0 until the start.
    pub end_ns: Gauge,
    /// How many callers may connect: those with the lowest numbers.
    pub admitted: Gauge,
}

impl Shared<'_> {
    /// Lets the next callers connect, now that so many are connected.
    pub fn admit(&self, seats: &[Seat], connected: usize) {
        let (before, now) = (self.admitted.value(), connected as u64 + AT_ONCE);
        if now > before {
            self.admitted.set(now);
            let waiting = seats.iter().skip(before as usize);
            waiting
                .take((now - before) as usize)
                .for_each(|seat| seat.event.signal());
        }
    }

    /// Starts all callers, which are connected.
    pub fn begin(&self, seats: &[Seat], end_ns: u64) {
        self.end_ns.set(end_ns);
        for seat in seats {
            seat.event.signal();
        }
    }

    /// Ends all callers.
    pub fn end(&self, seats: &[Seat]) {
        self.stop.want();
        for seat in seats {
            seat.event.signal();
        }
    }
}

/// How far a caller is.
pub mod state {
    /// It has no session yet.
    pub const CONNECTING: u64 = 0;
    /// It has a session.
    pub const CONNECTED: u64 = 1;
    /// It has lost its server.
    pub const LOOKING: u64 = 2;
    /// It has come to its end.
    pub const FINISHED: u64 = 3;
    /// It has given up.
    pub const FAILED: u64 = 4;
}

/// What a caller and the main thread share.
pub struct Seat {
    /// What the caller sleeps on.
    pub event: Event,
    /// One of [`state`].
    pub state: Gauge,
    /// Requests that were answered.
    pub requests: Gauge,
}

impl Seat {
    /// A seat for a caller that has not begun.
    pub fn new() -> Result<Seat, Errno> {
        Ok(Seat {
            event: Event::new()?,
            state: Gauge::default(),
            requests: Gauge::default(),
        })
    }
}

/// What a caller leaves behind.
pub struct Record {
    /// Of the calls that were answered.
    pub latency: Owned<Histogram>,
    /// The longest of them, in nanoseconds.
    pub max_ns: u64,
    /// Calls that were under way when the server was lost.
    pub interrupted: u64,
    /// Why it gave up.
    pub failure: Option<CallerFailure>,
}

impl Record {
    /// Nothing yet.
    pub fn new() -> Result<Record, Errno> {
        Ok(Record {
            latency: Owned::zeroed()?,
            max_ns: 0,
            interrupted: 0,
            failure: None,
        })
    }
}

/// One thread that calls.
pub struct Caller<'a> {
    /// What all look at.
    pub shared: &'a Shared<'a>,
    /// Its own.
    pub seat: &'a Seat,
    /// Which it is.
    pub index: u32,
}

/// How a session ended.
enum SessionEnd {
    /// It is time to end.
    Finished,
    /// The server is gone, or does not know the session.
    Lost,
}

impl Caller<'_> {
    /// The life of the thread.
    pub fn run(&self, record: &mut Record) {
        info!("start stress test client ", self.index);
        info!("gid: ", self.shared.test.gid);
        self.await_admission();
        let outcome = self.call_until_end(record);
        record.failure = outcome.err();
        self.tell(match record.failure {
            None => state::FINISHED,
            Some(_) => state::FAILED,
        });
    }

    fn await_admission(&self) {
        while self.shared.admitted.value() <= self.index.into() && !self.shared.stop.wanted() {
            self.seat.event.wait(NAP_NS);
        }
    }

    fn tell(&self, state: u64) {
        self.seat.state.set(state);
        self.shared.main.signal();
    }

    fn call_until_end(&self, record: &mut Record) -> Result<(), CallerFailure> {
        let mut found: Option<Route> = None;
        let connect_by_ns = now_ns().saturating_add(ABSENCE_NS);
        loop {
            let route = found.as_ref().unwrap_or(self.shared.route);
            match self.session(route, record) {
                Ok(SessionEnd::Finished) => return Ok(()),
                Ok(SessionEnd::Lost) => {}
                // Before the start, a server has so many to let in that one may have to ask again.
                Err(failure) if failure.is_passing() && self.is_before(connect_by_ns) => {}
                Err(failure) => return Err(failure),
            }
            self.tell(match self.shared.end_ns.value() {
                0 => state::CONNECTING,
                _ => state::LOOKING,
            });
            match self.look()? {
                Some(route) => found = Some(route),
                None => return Ok(()),
            }
        }
    }

    /// Whether the clock of the test runs, or there is time to connect.
    fn is_before(&self, connect_by_ns: u64) -> bool {
        self.shared.end_ns.value() != 0 || now_ns() < connect_by_ns
    }

    /// Looks for the server until it is found. `None` when it is time to end.
    fn look(&self) -> Result<Option<Route>, CallerFailure> {
        let give_up_ns = now_ns().saturating_add(ABSENCE_NS);
        loop {
            let why = match self.resolve() {
                Ok(route) => return Ok(Some(route)),
                Err(Unresolved::Stopped) => return Ok(None),
                Err(why) => why,
            };
            let now = now_ns();
            if self.shared.stop.wanted() {
                return Ok(None);
            }
            let end_ns = self.shared.end_ns.value();
            if now >= give_up_ns || end_ns != 0 && now >= end_ns {
                return Err(CallerFailure::Lost(why));
            }
            self.seat.event.wait(LOOK_INTERVAL_NS);
        }
    }

    fn resolve(&self) -> Result<Route, Unresolved> {
        cm::resolve(
            self.shared.devices,
            &self.seat.event,
            &self.shared.stop,
            self.shared.test.gid,
            self.shared.test.server_service_id,
            &self.shared.test.ask,
        )
    }

    /// Opens a session on `route` and calls until it, or the time, is over.
    fn session(&self, route: &Route, record: &mut Record) -> Result<SessionEnd, CallerFailure> {
        let shared = self.shared;
        let message_len = payload::message_len(shared.test.payload_size);
        let mut slots = [CallSlot::new()];
        let mut connection = Connection::new(
            route,
            &self.seat.event,
            &shared.stop,
            &mut slots,
            message_len,
            shared.test.thread_count,
            |datagram_len, credits| {
                let key = u64::from(shared.test.session_id_base.wrapping_add(self.index));
                ClientConfig {
                    // The document's session id in the lower half; chance in the upper, so that no two share a key.
                    client_key: (random() << 32) | key,
                    nonce: random(),
                    cluster_key: shared.test.cluster_key,
                    datagram_len,
                    slots: 1,
                    credits,
                    max_message_len: message_len,
                    rto_initial_ns: RTO_INITIAL_NS,
                    rto_min_ns: RTO_MIN_NS,
                    rto_max_ns: RTO_MAX_NS,
                    connect_timeout_ns: CONNECT_TIMEOUT_NS,
                    call_timeout_ns: CALL_TIMEOUT_NS,
                }
            },
        )?;
        match connection.connect()? {
            Waited::Stopped => return Ok(SessionEnd::Finished),
            Waited::Connected => {}
            Waited::Failed(other) => return Err(CallerFailure::of(&other)),
            Waited::Replied => return Err(CallerFailure::Misuse),
            Waited::Silence => return Err(CallerFailure::ConnectTimedOut),
        }
        self.tell(state::CONNECTED);
        let begun = || Some(shared.end_ns.value()).filter(|&end_ns| end_ns != 0);
        let Some(end_ns) = connection.keep_until(begun)? else {
            return Ok(SessionEnd::Finished);
        };

        loop {
            connection.make_request()?;
            let start_ns = now_ns();
            if start_ns >= end_ns || shared.stop.wanted() {
                break;
            }
            let mut waited = connection.call(start_ns, shared.test.rpc_id, SILENCE_NS)?;
            while matches!(waited, Waited::Silence) {
                if !self.is_there(route) {
                    record.interrupted += 1;
                    return Ok(SessionEnd::Lost);
                }
                waited = connection.wait(SILENCE_NS)?;
            }
            match waited {
                Waited::Replied => {}
                Waited::Failed(ClientEvent::Closed { .. }) => {
                    record.interrupted += 1;
                    return Ok(SessionEnd::Lost);
                }
                Waited::Failed(other) => return Err(CallerFailure::of(&other)),
                Waited::Connected => return Err(CallerFailure::Misuse),
                Waited::Stopped | Waited::Silence => break,
            }
            let latency_ns = now_ns() - start_ns;
            record.latency.record(latency_ns);
            record.max_ns = record.max_ns.max(latency_ns);
            self.seat.requests.set(record.latency.count());
        }
        connection.disconnect()?;
        Ok(SessionEnd::Finished)
    }

    /// Whether the queue pair at the end of `route` is still the server's.
    fn is_there(&self, route: &Route) -> bool {
        match self.resolve() {
            Ok(again) => again.leads_where(route),
            // Asked to stop: the wait ends by that.
            Err(Unresolved::Stopped) => true,
            Err(_) => false,
        }
    }
}
