//! `mitosis_rpc_server`: the server of the stress test.
//!
//! One thread receives and answers (the document's remark 2), on every active port of the machine. Beside it, the
//! resolver finds the way back to new clients, and rdma_cm's listener tells clients which queue pair to talk to.

pub mod failures;
pub mod pace;
mod peers;
mod refusals;
mod resolver;
pub mod service;
mod serving;
pub mod slots;

use mitosis_core::rpc::server::{Server, ServerConfig};
use mitosis_core::session::{ClusterKey, ServerSlot, Session};
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::resolution::MAX_SERVICE_ID;
use mitosis_core::wire::MAX_MESSAGE;

use self::failures::Failures;
use self::peers::Peers;
use self::refusals::Refusals;
use self::resolver::{Jobs, Resolver, Results};
use self::service::{Echo, Service};
use self::serving::{PortLine, Serving};
use self::slots::Budget;
use crate::cm::{Listener, Queues};
use crate::devices::{Devices, Port};
use crate::errno::Errno;
use crate::ffi;
use crate::key;
use crate::memory::{Owned, Table};
use crate::module::{Control, Slot};
use crate::payload::Maker;
use crate::thread::{random, Event, Thread};
use crate::verbs::ProtectionDomain;
use crate::{error, info};

/// Sessions that the server keeps: a thousand clients' threads and room for those that come anew.
const SESSIONS: usize = 1024;
/// Request slots of all sessions together: one each, and as many again for those that ask for windows.
const SLOTS: usize = 2 * SESSIONS;
/// The most slots of one session.
const MAX_SLOTS: u16 = 16;
/// The most credits of one session.
const MAX_CREDITS: u16 = 32;
/// Receive buffers a port: a credit for each session's slot, and some that are not handed out, for handshakes and Pings.
const RECEIVE_BUFFERS: u32 = SLOTS as u32 + RESERVE;
/// Receive buffers that are no credits.
const RESERVE: u32 = 128;
/// Memory for the pages of long messages, in both directions.
const BUDGET_LEN: usize = 64 << 20;
/// A session of which nothing is heard is given up after this.
const IDLE_TIMEOUT_NS: u64 = 30_000_000_000;
/// A client that has not shown that it got our Accept is given up after this.
const HANDSHAKE_TIMEOUT_NS: u64 = 5_000_000_000;

static SLOT: Slot = Slot::empty();

/// Starts the server. Called by insmod.
///
/// # Safety
/// `parameters` is valid during the call.
#[no_mangle]
pub unsafe extern "C" fn mitosis_server_start(parameters: *const ffi::ServerParameters) -> i32 {
    // SAFETY: by this function's contract.
    let parameters = unsafe { *parameters };
    if parameters.running_secs == 0 {
        error!("running_secs is 0: the server would stop at once");
        return Errno::INVALID.0;
    }
    if parameters.service_id > MAX_SERVICE_ID {
        error!(
            "service_id is ",
            parameters.service_id, ", more than ", MAX_SERVICE_ID
        );
        return Errno::INVALID.0;
    }
    // SAFETY: by this function's contract.
    let cluster_key = match key::parse(unsafe { parameters.cluster_key.bytes() }) {
        Ok(cluster_key) => cluster_key,
        Err(complaint) => {
            error!(complaint);
            return Errno::INVALID.0;
        }
    };
    let settings = Settings {
        running_secs: parameters.running_secs,
        test_rpc_id: parameters.test_rpc_id,
        qd_hint: parameters.qd_hint,
        service_id: parameters.service_id,
        cluster_key,
    };
    let body = move |control: &Control| match serve(&settings, control) {
        Ok(()) => {}
        Err(failure) => failure.log(),
    };
    match SLOT.load(c"mitosis_server", body) {
        Ok(()) => 0,
        Err(errno) => {
            error!("cannot start the server's thread: ", errno);
            errno.0
        }
    }
}

