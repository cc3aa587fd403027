//! `mitosis_rpc_client`: the clients of the stress test on one machine.
//!
//! The main thread resolves the server once and starts `thread_count` callers. Each has a queue pair and a session of
//! its own and calls synchronously (the document's remark 3); the resolved way to the server is shared. When all are
//! connected they start together, and the main thread prints the machine's throughput once every interval.

use mitosis_core::histogram::Histogram;
use mitosis_core::rpc::client::{Client, ClientConfig, Event as ClientEvent};
use mitosis_core::sync::gauge::Gauge;
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::resolution::{Ask, MAX_SERVICE_ID};
use mitosis_core::wire::ErrorCode;

use crate::cm::{self, Route, Unresolved};
use crate::devices::{Devices, Gid};
use crate::endpoint::Endpoint;
use crate::errno::Errno;
use crate::ffi;
use crate::log::{begin, Level, Line, Part};
use crate::memory::{Owned, Table};
use crate::module::{Control, Slot};
use crate::thread::{give_way, now_ns, random, Event, Patience, Thread};
use crate::verbs::{Completion, Direction, MappedPage, BATCH};
use crate::{error, info};

/// Most threads; the document's test runs 12.
const MAX_THREADS: u32 = 64;
/// Receive buffers a thread: one answer is outstanding, the rest is for repeated and late ones.
const RECEIVE_BUFFERS: u32 = 16;
/// Before the first retransmission. Longer than any queue at the server that synchronous clients can make.
const RETRANSMIT_NS: u64 = 200_000_000;
const CONNECT_TIMEOUT_NS: u64 = 8_000_000_000;
const CALL_TIMEOUT_NS: u64 = 8_000_000_000;
/// Longest sleep, so that the clock and the wish to stop are looked at.
const NAP_NS: u64 = 500_000_000;
const SECOND_NS: u64 = 1_000_000_000;

static SLOT: Slot = Slot::empty();

/// Starts the test. Called by insmod.
///
/// # Safety
/// `parameters` is valid during the call, and so are the bytes of its GID.
#[no_mangle]
pub unsafe extern "C" fn mitosis_client_start(parameters: *const ffi::ClientParameters) -> i32 {
    // SAFETY: by this function's contract.
    let parameters = unsafe { *parameters };
    // SAFETY: likewise.
    let gid = unsafe { core::slice::from_raw_parts(parameters.gid, parameters.gid_len as usize) };
    let Some(gid) = Gid::parse(gid) else {
        error!("gid is not eight groups of four hexadecimal digits with colons between them");
        return Errno::INVALID.0;
    };
    let test = Test {
        gid,
        server_service_id: parameters.server_service_id,
        ask: Ask {
            server_qd_hint: parameters.server_qd_hint,
            client_qd_hint: parameters.client_qd_hint,
            client_service_id: parameters.client_service_id_base,
        },
        rpc_id: parameters.test_rpc_id,
        running_secs: parameters.running_secs,
        report_interval_secs: parameters.report_interval,
        thread_count: parameters.thread_count,
        session_id_base: parameters.session_id_base,
    };
    if let Err(complaint) = test.check() {
        error!(complaint);
        return Errno::INVALID.0;
    }
    let body = move |control: &Control| test.run(control);
    match SLOT.load(c"mitosis_client", body) {
        Ok(()) => 0,
        Err(errno) => {
            error!("cannot start the client's thread: ", errno);
            errno.0
        }
    }
}

/// Stops the test. Called by rmmod.
#[no_mangle]
pub extern "C" fn mitosis_client_stop() {
    SLOT.unload();
    let mut line = Line::default();
    "krdma test framework dropped".put(&mut line);
    line.print(Level::Info);
}

/// What the module was asked to do.
struct Test {
    gid: Gid,
    server_service_id: u32,
    ask: Ask,
    rpc_id: u32,
    running_secs: u32,
    report_interval_secs: u32,
    thread_count: u32,
    session_id_base: u32,
}

