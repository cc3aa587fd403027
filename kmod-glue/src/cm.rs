//! Resolution: from a GID, a service id and a queue-descriptor hint to a queue pair (wire.md §10).

use core::ffi::c_void;
use core::ptr::NonNull;

use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::resolution::{service_port, Ask, Reason, ASK_LEN, QKEY};

use crate::devices::{Devices, Gid, Port, Ports};
use crate::errno::Errno;
use crate::ffi::{self, cm_step};
use crate::log::{Line, Part};
use crate::thread::{now_ns, Event};
use crate::verbs::{AddressHandle, Destination, ProtectionDomain};

/// How long the link layer may take to find the server's machine.
const ADDRESS_TIMEOUT_MS: u32 = 2_000;
/// How long the path may take.
const ROUTE_TIMEOUT_MS: u32 = 2_000;
/// How long the server's connection manager may take to answer.
const ANSWER_TIMEOUT_MS: u32 = 4_000;

/// Why a server could not be resolved.
#[derive(Clone, Copy)]
pub enum Unresolved {
    /// There is no active RDMA port on this machine.
    NoPort,
    /// No machine answers at this GID.
    NoMachine(Errno),
    /// There is no path to the machine.
    NoPath(Errno),
    /// The machine is there, but nothing listens at the service.
    NoService,
    /// The machine's connection manager does not answer.
    NoAnswer(Errno),
    /// The server said no.
    Refused(u32),
    /// The module is being unloaded.
    Stopped,
    /// The kernel refused one of the steps.
    Kernel(&'static str, Errno),
}

impl Part for Unresolved {
    fn put(&self, line: &mut Line) {
        match *self {
            Unresolved::NoPort => {
                "this machine has no active RDMA port: load a driver, or make one by \
                `rdma link add rxe0 type rxe netdev eth0`"
                    .put(line)
            }
            Unresolved::NoMachine(errno) => {
                "no machine answers at this GID: ".put(line);
                errno.put(line);
            }
            Unresolved::NoPath(errno) => {
                "no path to this GID: ".put(line);
                errno.put(line);
            }
            Unresolved::NoService => {
                "the machine is there, but no server listens at this service: insert \
                mitosis_rpc_server there first"
                    .put(line)
            }
            Unresolved::NoAnswer(errno) => {
                "the machine's connection manager does not answer: ".put(line);
                errno.put(line);
            }
            Unresolved::Refused(reason) => {
                "the server refused: ".put(line);
                Reason::from_u32(reason)
                    .map_or("it gave no reason", Reason::text)
                    .put(line);
            }
            Unresolved::Stopped => "stopped while resolving".put(line),
            Unresolved::Kernel(step, errno) => {
                step.put(line);
                ": ".put(line);
                errno.put(line);
            }
        }
    }
}

/// The way to a server's queue. Fields are dropped in this order: the handle before its domain.
pub struct Route {
    address: AddressHandle,
    pd: ProtectionDomain,
    port: Port,
    qpn: u32,
    qkey: u32,
}

impl Route {
    /// The protection domain for what sends on this route.
    pub fn pd(&self) -> &ProtectionDomain {
        &self.pd
    }

    /// This machine's port.
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// Whether this is the way to the same queue pair as `other`, as far as its number tells.
    pub fn leads_where(&self, other: &Route) -> bool {
        self.qpn == other.qpn && self.port.same(&other.port)
    }

    /// Where requests go.
    pub fn destination(&self) -> Destination<'_> {
        Destination {
            address: &self.address,
            qpn: self.qpn,
            qkey: self.qkey,
        }
    }
}

/// Finds the server `ask` at `gid` and `service_id`, over whichever port of this machine leads there.
///
/// The result must be dropped before `devices`.
pub fn resolve(
    devices: &Devices<'_>,
    event: &Event,
    stop: &Stop,
    gid: Gid,
    service_id: u32,
    ask: &Ask,
) -> Result<Route, Unresolved> {
    let service_port = service_port(service_id).ok_or(Unresolved::NoService)?;
    let ports = devices.ports();
    let mut outcome = Err(Unresolved::NoPort);
    for port in ports.as_slice() {
        outcome = Resolution {
            event,
            stop,
            ports: &ports,
        }
        .over(port, gid, service_port, ask);
        match outcome {
            Err(Unresolved::NoMachine(_) | Unresolved::NoPath(_)) => {}
            _ => break,
        }
    }
    outcome
}

