//! The server's side of resolution: which queue pair those are told who ask for a service (wire.md §10).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use mitosis_core::wire::resolution::{service_port, Ask, Reason, QKEY};
use rdma_sys::rdma_cm_event_type as kind;

use super::channel::{Event, EventChannel, Id, Parameters, SocketAddress, Space};
use super::device::Port;
use super::failure::failed;
use super::resolve::gone;
use crate::address::RdmaAddress;
use crate::fabric::{FabricError, FabricErrorKind, Waker};

/// How many may be asking at a time.
const BACKLOG: i32 = 64;

/// The queue key that Linux tells the clients of a process over Ethernet, whatever the process would like: rdma_cm's for
/// its UDP port space (wire.md §10).
const UDP_QKEY: u32 = 0x0123_4567;

/// The queue key of a server's queue pair on `port`.
pub(super) fn server_qkey(port: &Port) -> u32 {
    if port.is_infiniband() {
        QKEY
    } else {
        UDP_QKEY
    }
}

/// What clients are told.
pub(super) struct Answer {
    /// The hint that the queue goes by.
    pub(super) hint: u32,
    /// The port that it is on.
    pub(super) port: Port,
    /// Its queue pair.
    pub(super) qpn: u32,
}

impl Answer {
    fn to(&self, event: &Event, id: &Id) -> Result<(), Reason> {
        let ask = Ask::parse(&event.private_data)?;
        if ask.server_qd_hint != self.hint {
            return Err(Reason::Hint);
        }
        match id.device() {
            Some((name, number)) if self.port.is(&name, number) => Ok(()),
            _ => Err(Reason::Port),
        }
    }
}

/// Answers those who ask for a service, on a thread of its own, until dropped.
pub(super) struct Listener {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
    failure: Arc<Mutex<Option<FabricError>>>,
}

impl Listener {
    /// Listens at the service of `address`.
    /// `wake` is used when the listener has come to its end by itself.
    pub(super) fn open(
        address: &RdmaAddress,
        answer: Answer,
        wake: Waker,
    ) -> Result<Self, FabricError> {
        let channel = EventChannel::new()?;
        let id = listening(&channel, &answer.port, Space::Datagrams, address, BACKLOG)?;
        let watch = watch(&channel, &answer.port);
        let stop = Waker::new()?;
        let failure = Arc::new(Mutex::new(None));
        let (stopped, failed_with) = (stop.clone(), failure.clone());
        let thread = std::thread::Builder::new()
            .name("mitosis-listen".into())
            .spawn(move || {
                let ended = serve(&id, watch.as_ref(), &answer, &stopped);
                if let Err(error) = ended {
                    *failed_with.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                    wake.wake();
                }
            })
            .map_err(|error| failed("cannot start a thread", error))?;
        Ok(Self {
            stop,
            thread: Some(thread),
            failure,
        })
    }

    /// Why it has come to its end, if it has; yielded once.
    pub(super) fn failure(&self) -> Option<FabricError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, there would be nothing to do about it here.
            let _ = thread.join();
        }
    }
}

/// An identifier that listens at the service of `address` on every port.
pub(super) fn listening(
    channel: &Arc<EventChannel>,
    port: &Port,
    space: Space,
    address: &RdmaAddress,
    backlog: i32,
) -> Result<Id, FabricError> {
    let service_port = service_port(address.service_id).ok_or_else(|| {
        FabricError::new(
            FabricErrorKind::Misuse,
            format!("there is no service {}", address.service_id),
            "services are numbered from 0 to 255",
        )
    })?;
    let id = Id::new(channel, space)?;
    id.bind(&SocketAddress::everywhere(port, space, service_port))
        .and_then(|()| id.listen(backlog))
        .map_err(|error| match error.raw_os_error() {
            Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL) => FabricError::new(
                FabricErrorKind::InUse,
                format!("service {} of this machine is taken", address.service_id),
                "end the server that has it (a process, or mitosis_rpc_server.ko), or choose another service",
            )
            .because(error),
            _ => failed(
                format!("cannot listen at service {}", address.service_id),
                error,
            ),
        })?;
    Ok(id)
}

/// An identifier that is bound to the port and does nothing but hear of its removal: a listener on all ports does not.
/// Where it cannot be had, the device's own event is what tells.
pub(super) fn watch(channel: &Arc<EventChannel>, port: &Port) -> Option<Id> {
    port.gids().find_map(|(index, gid)| {
        let id = Id::new(channel, Space::Datagrams).ok()?;
        let interface = port.interface(index);
        let address = SocketAddress::of(port, Space::Datagrams, gid, 0, interface);
        id.bind(&address).ok()?;
        let (name, number) = id.device()?;
        port.is(&name, number).then_some(id)
    })
}

/// Hears of the removal of a port's device, which not every device's own events tell processes.
pub(super) struct Removal {
    channel: Arc<EventChannel>,
    /// `None` where it cannot be had.
    watch: Option<Id>,
}

impl Removal {
    /// From now on.
    pub(super) fn of(port: &Port) -> Result<Self, FabricError> {
        let channel = EventChannel::new()?;
        let watch = watch(&channel, port);
        Ok(Self { channel, watch })
    }

    /// Readable once there is something to ask about.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.channel.fd()
    }

    /// Whether it has been removed.
    pub(super) fn has_come(&self) -> Result<bool, FabricError> {
        while let Some(event) = self.channel.next()? {
            let about_it = self.watch.as_ref().is_some_and(|id| event.is_about(id));
            if about_it && event.kind == kind::RDMA_CM_EVENT_DEVICE_REMOVAL {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

fn serve(
    listener: &Id,
    watch: Option<&Id>,
    answer: &Answer,
    stop: &Waker,
) -> Result<(), FabricError> {
    loop {
        while let Some(event) = listener.channel().next()? {
            if event.kind == kind::RDMA_CM_EVENT_DEVICE_REMOVAL
                && (event.is_about(listener) || watch.is_some_and(|id| event.is_about(id)))
            {
                return Err(gone(&answer.port));
            }
            let Some(id) = &event.request else { continue };
            // A client whose request comes to nothing asks again.
            let _ = respond(&event, id, answer);
        }
        if !listener.channel().wait(Some(stop), None)? {
            return Ok(());
        }
    }
}

fn respond(event: &Event, id: &Id, answer: &Answer) -> io::Result<()> {
    match answer.to(event, id) {
        Ok(()) => id.accept(Parameters {
            qpn: answer.qpn,
            ..Parameters::default()
        }),
        Err(reason) => id.reject(&(reason as u32).to_le_bytes()),
    }
}
