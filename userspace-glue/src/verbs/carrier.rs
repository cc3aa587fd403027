//! The fabric: an endpoint, the peers that it knows, and those who tell or find the way.

use std::net::Ipv6Addr;
use std::os::fd::AsFd;
use std::time::Duration;

use mitosis_core::wire::resolution::{Ask, QKEY};
use mitosis_core::wire::{Header, Malformed};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::device::{self, Happened, Port, PortChoice};
use super::endpoint::{Arrived, Destination, Endpoint};
use super::failure::failed;
use super::finder::Finder;
use super::listen::{server_qkey, Answer, Listener, Removal};
use super::memory::ProtectionDomain;
use super::peers::{Peers, Source};
use super::resolve::{gone, resolve};
use crate::address::RdmaAddress;
use crate::fabric::{Arrival, Fabric, FabricError, FabricErrorKind, PeerId, Waker};

/// After how many looks that found nothing the device is asked whether it is still there.
const IDLE_LOOKS: u32 = 4096;

/// How long the device's own account of a failure is waited for.
const NEWS: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// How a fabric over verbs is set up. The default suits a server of some hundred clients.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which of this machine's ports.
    pub port: PortChoice,
    /// How many receive buffers, each as long as the path's MTU; fewer where the device has no more.
    pub receive_buffers: u32,
    /// How many clients a server knows at a time.
    pub peers: u32,
    /// The hint that a client goes by.
    pub client_qd_hint: u32,
    /// The service that a client goes by.
    pub client_service_id: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            port: PortChoice::default(),
            receive_buffers: 1024,
            peers: 1024,
            client_qd_hint: 0,
            client_service_id: 0,
        }
    }
}

/// How long a reply over a device in software is looked for, at most.
const SOFT_SPIN: Duration = Duration::from_millis(10);

/// Receive buffers of a client, which has one peer.
const CLIENT_RECEIVE_BUFFERS: u32 = 256;

/// The number of the only peer of a client.
const SERVER: PeerId = 0;

/// Unreliable datagrams of an RDMA port. See [`Fabric`] for how it is driven.
pub struct Verbs {
    endpoint: Endpoint,
    peers: Peers,
    role: Role,
    /// What [`Fabric::receive`] lent out last.
    lent: Option<Arrived>,
    waker: Waker,
    port: Port,
    gid: [u8; 16],
    idle: u32,
    /// Senders that could not be found, or that there was no place for.
    unresolved: u64,
}

enum Role {
    Server { listener: Listener, finder: Finder },
    Client { server: Source, removal: Removal },
}

impl Verbs {
    /// Serves at the address: its GID is one of this machine's ports, or zeros for the first active one.
    pub fn serve(address: &RdmaAddress, options: &Options) -> Result<Self, FabricError> {
        let devices = device::open(&options.port)?;
        let ports = device::ports(&devices, &options.port)?;
        let (port, _, gid) = device::port_with(&ports, address.gid, &options.port)?;
        let pd = ProtectionDomain::new(&port)?;
        let qkey = server_qkey(&port);
        let endpoint = Endpoint::open(&port, &pd, qkey, options.receive_buffers)?;
        let waker = Waker::new()?;
        let finder = Finder::start(&port, &pd, waker.clone())?;
        let answer = Answer {
            hint: address.qd_hint,
            port: port.clone(),
            qpn: endpoint.qpn(),
        };
        let listener = Listener::open(address, answer, waker.clone())?;
        Ok(Self {
            endpoint,
            peers: Peers::new(options.peers),
            role: Role::Server { listener, finder },
            lent: None,
            waker,
            port,
            gid,
            idle: 0,
            unresolved: 0,
        })
    }

    /// Finds the server at the address, which is peer 0 then.
    pub fn connect(address: &RdmaAddress, options: &Options) -> Result<Self, FabricError> {
        let devices = device::open(&options.port)?;
        let ports = device::ports(&devices, &options.port)?;
        let ask = Ask {
            server_qd_hint: address.qd_hint,
            client_qd_hint: options.client_qd_hint,
            client_service_id: options.client_service_id,
        };
        let route = resolve(&ports, address, &options.port, &ask)?;
        let buffers = options.receive_buffers.min(CLIENT_RECEIVE_BUFFERS);
        let endpoint = Endpoint::open(&route.port, &route.pd, QKEY, buffers)?;
        let server = Source {
            gid: address.gid,
            qpn: route.qpn,
        };
        let mut peers = Peers::new(1);
        peers.insert_at(
            server,
            Destination {
                address: route.address,
                qpn: route.qpn,
                qkey: route.qkey,
            },
        );
        peers.retain(SERVER);
        let gid = route.port.gids().next().map_or([0; 16], |(_, gid)| gid);
        let removal = Removal::of(&route.port)?;
        Ok(Self {
            endpoint,
            peers,
            role: Role::Client { server, removal },
            lent: None,
            waker: Waker::new()?,
            port: route.port,
            gid,
            idle: 0,
            unresolved: 0,
        })
    }