/// One attempt, over one port.
struct Resolution<'a> {
    event: &'a Event,
    stop: &'a Stop,
    ports: &'a Ports,
}

/// An `rdma_cm_id`, closed when dropped.
struct CmId(NonNull<ffi::Resolution>);

impl Drop for CmId {
    fn drop(&mut self) {
        // SAFETY: opened in `over`, closed only here; afterwards no callback runs.
        unsafe { ffi::mitosis_cm_close(self.0.as_ptr()) }
    }
}

impl Resolution<'_> {
    fn over(
        &self,
        port: &Port,
        gid: Gid,
        service_port: u16,
        ask: &Ask,
    ) -> Result<Route, Unresolved> {
        let mut error = 0;
        // SAFETY: the event outlives the id, which is closed before this function returns.
        let raw = unsafe { ffi::mitosis_cm_open(self.event.as_ptr(), &mut error) };
        let kernel = |step| move |errno| Unresolved::Kernel(step, errno);
        let raw = NonNull::new(raw)
            .ok_or(Errno(error))
            .map_err(kernel("cannot create a connection identifier"))?;

        // The domain must outlive the handle that the id may hold: declared first, dropped last.
        let pd;
        let id = CmId(raw);

        // SAFETY: id, port and GID are valid during the call.
        Errno::check(unsafe {
            ffi::mitosis_cm_resolve_address(
                id.0.as_ptr(),
                &port.0,
                gid.0.as_ptr(),
                service_port,
                ADDRESS_TIMEOUT_MS,
            )
        })
        .map_err(Unresolved::NoMachine)?;
        self.wait(&id, cm_step::ADDRESS, ADDRESS_TIMEOUT_MS)
            .map_err(|outcome| outcome.or(Unresolved::NoMachine))?;

        let mut port_num = 0;
        // SAFETY: the address is resolved, so the id has a device.
        let device = unsafe { ffi::mitosis_cm_device(id.0.as_ptr(), &mut port_num) };
        let found = self
            .ports
            .as_slice()
            .iter()
            .find(|port| port.is(device, port_num));
        let Some(&port) = found else {
            return Err(Unresolved::NoPort);
        };
        pd = ProtectionDomain::new(&port).map_err(kernel("cannot allocate a protection domain"))?;

        // SAFETY: the address is resolved.
        Errno::check(unsafe { ffi::mitosis_cm_resolve_route(id.0.as_ptr(), ROUTE_TIMEOUT_MS) })
            .map_err(Unresolved::NoPath)?;
        self.wait(&id, cm_step::ROUTE, ROUTE_TIMEOUT_MS)
            .map_err(|outcome| outcome.or(Unresolved::NoPath))?;

        let private_data = ask.emit();
        // SAFETY: the route is resolved; the private data is copied during the call; `pd` outlives the id.
        Errno::check(unsafe {
            ffi::mitosis_cm_connect(
                id.0.as_ptr(),
                pd.as_ptr(),
                private_data.as_ptr(),
                ASK_LEN as u32,
            )
        })
        .map_err(kernel("cannot ask the server"))?;
        let state = self
            .wait(&id, cm_step::ESTABLISHED, ANSWER_TIMEOUT_MS)
            .map_err(|outcome| outcome.or(Unresolved::NoAnswer))?;

        // SAFETY: the handle was created in `pd`, which the route drops after it.
        let address = unsafe { AddressHandle::from_raw(ffi::mitosis_cm_take_ah(id.0.as_ptr())) };
        let address = address.ok_or(Unresolved::NoAnswer(Errno::NO_DEVICE))?;
        drop(id);
        Ok(Route {
            address,
            pd,
            port,
            qpn: state.remote_qpn,
            qkey: state.remote_qkey,
        })
    }

    fn wait(&self, id: &CmId, step: u32, timeout_ms: u32) -> Result<ffi::CmState, Outcome> {
        // The kernel's own deadline should come first; ours is for when it does not come at all.
        let deadline_ns = now_ns() + (u64::from(timeout_ms) + 500) * 1_000_000;
        loop {
            let mut state = ffi::CmState::default();
            // SAFETY: the id is open.
            unsafe { ffi::mitosis_cm_state(id.0.as_ptr(), &mut state) };
            match state.step {
                cm_step::FAILED => return Err(Outcome::Failed(Errno(state.status))),
                // SIDR status 2 is a refusal by the listener itself; others come from its connection manager.
                cm_step::REFUSED if state.status == 2 => {
                    return Err(Outcome::Refused(state.reason));
                }
                cm_step::REFUSED => return Err(Outcome::NoService),
                reached if reached == step => return Ok(state),
                _ => {}
            }
            if self.stop.wanted() {
                return Err(Outcome::Stopped);
            }
            let now_ns = now_ns();
            if now_ns >= deadline_ns {
                return Err(Outcome::Failed(Errno::TIMED_OUT));
            }
            self.event.wait(deadline_ns - now_ns);
        }
    }
}

