//! The client's side of resolution: from an address to the server's queue pair (wire.md §10).

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mitosis_core::wire::resolution::{service_port, Ask, Reason};
use rdma_sys::rdma_cm_event_type as kind;

use super::channel::{Event, EventChannel, Id, Parameters, SocketAddress, Space, Way};
use super::device::{port_with, Port, PortChoice};
use super::failure::failed;
use super::memory::ProtectionDomain;
use super::pair::AddressHandle;
use crate::address::RdmaAddress;
use crate::fabric::{FabricError, FabricErrorKind};

/// How long the link layer may take to find the server's machine.
const ADDRESS_TIMEOUT_MS: i32 = 2_000;
/// How long the path may take.
const ROUTE_TIMEOUT_MS: i32 = 2_000;
/// How long the server's connection manager may take to answer, attempt by attempt. The kernel itself would repeat a lost
/// request after 4 s only; here ten requests are lost in a row before the server is given up, 11 s after the first.
const ANSWER_TIMEOUTS_MS: [u64; 10] =
    [300, 300, 600, 600, 1_200, 1_200, 1_200, 1_800, 1_800, 2_000];
/// The kernel's own deadlines should come first; ours are for when they do not come at all.
const SLACK_MS: u64 = 500;
/// The SIDR status of a refusal by the listener itself; others come from its connection manager.
const SIDR_REJECT: i32 = 2;

/// The way to a server's queue.
pub(super) struct Route {
    /// This machine's port.
    pub(super) port: Port,
    /// What is on this route belongs to it.
    pub(super) pd: Arc<ProtectionDomain>,
    /// The way to the server's port.
    pub(super) address: Arc<AddressHandle>,
    /// Its queue pair.
    pub(super) qpn: u32,
    /// The key that its queue pair asks for.
    pub(super) qkey: u32,
}

/// Why an attempt did not succeed.
pub(super) enum Attempt {
    /// The machine is not to be found over this port; perhaps over another.
    NotHere(FabricError),
    /// The server's connection manager did not answer in time.
    NoAnswer,
    /// Nothing else will help.
    Final(FabricError),
}

impl From<FabricError> for Attempt {
    fn from(error: FabricError) -> Self {
        Attempt::Final(error)
    }
}

/// Finds the server at `address` over whichever of `ports` leads there.
pub(super) fn resolve(
    ports: &[Port],
    address: &RdmaAddress,
    choice: &PortChoice,
    ask: &Ask,
) -> Result<Route, FabricError> {
    let channel = EventChannel::new()?;
    over_each(
        ports,
        address,
        Space::Datagrams,
        choice,
        |search, timeout_ms| {
            let resolved = search.begin(&channel, ports)?;
            let private_data = ask.emit();
            let asked = Parameters {
                private_data: &private_data,
                ..Parameters::default()
            };
            resolved
                .id
                .connect(asked)
                .map_err(|error| failed(format!("cannot ask {address}"), error))?;
            let answer = search
                .await_event(&resolved.id, kind::RDMA_CM_EVENT_ESTABLISHED, timeout_ms)?
                .ok_or(Attempt::NoAnswer)?;
            let Some(Way {
                attributes,
                qpn,
                qkey,
            }) = answer.datagrams
            else {
                return Err(Attempt::NoAnswer);
            };
            let pd = ProtectionDomain::new(&resolved.port)?;
            let address = Arc::new(AddressHandle::new(&pd, attributes)?);
            Ok(Route {
                port: resolved.port,
                pd,
                address,
                qpn,
                qkey,
            })
        },
    )
}