/// Why a test failed.
#[derive(Clone, Copy)]
enum Failure {
    Unloaded,
    DeviceRemoved,
    Unresolved(Unresolved),
    Kernel(&'static str, Errno),
    Caller { thread: u32, failure: CallerFailure },
}

impl Failure {
    fn kernel(step: &'static str) -> impl FnOnce(Errno) -> Failure {
        move |errno| Failure::Kernel(step, errno)
    }
}

/// Why one of the threads failed.
#[derive(Clone, Copy)]
enum CallerFailure {
    Kernel(&'static str, Errno),
    Receive(u32),
    Refused(ErrorCode),
    ConnectTimedOut,
    Closed(ErrorCode),
    Failed(ErrorCode),
    CallTimedOut,
    Misuse,
}

impl Part for CallerFailure {
    fn put(&self, line: &mut Line) {
        match *self {
            CallerFailure::Kernel(step, errno) => {
                step.put(line);
                ": ".put(line);
                errno.put(line);
            }
            CallerFailure::Receive(status) => {
                "a receive ended with completion status ".put(line);
                status.put(line);
            }
            CallerFailure::Refused(code) => {
                "the server refused a session: ".put(line);
                code.text().put(line);
            }
            CallerFailure::ConnectTimedOut => {
                "the server did not answer the handshake in time".put(line);
            }
            CallerFailure::Closed(code) => {
                "the server ended the session: ".put(line);
                code.text().put(line);
            }
            CallerFailure::Failed(code) => {
                "the call failed: ".put(line);
                code.text().put(line);
            }
            CallerFailure::CallTimedOut => {
                "the server did not answer a call in time; has it stopped?".put(line);
            }
            CallerFailure::Misuse => "the call could not be begun".put(line),
        }
    }
}

impl Test {
    fn check(&self) -> Result<(), &'static str> {
        if self.thread_count == 0 || self.thread_count > MAX_THREADS {
            return Err("thread_count is not in 1 to 64");
        }
        if self.report_interval_secs == 0 {
            return Err("report_interval is 0: seconds between two reports are wanted");
        }
        if self.running_secs == 0 {
            return Err("running_secs is 0: the clients would stop at once");
        }
        if self.server_service_id > MAX_SERVICE_ID {
            return Err("server_service_id is more than 255");
        }
        Ok(())
    }

    /// The life of the main thread.
    fn run(&self, control: &Control) {
        info!("starting rpc client");
        match self.measure(control) {
            Ok(()) => info!("stress test done"),
            Err(Failure::Unloaded) => info!("stress test stopped before its end"),
            Err(Failure::DeviceRemoved) => {
                error!("stress test failed: the RDMA device is being removed")
            }
            Err(Failure::Unresolved(why)) => error!(
                "stress test failed: no server at gid ",
                self.gid, ", service ", self.server_service_id, ": ", why
            ),
            Err(Failure::Kernel(step, errno)) => error!("stress test failed: ", step, ": ", errno),
            Err(Failure::Caller { thread, failure }) => error!(
                "stress test failed: client ",
                thread, ", rpc id ", self.rpc_id, ": ", failure
            ),
        }
    }

    /// What is declared first is dropped last.
    fn measure(&self, control: &Control) -> Result<(), Failure> {
        let devices =
            Devices::open(&control.event).map_err(Failure::kernel("cannot watch RDMA devices"))?;
        let route = cm::resolve(
            &devices,
            &control.event,
            &control.stop,
            self.gid,
            self.server_service_id,
            &self.ask,
        )
        .map_err(|why| match why {
            Unresolved::Stopped => Failure::Unloaded,
            why => Failure::Unresolved(why),
        })?;

        let shared = Shared {
            test: self,
            route: &route,
            main: &control.event,
            stop: Stop::new(),
            end_ns: Gauge::default(),
        };
        let count = self.thread_count as usize;
        let seats =
            Table::try_new(count, |_| Seat::new()).map_err(Failure::kernel("cannot allocate"))?;
        let mut records =
            Table::try_new(count, |_| Record::new()).map_err(Failure::kernel("cannot allocate"))?;

        let callers = self.start(&shared, &seats, &mut records)?;
        let outcome = self.watch(control, &devices, &shared, &seats);
        drop(callers);
        let (elapsed_us, outcome) = match outcome {
            Ok(elapsed_us) => (elapsed_us, Ok(())),
            Err((elapsed_us, failure)) => (elapsed_us, Err(failure)),
        };
        self.log_totals(elapsed_us, &records)?;
        match first_failure(&records) {
            Some(failure) => Err(failure),
            None => outcome,
        }
    }

