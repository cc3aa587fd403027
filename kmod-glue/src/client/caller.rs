//! One thread that calls: it keeps a session, measures each call, and finds the server again when it is lost.
//!
//! A server is lost when it says that it does not know the session, or when it is silent for so long that it is looked for
//! and its machine says that it is not there, or not the same. Calls that were under way then may have been executed: they
//! are not repeated, but counted as interrupted. A machine that does not answer is down, or has too much to do: the calls
//! stay under way until it does.

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
use crate::memory::{Owned, Table};
use crate::payload;
use crate::thread::{now_ns, random, Event};

/// Before the first retransmission, until a round trip has been measured.
const RTO_INITIAL_NS: u64 = 100_000_000;
/// Longer than a busy virtual machine leaves a thread waiting: what is repeated too soon is work for nothing.
const RTO_MIN_NS: u64 = 20_000_000;
/// Longer than a thousand synchronous callers queue at one server.
const RTO_MAX_NS: u64 = 1_000_000_000;
const CONNECT_TIMEOUT_NS: u64 = 8_000_000_000;
/// A call is given up only with its server, which [`SILENCE_NS`] finds out: this is for a server, or a machine, that does not
/// answer.
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

    /// A call was answered.
    fn add(&mut self, latency_ns: u64) {
        self.latency.record(latency_ns);
        self.max_ns = self.max_ns.max(latency_ns);
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

/// What became of a server that was silent.
enum Look {
    /// It is there, or it is time to stop: the wait ends by itself.
    There,
    /// Its machine is there without it, or with another.
    Gone,
    /// Its machine was not heard.
    Unheard(Unresolved),
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
        let window = shared.test.window;
        let mut slots = Table::try_new(window as usize, |_| Ok(CallSlot::new()))
            .map_err(|errno| CallerFailure::Kernel("cannot allocate slots", errno))?;
        let mut connection = Connection::new(
            route,
            &self.seat.event,
            &shared.stop,
            &mut slots,
            message_len,
            shared.test.thread_count,
            |datagram_len, slots, credits| {
                let key = u64::from(shared.test.session_id_base.wrapping_add(self.index));
                ClientConfig {
                    // The document's session id in the lower half; chance in the upper, so that no two share a key.
                    client_key: (random() << 32) | key,
                    nonce: random(),
                    cluster_key: shared.test.cluster_key,
                    datagram_len,
                    slots,
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
            Waited::Replied(_) => return Err(CallerFailure::Misuse),
            Waited::Silence => return Err(CallerFailure::ConnectTimedOut),
        }
        self.tell(state::CONNECTED);
        let begun = || Some(shared.end_ns.value()).filter(|&end_ns| end_ns != 0);
        let Some(end_ns) = connection.keep_until(begun)? else {
            return Ok(SessionEnd::Finished);
        };

        let ended = self.calls(&mut connection, route, record, end_ns)?;
        if matches!(ended, SessionEnd::Finished) {
            connection.disconnect()?;
        }
        Ok(ended)
    }

    /// Keeps the window full until the session, or the time, is over.
    fn calls(
        &self,
        connection: &mut Connection<'_>,
        route: &Route,
        record: &mut Record,
        end_ns: u64,
    ) -> Result<SessionEnd, CallerFailure> {
        let shared = self.shared;
        let mut silence_ns = SILENCE_NS;
        loop {
            let mut over = false;
            while let (Some(slot), false) = (connection.free_slot(), over) {
                connection.make_request(slot)?;
                let now = now_ns();
                over = now >= end_ns || shared.stop.wanted();
                if !over {
                    connection.call(now, slot, shared.test.rpc_id)?;
                }
            }
            // A session that has closed has no call under way either, but that is still to be told.
            if over && connection.under_way().is_empty() {
                return Ok(SessionEnd::Finished);
            }
            match connection.wait(silence_ns)? {
                Waited::Replied(slots) => {
                    let now = now_ns();
                    for slot in slots.iter() {
                        record.add(now.saturating_sub(connection.begun_ns(slot)));
                    }
                    self.seat.requests.set(record.latency.count());
                    self.heard(&mut silence_ns);
                }
                Waited::Silence => match self.look_at(route) {
                    Look::There => self.heard(&mut silence_ns),
                    Look::Gone => {
                        record.interrupted += u64::from(connection.under_way().len());
                        return Ok(SessionEnd::Lost);
                    }
                    Look::Unheard(why) if now_ns() >= end_ns => {
                        record.interrupted += u64::from(connection.under_way().len());
                        return Err(CallerFailure::Lost(why));
                    }
                    Look::Unheard(_) => {
                        silence_ns = LOOK_INTERVAL_NS;
                        self.tell(state::LOOKING);
                    }
                },
                Waited::Failed(ClientEvent::Closed { lost, .. }) => {
                    record.interrupted += u64::from(lost.len());
                    return Ok(SessionEnd::Lost);
                }
                Waited::Failed(other) => return Err(CallerFailure::of(&other)),
                Waited::Connected => return Err(CallerFailure::Misuse),
                Waited::Stopped => return Ok(SessionEnd::Finished),
            }
        }
    }

    /// The server was heard of, after whatever silence.
    #[inline]
    fn heard(&self, silence_ns: &mut u64) {
        if *silence_ns != SILENCE_NS {
            *silence_ns = SILENCE_NS;
            self.tell(state::CONNECTED);
        }
    }

    /// Whether the queue pair at the end of `route` is still the server's.
    fn look_at(&self, route: &Route) -> Look {
        match self.resolve() {
            Ok(again) if again.leads_where(route) => Look::There,
            Err(Unresolved::Stopped) => Look::There,
            Ok(_) | Err(Unresolved::NoService | Unresolved::Refused(_)) => Look::Gone,
            Err(why) => Look::Unheard(why),
        }
    }
}