/// Repeats `attempt` as long as the server may not have heard it, over each port that may lead there.
pub(super) fn over_each<T>(
    ports: &[Port],
    address: &RdmaAddress,
    space: Space,
    choice: &PortChoice,
    mut attempt: impl FnMut(&Search<'_>, u64) -> Result<T, Attempt>,
) -> Result<T, FabricError> {
    if address.gid == [0; 16] {
        return Err(FabricError::new(
            FabricErrorKind::Misuse,
            format!("{address} is no server's address: its GID is zeros"),
            "give the GID that the server says when it is ready; on its machine, \
             /sys/class/infiniband/*/ports/*/gids has them",
        ));
    }
    let service_port = service_port(address.service_id).ok_or_else(|| {
        FabricError::new(
            FabricErrorKind::Misuse,
            format!("there is no service {}", address.service_id),
            "services are numbered from 0 to 255",
        )
    })?;
    let mut not_here = None;
    for port in ports {
        // A chosen GID index says which end of the path is ours.
        let own = match choice.gid_index {
            Some(_) => Some(port_with(std::slice::from_ref(port), [0; 16], choice)?),
            None => None,
        };
        let search = Search {
            port,
            own: own.map(|(_, index, gid)| (index, gid)),
            address,
            space,
            service_port,
        };
        for timeout_ms in ANSWER_TIMEOUTS_MS {
            match attempt(&search, timeout_ms) {
                Ok(found) => return Ok(found),
                Err(Attempt::NoAnswer) => {}
                Err(Attempt::Final(error)) => return Err(error),
                Err(Attempt::NotHere(error)) => {
                    not_here = Some(error);
                    break;
                }
            }
        }
        if not_here.is_none() {
            return Err(FabricError::new(
                FabricErrorKind::PeerGone,
                format!(
                    "the machine at {} is there, and its connection manager does not answer",
                    Ipv6Addr::from(address.gid)
                ),
                "see whether rdma_cm is loaded there, and whether the network loses packets",
            ));
        }
    }
    Err(not_here.unwrap_or_else(|| {
        FabricError::new(FabricErrorKind::PortDown, "no RDMA port is active", "")
    }))
}

/// A search over one port.
pub(super) struct Search<'a> {
    port: &'a Port,
    own: Option<(u8, [u8; 16])>,
    address: &'a RdmaAddress,
    space: Space,
    service_port: u16,
}

/// An identifier that knows its way.
pub(super) struct Resolved {
    /// It.
    pub(super) id: Id,
    /// The port that it leads over.
    pub(super) port: Port,
}