    fn start<'s>(
        &self,
        shared: &'s Shared<'s>,
        seats: &'s [Seat],
        records: &'s mut [Record],
    ) -> Result<Callers<'s>, Failure> {
        let mut callers = Callers {
            threads: Table::try_new(seats.len(), |_| Ok(None))
                .map_err(Failure::kernel("cannot allocate"))?,
            shared,
            seats,
        };
        let places = callers.threads.iter_mut().zip(0u32..);
        for ((place, index), (seat, record)) in places.zip(seats.iter().zip(records)) {
            let caller = Caller {
                shared,
                seat,
                index,
            };
            // SAFETY: `callers` drops the thread, here or at the end of `measure`.
            let thread =
                unsafe { Thread::start(c"mitosis_client", index + 1, move || caller.run(record)) };
            *place = Some(thread.map_err(Failure::kernel("cannot start a client's thread"))?);
        }
        Ok(callers)
    }

    /// Starts the clock when all are connected, reports, and waits for the end. How long it took, in microseconds.
    fn watch(
        &self,
        control: &Control,
        devices: &Devices<'_>,
        shared: &Shared<'_>,
        seats: &[Seat],
    ) -> Result<u64, (u64, Failure)> {
        let mut start_ns = 0;
        let mut report_ns = 0;
        let mut reported = 0;
        let interval_ns = u64::from(self.report_interval_secs) * SECOND_NS;
        loop {
            let now = now_ns();
            let elapsed_us = if start_ns == 0 {
                0
            } else {
                (now - start_ns) / 1_000
            };
            if control.stop.wanted() {
                return Err((elapsed_us, Failure::Unloaded));
            }
            if devices.removed() {
                return Err((elapsed_us, Failure::DeviceRemoved));
            }
            let all = |state| seats.iter().all(|seat| seat.state.value() >= state);
            if start_ns == 0 && all(state::CONNECTED) {
                start_ns = now;
                report_ns = now;
                shared.begin(
                    seats,
                    now.saturating_add(u64::from(self.running_secs) * SECOND_NS),
                );
            }
            if start_ns != 0 && now >= report_ns + interval_ns {
                let requests: u64 = seats.iter().map(|seat| seat.requests.value()).sum();
                let passed_us = (now - report_ns) / 1_000;
                let thpt = (requests - reported) * 1_000_000 / passed_us.max(1);
                info!("passed: ", passed_us, "us, thpt: ", thpt, " requests/s");
                report_ns = now;
                reported = requests;
            }
            let failed = seats.iter().any(|seat| seat.state.value() == state::FAILED);
            if failed || all(state::FINISHED) {
                return Ok(elapsed_us);
            }
            let wait_ns = if start_ns == 0 {
                NAP_NS
            } else {
                (report_ns + interval_ns).saturating_sub(now).min(NAP_NS)
            };
            control.event.wait(wait_ns);
        }
    }

    fn log_totals(&self, elapsed_us: u64, records: &[Record]) -> Result<(), Failure> {
        let mut latency =
            Owned::<Histogram>::zeroed().map_err(Failure::kernel("cannot allocate a histogram"))?;
        let mut max_ns = 0;
        let mut errors = 0u64;
        for record in records {
            latency.merge(&record.latency);
            max_ns = max_ns.max(record.max_ns);
            errors += u64::from(record.failure.is_some());
        }
        info!(
            "total: requests ",
            latency.count(),
            ", errors ",
            errors,
            ", elapsed_us ",
            elapsed_us,
            ", threads ",
            self.thread_count
        );
        if latency.count() == 0 {
            return Ok(());
        }
        let quantile = |per_mille| latency.quantile_ns(per_mille).unwrap_or(0).min(max_ns);
        info!(
            "latency_ns: p50 ",
            quantile(500),
            ", p99 ",
            quantile(990),
            ", p999 ",
            quantile(999),
            ", max ",
            max_ns
        );
        log_buckets(&latency);
        Ok(())
    }
}

/// Prints the histogram as pairs `index:count`, from which the runner adds up those of all machines.
fn log_buckets(latency: &Histogram) {
    /// Room for the longest pair.
    const PAIR_LEN: usize = 28;
    let mut buckets = latency.buckets().peekable();
    while buckets.peek().is_some() {
        let mut line = Line::default();
        begin(&mut line, file!(), line!(), "INFO ");
        "latency buckets:".put(&mut line);
        while line.room() > PAIR_LEN {
            let Some(bucket) = buckets.next() else { break };
            " ".put(&mut line);
            bucket.index.put(&mut line);
            ":".put(&mut line);
            bucket.count.put(&mut line);
        }
        line.print(Level::Info);
    }
}

fn first_failure(records: &[Record]) -> Option<Failure> {
    let mut records = records.iter().zip(0u32..);
    records.find_map(|(record, thread)| {
        let failure = record.failure?;
        Some(Failure::Caller { thread, failure })
    })
}

/// The callers' threads: ended and joined when dropped.
struct Callers<'s> {
    threads: Table<Option<Thread<'s>>>,
    shared: &'s Shared<'s>,
    seats: &'s [Seat],
}

impl Drop for Callers<'_> {
    fn drop(&mut self) {
        self.shared.end(self.seats);
        for thread in self.threads.iter_mut() {
            drop(thread.take());
        }
    }
}