/// Stops the server. Called by rmmod.
#[no_mangle]
pub extern "C" fn mitosis_server_stop() {
    SLOT.unload();
}

/// What the module was asked to do.
struct Settings {
    running_secs: u32,
    test_rpc_id: u32,
    qd_hint: u32,
    service_id: u32,
    cluster_key: Option<ClusterKey>,
}

/// Why the server ended before its time.
pub enum Failure {
    /// There is no active port.
    NoPort,
    /// A device is to be removed.
    DeviceRemoved,
    /// The kernel refused something.
    Kernel(&'static str, Errno),
    /// A receive ended with an error.
    Receive {
        /// The completion's.
        status: u32,
    },
}

impl Failure {
    /// A line for the kernel log.
    pub fn log(&self) {
        match *self {
            Failure::NoPort => error!(
                "rpc server failed: this machine has no active RDMA port: load a driver, or make one by `rdma link \
                 add rxe0 type rxe netdev eth0`"
            ),
            Failure::DeviceRemoved => {
                error!("rpc server failed: its RDMA device is being removed")
            }
            Failure::Kernel(step, errno) => error!("rpc server failed: ", step, ": ", errno),
            Failure::Receive { status } => {
                error!("rpc server failed: a receive ended with completion status ", status)
            }
        }
    }
}

/// For `map_err`.
pub fn kernel(step: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| Failure::Kernel(step, errno)
}

/// The life of the server's thread. What is declared first is dropped last.
fn serve(settings: &Settings, control: &Control) -> Result<(), Failure> {
    info!("starting rpc server");
    let devices = Devices::open(&control.event).map_err(kernel("cannot watch RDMA devices"))?;
    let ports = open_ports(&devices)?;
    let service = Echo {
        rpc_id: settings.test_rpc_id,
        maker: Maker::default(),
    };
    let place = Place {
        qd_hint: settings.qd_hint,
        service_id: settings.service_id,
        cluster_key: settings.cluster_key,
        running_ns: u64::from(settings.running_secs) * 1_000_000_000,
    };
    serve_on(&place, control, &devices, &ports, service, &|| {})
}

/// Where and for how long a service is given.
pub struct Place {
    /// The hint that its queue goes by.
    pub qd_hint: u32,
    /// The service that it listens at.
    pub service_id: u32,
    /// What its clients must know.
    pub cluster_key: Option<ClusterKey>,
    /// How long.
    pub running_ns: u64,
}

/// A machine's active ports, each with a protection domain.
pub type ServedPorts = Table<(Port, ProtectionDomain)>;

/// Finds the ports to serve on, of which there must be one.
pub fn open_ports(devices: &Devices<'_>) -> Result<ServedPorts, Failure> {
    let found = devices.ports();
    if found.as_slice().is_empty() {
        return Err(Failure::NoPort);
    }
    Table::try_new(found.as_slice().len(), |index| {
        let port = found.as_slice().get(index).ok_or(Errno::INVALID)?;
        Ok((*port, ProtectionDomain::new(port)?))
    })
    .map_err(kernel("cannot allocate protection domains"))
}

/// Gives a service on the calling thread. What is declared first is dropped last.
pub fn serve_on<S: Service>(
    place: &Place,
    control: &Control,
    devices: &Devices<'_>,
    ports: &ServedPorts,
    service: S,
    housekeeping: &dyn Fn(),
) -> Result<(), Failure> {
    if place.cluster_key.is_none() {
        info!("no cluster_key: every peer is served");
    }
    let event = &control.event;
    let mut sessions = Table::try_new(SESSIONS, |_| Ok(Session::default()))
        .map_err(kernel("cannot allocate sessions"))?;

    let mut slots = Table::try_new(SLOTS, |_| Ok(ServerSlot::default()))
        .map_err(kernel("cannot allocate slots"))?;

    let wake_resolver = Event::new().map_err(kernel("cannot allocate"))?;
    let stop_resolver = Stop::new();
    let mut jobs = Owned::new(Jobs::new()).map_err(kernel("cannot allocate"))?;
    let mut results = Owned::new(Results::new()).map_err(kernel("cannot allocate"))?;
    let (jobs_in, jobs_out) = jobs.split();
    let (results_in, results_out) = results.split();

    let lines = Table::try_new(ports.len(), |index| {
        let (port, pd) = ports.get(index).ok_or(Errno::INVALID)?;
        PortLine::open(port, pd, event, RECEIVE_BUFFERS, SLOTS)
    })
    .map_err(kernel("cannot create a queue pair"))?;
    let datagram_len = lines
        .iter()
        .map(|line| line.endpoint.datagram_len())
        .max()
        .unwrap_or(0);
    let config = ServerConfig {
        epoch: random() as u32,
        random_seed: (u128::from(random()) << 64) | u128::from(random()),
        cluster_key: place.cluster_key,
        datagram_len,
        receive_buffers: RECEIVE_BUFFERS - RESERVE,
        max_slots: MAX_SLOTS,
        max_credits: MAX_CREDITS,
        max_message_len: MAX_MESSAGE,
        idle_timeout_ns: IDLE_TIMEOUT_NS,
        handshake_timeout_ns: HANDSHAKE_TIMEOUT_NS,
    };
    let peers = Peers::new(SESSIONS * 2).map_err(kernel("cannot allocate"))?;
    let queues = Table::try_new(lines.len(), |index| {
        let (port, _) = ports.get(index).ok_or(Errno::INVALID)?;
        let line = lines.get(index).ok_or(Errno::INVALID)?;
        Ok((*port, line.endpoint.qpn()))
    })
    .map_err(kernel("cannot allocate"))?;

    let mut serving = Serving {
        lines,
        peers,
        core: Server::new(config, &mut sessions, &mut slots),
        ports,
        budget: Budget::new(BUDGET_LEN),
        jobs: jobs_in,
        jobs_out: 0,
        results: results_out,
        wake_resolver: &wake_resolver,
        service,
        refusals: Refusals::default(),
        unresolved: 0,
        noise: 0,
        failures: Failures::default(),
    };
    let resolver = Resolver {
        ports,
        jobs: jobs_out,
        results: results_in,
        wake: &wake_resolver,
        found: event,
        stop: &stop_resolver,
    };
    // SAFETY: dropped at the end of this function, or by an early return.
    let resolver_thread = unsafe {
        Thread::start(c"mitosis_resolver", 0, move || resolver.run())
            .map_err(kernel("cannot start the resolver"))?
    };
    let end_resolver = EndOnDrop {
        stop: &stop_resolver,
        wake: &wake_resolver,
    };

    let queues = Queues {
        hint: place.qd_hint,
        queues: &queues,
    };
    let listen = |infiniband| {
        let wanted = ports
            .iter()
            .any(|(port, _)| port.is_infiniband() == infiniband);
        wanted
            .then(|| Listener::open(place.service_id, infiniband, &queues))
            .transpose()
            .map_err(kernel("cannot listen at the service (another server?)"))
    };
    let listeners = (listen(false)?, listen(true)?);

    for (line, (port, _)) in serving.lines.iter().zip(ports.iter()) {
        info!(
            "rpc server ready: service ",
            place.service_id,
            ", hint ",
            place.qd_hint,
            ", device ",
            *port,
            ", gid ",
            port.gid(),
            ", mtu ",
            port.mtu_bytes(),
            ", ",
            line.endpoint.receive_buffers(),
            " receive buffers"
        );
    }
    let outcome = serving.run(control, devices, place.running_ns, housekeeping);
    drop(listeners);
    drop(end_resolver);
    drop(resolver_thread);
    serving.log_totals();
    outcome
}

/// Tells the resolver to end, however the server's function is left.
struct EndOnDrop<'a> {
    stop: &'a Stop,
    wake: &'a Event,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.stop.want();
        self.wake.signal();
    }
}