impl Search<'_> {
    fn not_found(&self, what: &str, error: io::Error) -> Attempt {
        let gid = Ipv6Addr::from(self.address.gid);
        Attempt::NotHere(
            FabricError::new(
                FabricErrorKind::NotFound,
                format!("{what} {gid} over {}", self.port),
                "see whether the GID is one of the server's active ports \
                 (/sys/class/infiniband/*/ports/*/gids there), and whether its machine is up",
            )
            .because(error),
        )
    }

    /// Looks for the way to the server's machine.
    pub(super) fn begin(
        &self,
        channel: &Arc<EventChannel>,
        ports: &[Port],
    ) -> Result<Resolved, Attempt> {
        let id = Id::new(channel, self.space)?;
        let interface = self.port.interface(self.own.map_or(0, |(index, _)| index));
        let at = |gid, service_port| {
            SocketAddress::of(self.port, self.space, gid, service_port, interface)
        };
        let to = at(self.address.gid, self.service_port);
        // Over InfiniBand the manager must be told which port to look from.
        let own = match self.own {
            None if self.port.is_infiniband() => self.port.gid(0),
            own => own.map(|(_, gid)| gid),
        };
        let from = own.map(|gid| at(gid, 0));
        let no_machine = |error| self.not_found("no machine answers at the GID", error);
        id.resolve_address(from.as_ref(), &to, ADDRESS_TIMEOUT_MS)
            .map_err(no_machine)?;
        self.step(&id, kind::RDMA_CM_EVENT_ADDR_RESOLVED, ADDRESS_TIMEOUT_MS)
            .map_err(|error| error.unwrap_or_else(|| no_machine(timed_out())))?;
        let device = id.device();
        let port =
            device.and_then(|(name, number)| ports.iter().find(|port| port.is(&name, number)));
        let Some(port) = port.cloned() else {
            return Err(self.not_found("no port that was chosen leads to the GID", timed_out()));
        };
        let no_path = |error| self.not_found("there is no path to the GID", error);
        id.resolve_route(ROUTE_TIMEOUT_MS).map_err(no_path)?;
        self.step(&id, kind::RDMA_CM_EVENT_ROUTE_RESOLVED, ROUTE_TIMEOUT_MS)
            .map_err(|error| error.unwrap_or_else(|| no_path(timed_out())))?;
        Ok(Resolved { id, port })
    }

    /// Waits for a step; `Err(None)` if it took too long.
    fn step(&self, id: &Id, wanted: u32, timeout_ms: i32) -> Result<(), Option<Attempt>> {
        let timeout_ms = u64::from(timeout_ms.unsigned_abs()) + SLACK_MS;
        match self.await_event(id, wanted, timeout_ms) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(None),
            Err(attempt) => Err(Some(attempt)),
        }
    }

    /// Waits for what is to happen to `id`; `None` if it took too long.
    pub(super) fn await_event(
        &self,
        id: &Id,
        wanted: u32,
        timeout_ms: u64,
    ) -> Result<Option<Event>, Attempt> {
        let deadline = Instant::now() + Duration::from_millis(timeout_ms);
        loop {
            while let Some(event) = id.channel().next()? {
                if !event.is_about(id) {
                    continue;
                }
                if event.kind == wanted {
                    return Ok(Some(event));
                }
                return match event.kind {
                    kind::RDMA_CM_EVENT_ADDR_ERROR => {
                        Err(self.not_found("no machine answers at the GID", event.error()))
                    }
                    kind::RDMA_CM_EVENT_ROUTE_ERROR => {
                        Err(self.not_found("there is no path to the GID", event.error()))
                    }
                    // The kernel's own deadline.
                    kind::RDMA_CM_EVENT_UNREACHABLE if event.status <= 0 => Ok(None),
                    kind::RDMA_CM_EVENT_UNREACHABLE => Err(self.refused(&event, SIDR_REJECT)),
                    kind::RDMA_CM_EVENT_REJECTED => Err(self.refused(&event, CONSUMER_DEFINED)),
                    kind::RDMA_CM_EVENT_DEVICE_REMOVAL => Err(gone(self.port).into()),
                    _ => Err(Attempt::Final(failed(
                        format!("{}: {}", self.address, event.name()),
                        event.error(),
                    ))),
                };
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            id.channel().wait(None, Some(deadline))?;
        }
    }

    /// The server, or its connection manager, said no.
    fn refused(&self, event: &Event, by_the_listener: i32) -> Attempt {
        let address = self.address;
        if event.status != by_the_listener {
            return Attempt::Final(FabricError::new(
                FabricErrorKind::NotFound,
                format!(
                    "the machine at {} is there, and nothing listens at its service {}",
                    Ipv6Addr::from(address.gid),
                    address.service_id
                ),
                "start the server first (mitosis_rpc_server.ko or rpc-server), and compare the service",
            ));
        }
        let reason = event
            .private_data
            .first_chunk()
            .and_then(|&bytes| Reason::from_u32(u32::from_le_bytes(bytes)));
        Attempt::Final(FabricError::new(
            FabricErrorKind::NotFound,
            format!(
                "the server at {address} refused: {}",
                reason.map_or("it gave no reason", Reason::text)
            ),
            match reason {
                Some(Reason::Hint) => "compare the hint at the address's end with the server's",
                Some(Reason::Port) => "give a GID that the server says it serves",
                _ => "both ends must be of one version",
            },
        ))
    }
}

/// The reason of a rejected connection that its listener gives.
const CONSUMER_DEFINED: i32 = 28;

fn timed_out() -> io::Error {
    io::Error::from_raw_os_error(libc::ETIMEDOUT)
}

/// The device of a port has been removed.
pub(super) fn gone(port: &Port) -> FabricError {
    FabricError::new(
        FabricErrorKind::DeviceGone,
        format!("the RDMA device {} has been removed", port.context().name()),
        "load its driver again, or make it again by `rdma link add`, and start again",
    )
}