/// What all callers look at.
struct Shared<'a> {
    test: &'a Test,
    route: &'a Route,
    main: &'a Event,
    stop: Stop,
    /// When to stop calling; 0 until the start.
    end_ns: Gauge,
}

impl Shared<'_> {
    fn begin(&self, seats: &[Seat], end_ns: u64) {
        self.end_ns.set(end_ns);
        for seat in seats {
            seat.event.signal();
        }
    }

    fn end(&self, seats: &[Seat]) {
        self.stop.want();
        for seat in seats {
            seat.event.signal();
        }
    }
}

/// How far a caller is.
mod state {
    pub const CONNECTED: u64 = 1;
    pub const FINISHED: u64 = 2;
    pub const FAILED: u64 = 3;
}

/// What a caller and the main thread share.
struct Seat {
    event: Event,
    state: Gauge,
    requests: Gauge,
}

impl Seat {
    fn new() -> Result<Seat, Errno> {
        Ok(Seat {
            event: Event::new()?,
            state: Gauge::default(),
            requests: Gauge::default(),
        })
    }
}

/// What a caller leaves behind.
struct Record {
    latency: Owned<Histogram>,
    max_ns: u64,
    failure: Option<CallerFailure>,
}

impl Record {
    fn new() -> Result<Record, Errno> {
        Ok(Record {
            latency: Owned::zeroed()?,
            max_ns: 0,
            failure: None,
        })
    }
}

/// One thread that calls.
struct Caller<'a> {
    shared: &'a Shared<'a>,
    seat: &'a Seat,
    index: u32,
}

impl Caller<'_> {
    fn run(&self, record: &mut Record) {
        info!("start stress test client ", self.index);
        info!("gid: ", self.shared.test.gid);
        let outcome = self.call_until_end(record);
        self.seat.state.set(match outcome {
            Ok(()) => state::FINISHED,
            Err(_) => state::FAILED,
        });
        record.failure = outcome.err();
        self.shared.main.signal();
    }

    fn call_until_end(&self, record: &mut Record) -> Result<(), CallerFailure> {
        let kernel = |step| move |errno| CallerFailure::Kernel(step, errno);
        let route = self.shared.route;
        let buffer = MappedPage::new(route.pd(), Direction::ToDevice)
            .map_err(kernel("cannot allocate a send buffer"))?;
        let endpoint = Endpoint::open(route.port(), route.pd(), &self.seat.event, RECEIVE_BUFFERS)
            .map_err(kernel("cannot create a queue pair"))?;
        let key = u64::from(self.shared.test.session_id_base.wrapping_add(self.index));
        let config = ClientConfig {
            // The document's session id in the lower half; chance in the upper, so that no two clients share a key.
            client_key: (random() << 32) | key,
            datagram_len: endpoint.datagram_len(),
            retransmit_ns: RETRANSMIT_NS,
            connect_timeout_ns: CONNECT_TIMEOUT_NS,
            call_timeout_ns: CALL_TIMEOUT_NS,
        };
        let mut line = Connection {
            client: Client::new(config),
            endpoint,
            buffer,
            caller: self,
            patience: Patience::default(),
        };
        line.client.connect(now_ns());
        match line.wait_event()? {
            None => return Ok(()),
            Some(ClientEvent::Connected) => {}
            Some(other) => return Err(failure_of(&other)),
        }
        self.seat.state.set(state::CONNECTED);
        self.shared.main.signal();
        let Some(end_ns) = line.wait_start()? else {
            return Ok(());
        };

        let mut requests = 0;
        let mut start_ns = now_ns();
        while start_ns < end_ns && !self.shared.stop.wanted() {
            line.client
                .call(start_ns, self.shared.test.rpc_id, 0)
                .map_err(|_| CallerFailure::Misuse)?;
            match line.wait_event()? {
                None => break,
                Some(ClientEvent::Replied { .. }) => {}
                Some(other) => return Err(failure_of(&other)),
            }
            let now = now_ns();
            let latency_ns = now - start_ns;
            record.latency.record(latency_ns);
            record.max_ns = record.max_ns.max(latency_ns);
            requests += 1;
            self.seat.requests.set(requests);
            start_ns = now;
        }
        line.client.disconnect();
        line.transmit(now_ns(), false)
    }
}

