//! `mitosis_rpc_client`: the clients of the stress test on one machine.
//!
//! The main thread resolves the server once and starts `thread_count` callers ([`caller`]). Each has a queue pair and a
//! session of its own ([`connection`]) and calls synchronously (the document's remark 3), or keeps a window of calls under
//! way where `window` asks for more than one; the resolved way to the server is shared. When all are connected they start
//! together, and the main thread prints the machine's throughput once every interval, and the sums at the end ([`totals`]).

mod caller;
mod connection;
mod failure;
mod totals;

use mitosis_core::session::ClusterKey;
use mitosis_core::sync::gauge::Gauge;
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::resolution::{Ask, MAX_SERVICE_ID};

use self::caller::{state, Caller, Record, Seat, Shared};
use self::failure::Failure;
use crate::cm::{self, Unresolved};
use crate::devices::{Devices, Gid};
use crate::errno::Errno;
use crate::ffi;
use crate::key;
use crate::log::{Level, Line, Part};
use crate::memory::Table;
use crate::module::{Control, Slot};
use crate::payload;
use crate::thread::{now_ns, Thread};
use crate::{error, info, warning};

/// Most threads; the document's test runs 12.
const MAX_THREADS: u32 = 64;
/// Most calls that a thread has under way; the server grants a session no more.
const MAX_WINDOW: u32 = 16;
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
    let gid = unsafe { parameters.gid.bytes() };
    let Some(gid) = Gid::parse(gid) else {
        error!("gid is not eight groups of four hexadecimal digits with colons between them");
        return Errno::INVALID.0;
    };
    // SAFETY: by this function's contract.
    let cluster_key = match key::parse(unsafe { parameters.cluster_key.bytes() }) {
        Ok(cluster_key) => cluster_key,
        Err(complaint) => {
            error!(complaint);
            return Errno::INVALID.0;
        }
    };
    let test = Test {
        gid,
        cluster_key,
        payload_size: match parameters.payload_size {
            ffi::DEFAULT => payload::DEFAULT_PAYLOAD_SIZE,
            given => given,
        },
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
        window: parameters.window,
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
    cluster_key: Option<ClusterKey>,
    payload_size: u32,
    server_service_id: u32,
    ask: Ask,
    rpc_id: u32,
    running_secs: u32,
    report_interval_secs: u32,
    thread_count: u32,
    window: u32,
    session_id_base: u32,
}

impl Test {
    fn check(&self) -> Result<(), &'static str> {
        if self.thread_count == 0 || self.thread_count > MAX_THREADS {
            return Err("thread_count is not in 1 to 64");
        }
        if self.window == 0 || self.window > MAX_WINDOW {
            return Err("window is not in 1 to 16");
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
        if self.payload_size > payload::MAX_PAYLOAD_SIZE {
            return Err("payload_size and its checksum are more than a message of 8 MiB");
        }
        Ok(())
    }

    /// The life of the main thread.
    fn run(&self, control: &Control) {
        info!("starting rpc client");
        if payload::CHECKED || self.payload_size > 0 {
            info!(
                "payload: ",
                self.payload_size,
                if payload::CHECKED {
                    " bytes and a checksum"
                } else {
                    " bytes"
                }
            );
        }
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
            devices: &devices,
            route: &route,
            main: &control.event,
            stop: Stop::new(),
            end_ns: Gauge::default(),
            admitted: Gauge::default(),
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
        totals::log(elapsed_us, &records)
            .map_err(Failure::kernel("cannot allocate a histogram"))?;
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
        let mut lost_ns = None;
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
            let connected = seats
                .iter()
                .filter(|seat| seat.state.value() >= state::CONNECTED);
            shared.admit(seats, connected.count());
            let all = |state| seats.iter().all(|seat| seat.state.value() >= state);
            if start_ns == 0 && all(state::CONNECTED) {
                start_ns = now;
                report_ns = now;
                shared.begin(
                    seats,
                    now.saturating_add(u64::from(self.running_secs) * SECOND_NS),
                );
            }
            let looking = seats
                .iter()
                .any(|seat| seat.state.value() == state::LOOKING);
            match (looking, lost_ns) {
                (true, None) => {
                    warning!("lost the server; looking for it");
                    lost_ns = Some(now);
                }
                (false, Some(since_ns)) if all(state::CONNECTED) => {
                    info!(
                        "connected again after ",
                        (now - since_ns) / 1_000_000,
                        " ms"
                    );
                    lost_ns = None;
                }
                _ => {}
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

fn first_failure(records: &[Record]) -> Option<Failure> {
    let mut records = records.iter().zip(0u32..);
    records.find_map(|(record, thread)| {
        let failure = record.failure?;
        Some(Failure::Caller { thread, failure })
    })
}