/// How a step ended that did not succeed.
enum Outcome {
    Failed(Errno),
    Refused(u32),
    NoService,
    Stopped,
}

impl Outcome {
    fn or(self, failed: impl FnOnce(Errno) -> Unresolved) -> Unresolved {
        match self {
            Outcome::Failed(errno) => failed(errno),
            Outcome::Refused(reason) => Unresolved::Refused(reason),
            Outcome::NoService => Unresolved::NoService,
            Outcome::Stopped => Unresolved::Stopped,
        }
    }
}

/// The queues that a listener leads to.
pub struct Queues<'a> {
    /// The hint that they go by.
    pub hint: u32,
    /// A port and the number of the queue pair on it.
    pub queues: &'a [(Port, u32)],
}

impl Queues<'_> {
    fn answer(&self, request: &ffi::CmRequest, private_data: &[u8]) -> Result<u32, Reason> {
        let ask = Ask::parse(private_data)?;
        if ask.server_qd_hint != self.hint {
            return Err(Reason::Hint);
        }
        self.queues
            .iter()
            .find(|(port, _)| port.is(request.device, request.port_num))
            .map(|&(_, qpn)| qpn)
            .ok_or(Reason::Port)
    }
}

/// Answers those who ask for a service, until dropped.
pub struct Listener<'a> {
    listener: NonNull<ffi::Listener>,
    _queues: &'a Queues<'a>,
}

impl<'a> Listener<'a> {
    /// Listens at `service_id` on every port of one kind of link.
    pub fn open(
        service_id: u32,
        infiniband: bool,
        queues: &'a Queues<'a>,
    ) -> Result<Listener<'a>, Errno> {
        let service_port = service_port(service_id).ok_or(Errno::INVALID)?;
        let mut error = 0;
        // SAFETY: `queues` outlives the listener, and with it every callback.
        let listener = unsafe {
            ffi::mitosis_cm_listen(
                service_port,
                infiniband,
                answer,
                core::ptr::from_ref(queues).cast_mut().cast(),
                &mut error,
            )
        };
        Ok(Listener {
            listener: NonNull::new(listener).ok_or(Errno(error))?,
            _queues: queues,
        })
    }
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed only here; afterwards no callback runs.
        unsafe { ffi::mitosis_cm_unlisten(self.listener.as_ptr()) }
    }
}

/// # Safety
/// `context` is the `Queues` given to `mitosis_cm_listen`; `request` and `answer` are valid during the call.
unsafe extern "C" fn answer(
    context: *mut c_void,
    request: *const ffi::CmRequest,
    answer: *mut ffi::CmAnswer,
) {
    // SAFETY: by this function's contract.
    let (queues, request, answer) =
        unsafe { (&*context.cast::<Queues<'_>>(), &*request, &mut *answer) };
    let private_data = if request.private_data.is_null() {
        &[]
    } else {
        // SAFETY: the connection manager's copy of the private data, of this length, valid during the call.
        unsafe {
            core::slice::from_raw_parts(request.private_data, request.private_data_len as usize)
        }
    };
    match queues.answer(request, private_data) {
        Ok(qpn) => {
            answer.accept = 1;
            answer.qpn = qpn;
            answer.qkey = QKEY;
        }
        Err(reason) => answer.reason = reason as u32,
    }
}