    /// For how long it is worth while to look for datagrams before sleeping, if `asked` is what the caller would do. With a
    /// device in software a sleep costs several system calls and a wake-up, beside round trips that are long; and a look that
    /// finds nothing gives way to others, so that it keeps no processor from them.
    pub fn spin(&self, asked: Duration) -> Duration {
        if self.port.is_soft() && !asked.is_zero() {
            asked.max(SOFT_SPIN)
        } else {
            asked
        }
    }

    /// The device, and its port where that is not the first: `rxe0`, `mlx5_0/2`.
    pub fn device(&self) -> String {
        self.port.to_string()
    }

    /// A server: the GID that it serves at. A client: the first of its port.
    pub fn gid(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.gid)
    }

    /// Whether its receive buffers lie in huge pages.
    pub fn has_huge_pages(&self) -> bool {
        self.endpoint.is_huge()
    }

    /// How many datagrams came from senders to which no way back was found, or for which there was no place.
    pub fn unresolved(&self) -> u64 {
        self.unresolved
    }

    /// What ends the fabric, if it has happened.
    fn check(&self) -> Result<(), FabricError> {
        while let Some(happened) = self.port.context().happened() {
            match happened {
                Happened::DeviceGone => return Err(gone(&self.port)),
                Happened::PortDown(number) if number == i32::from(self.port.number()) => {
                    return Err(FabricError::new(
                        FabricErrorKind::PortDown,
                        format!("the RDMA port {} has gone down", self.port),
                        "bring its network interface up (`ip link set eth0 up`) or plug in its cable, and start again",
                    ));
                }
                Happened::QueueBroken => {
                    return Err(failed(
                        format!("a queue of {} is broken", self.port),
                        std::io::Error::from_raw_os_error(libc::EIO),
                    ));
                }
                Happened::PortDown(_) | Happened::Other => {}
            }
        }
        match &self.role {
            Role::Server { listener, .. } => listener.failure().map_or(Ok(()), Err),
            Role::Client { removal, .. } if removal.has_come()? => Err(gone(&self.port)),
            Role::Client { .. } => Ok(()),
        }
    }

    /// Why a queue fails: what happened to its device is told a little later than the work that it flushes.
    #[cold]
    fn reason_of(&self, error: FabricError) -> FabricError {
        let context = self.port.context();
        let mut events = [PollFd::from_borrowed_fd(context.events(), PollFlags::IN)];
        let _ = poll(&mut events, Some(&NEWS));
        self.check().err().unwrap_or(error)
    }

    /// Whom a datagram came from. `Ok(None)` if it is given back, or waits until its sender is found.
    #[inline]
    fn sender(&mut self, arrived: Arrived) -> Result<Option<(PeerId, Arrived)>, FabricError> {
        let source = match (self.endpoint.contents(&arrived), self.endpoint.completion()) {
            (Some((grh, _)), Some(completion)) => Source::of(completion, grh),
            _ => {
                self.endpoint.give_back(arrived)?;
                return Ok(None);
            }
        };
        if let Role::Client { server, .. } = &self.role {
            if source == *server {
                return Ok(Some((SERVER, arrived)));
            }
            self.endpoint.give_back(arrived)?;
            return Ok(None);
        }
        match self.peers.find(&source) {
            Some(peer) => Ok(Some((peer, arrived))),
            None => self.look_for(arrived).map(|()| None),
        }
    }

    #[inline(never)]
    fn look_for(&mut self, arrived: Arrived) -> Result<(), FabricError> {
        let Role::Server { finder, .. } = &mut self.role else {
            return self.endpoint.give_back(arrived);
        };
        let (Some((grh, datagram)), Some(completion)) =
            (self.endpoint.contents(&arrived), self.endpoint.completion())
        else {
            return self.endpoint.give_back(arrived);
        };
        // Noise is not worth looking for its sender, unless it asks for a version that we do not speak.
        let is_ours = matches!(
            Header::parse(datagram),
            Ok(_) | Err(Malformed::Version { .. })
        );
        if !is_ours || !finder.has_room() {
            self.unresolved += u64::from(is_ours);
            return self.endpoint.give_back(arrived);
        }
        let (completion, grh) = (completion.again(), *grh);
        match finder.find(arrived, completion, grh) {
            Ok(()) => Ok(()),
            Err(arrived) => self.endpoint.give_back(arrived),
        }
    }

    /// A datagram whose sender was looked for and has been found.
    fn met(&mut self) -> Result<Option<(PeerId, Arrived)>, FabricError> {
        loop {
            let Role::Server { finder, .. } = &mut self.role else {
                return Ok(None);
            };
            let Some(found) = finder.found() else {
                return Ok(None);
            };
            let peer = match (self.peers.find(&found.source), found.address) {
                // Found twice, because it asked twice: the second handle is dropped.
                (Some(peer), _) => Some(peer),
                (None, Ok(address)) => self.peers.insert(found.source, address),
                (None, Err(_)) => None,
            };
            match peer {
                Some(peer) => return Ok(Some((peer, found.arrived))),
                None => {
                    self.unresolved += 1;
                    self.endpoint.give_back(found.arrived)?;
                }
            }
        }
    }
}