fn failure_of(event: &ClientEvent) -> CallerFailure {
    match *event {
        ClientEvent::Refused(code) => CallerFailure::Refused(code),
        ClientEvent::ConnectTimedOut => CallerFailure::ConnectTimedOut,
        ClientEvent::Failed { error, .. } => CallerFailure::Failed(error),
        ClientEvent::TimedOut { .. } => CallerFailure::CallTimedOut,
        ClientEvent::Closed(code) => CallerFailure::Closed(code),
        ClientEvent::Connected | ClientEvent::Replied { .. } => CallerFailure::Misuse,
    }
}

/// A session and the queue pair that carries it. The queue pair is dropped before the buffer that it sends from.
struct Connection<'a> {
    client: Client,
    endpoint: Endpoint<'a>,
    buffer: MappedPage,
    caller: &'a Caller<'a>,
    patience: Patience,
}

impl Connection<'_> {
    /// Sends what the core has to send.
    #[inline]
    fn transmit(&mut self, now_ns: u64, again: bool) -> Result<(), CallerFailure> {
        let to = self.caller.shared.route.destination();
        let kernel = |errno| CallerFailure::Kernel("cannot send", errno);
        while let Some(len) = self
            .client
            .poll_transmit(now_ns, self.buffer.page.bytes_mut())
        {
            let ticket = self
                .endpoint
                .send(&to, &self.buffer, len, again)
                .map_err(kernel)?;
            if again {
                // The answer to the first transmission does not prove that the second has left the buffer.
                self.endpoint.wait_sent(ticket).map_err(kernel)?;
            }
        }
        Ok(())
    }

    /// Drives the session until something happened. `None` when it is time to stop.
    fn wait_event(&mut self) -> Result<Option<ClientEvent>, CallerFailure> {
        let begun_ns = now_ns();
        self.transmit(begun_ns, false)?;
        self.patience.renew(begun_ns);
        loop {
            let (arrived, event) = self.receive()?;
            if event.is_some() {
                return Ok(event);
            }
            if self.caller.shared.stop.wanted() {
                return Ok(None);
            }
            let now = now_ns();
            if arrived {
                // What arrived may have given the core something to say.
                self.transmit(now, true)?;
                continue;
            }
            let timeout_ns = self.client.next_timeout_ns().unwrap_or(now + NAP_NS);
            if now >= timeout_ns {
                if let Some(event) = self.client.handle_timeout(now) {
                    return Ok(Some(event));
                }
                self.transmit(now, true)?;
                continue;
            }
            if self.patience.lasts(now) {
                give_way();
                continue;
            }
            if !self.endpoint.arm() {
                let timeout_ns = (timeout_ns - now).min(NAP_NS);
                self.patience.sleep(&self.caller.seat.event, timeout_ns);
            }
        }
    }

    /// Keeps the session alive until the start; then, when to end. `None` when it is time to stop.
    fn wait_start(&mut self) -> Result<Option<u64>, CallerFailure> {
        // What Connected left to be said: the Confirm.
        self.transmit(now_ns(), true)?;
        loop {
            match self.caller.shared.end_ns.value() {
                0 => {}
                end_ns => return Ok(Some(end_ns)),
            }
            if self.caller.shared.stop.wanted() {
                return Ok(None);
            }
            if let (_, Some(event)) = self.receive()? {
                return Err(failure_of(&event));
            }
            let now = now_ns();
            let timeout_ns = self.client.next_timeout_ns().unwrap_or(now + NAP_NS);
            if now >= timeout_ns {
                if let Some(event) = self.client.handle_timeout(now) {
                    return Err(failure_of(&event));
                }
                self.transmit(now, true)?;
            }
            self.caller
                .seat
                .event
                .wait(NAP_NS.min(timeout_ns.saturating_sub(now)));
        }
    }

    /// Takes in what has arrived, up to the first event; whether anything had.
    #[inline]
    fn receive(&mut self) -> Result<(bool, Option<ClientEvent>), CallerFailure> {
        let kernel = |errno| CallerFailure::Kernel("cannot post receives", errno);
        let mut completions = [Completion::default(); BATCH];
        let mut event = None;
        let arrived = self.endpoint.poll(&mut completions);
        for completion in arrived {
            if completion.status != 0 {
                return Err(CallerFailure::Receive(completion.status));
            }
            if let Some(received) = self.endpoint.received(completion) {
                // A datagram that the core rejects is nobody's answer: it is dropped.
                if let Ok(Some(happened)) = self.client.handle_datagram(now_ns(), received.datagram)
                {
                    event = Some(happened);
                }
            }
            self.endpoint.give_back(completion.wr_id).map_err(kernel)?;
        }
        if !arrived.is_empty() {
            self.endpoint.flush().map_err(kernel)?;
        }
        Ok((!arrived.is_empty(), event))
    }
}