impl Fabric for Verbs {
    fn datagram_len(&self) -> u16 {
        u16::try_from(self.endpoint.datagram_len()).unwrap_or(u16::MAX)
    }

    fn receive_buffers(&self) -> u32 {
        self.endpoint.receive_buffers()
    }

    fn peer_buffers(&self, _datagram_len: usize) -> u16 {
        u16::try_from(self.endpoint.receive_buffers()).unwrap_or(u16::MAX)
    }

    fn peers(&self) -> u32 {
        self.peers.capacity()
    }

    #[inline]
    fn receive(&mut self) -> Result<Option<Arrival<'_>>, FabricError> {
        if let Some(lent) = self.lent.take() {
            self.endpoint.give_back(lent)?;
        }
        let (from, arrived) = loop {
            if let Some(met) = self.met()? {
                break met;
            }
            let arrived = self.endpoint.receive();
            let Some(arrived) = arrived.map_err(|error| self.reason_of(error))? else {
                if self.port.is_soft() {
                    // What is looked for may need this processor to arrive.
                    std::thread::yield_now();
                }
                self.idle += 1;
                if self.idle == IDLE_LOOKS {
                    self.idle = 0;
                    self.check()?;
                }
                return Ok(None);
            };
            if let Some(known) = self.sender(arrived)? {
                break known;
            }
        };
        let arrived = self.lent.insert(arrived);
        let contents = self.endpoint.contents(arrived);
        Ok(contents.map(|(_, datagram)| Arrival { from, datagram }))
    }

    #[inline]
    fn received(&self) -> &[u8] {
        let contents = self
            .lent
            .as_ref()
            .and_then(|lent| self.endpoint.contents(lent));
        contents.map_or(&[], |(_, datagram)| datagram)
    }

    #[inline]
    fn send(&mut self, to: PeerId, header: &[u8], payload: &[u8]) -> Result<(), FabricError> {
        match self.peers.destination(to) {
            Some(destination) => self.endpoint.send(destination, header, payload),
            None => Ok(()),
        }
    }

    #[inline]
    fn flush(&mut self) -> Result<(), FabricError> {
        if let Some(lent) = self.lent.take() {
            self.endpoint.give_back(lent)?;
        }
        self.endpoint.flush()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), FabricError> {
        if self.endpoint.arm()? {
            return Ok(());
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let context = self.port.context();
        // A server's listener has a thread that waits for it, and wakes this one.
        let removed = match &self.role {
            Role::Client { removal, .. } => removal.fd(),
            Role::Server { .. } => self.waker.as_fd(),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(self.endpoint.channel().fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.waker.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(context.events(), PollFlags::IN),
            PollFd::from_borrowed_fd(removed, PollFlags::IN),
        ];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed("poll", error.into())),
        }
        let [arrived, woken, happened, removed] = fds.map(|fd| !fd.revents().is_empty());
        if arrived {
            self.endpoint.clear_signals();
        }
        if woken {
            self.waker.clear();
        }
        if woken || happened || removed {
            self.check()?;
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn retain(&mut self, peer: PeerId) {
        self.peers.retain(peer);
    }

    fn release(&mut self, peer: PeerId) {
        self.peers.release(peer);
    }

    fn dropped(&self) -> u64 {
        self.endpoint.dropped()
    }
}
