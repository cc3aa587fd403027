//! Memory of one process that others read over reliable connections, without its doing anything.
//!
//! [`MemoryServer`] offers regions on a port, each with a [`Location`]: where it is and by which key. Whoever has the location
//! may read, and nobody may write. [`Exposed`] revokes by being dropped. [`RemoteMemory`] is a connection that reads.
//!
//! ```no_run
//! use mitosis::address::Address;
//! use mitosis::verbs::{Location, MemoryServer, Options, RemoteMemory};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let Address::Rdma(address) = "rdma://[::]/9/73".parse()? else { unreachable!() };
//! let server = MemoryServer::open(&address, &Options::default())?;
//! let mut exposed = server.expose(4096)?;
//! exposed.bytes_mut()[..5].copy_from_slice(b"hello");
//! let location = exposed.location().to_bytes();
//!
//! // On another machine, which was told the location:
//! let Address::Rdma(address) = "rdma://[fe80::ec0d:9a03:ca:2f4c]/9/73".parse()? else { unreachable!() };
//! let mut remote = RemoteMemory::connect(&address, &Options::default())?;
//! let mut bytes = [0; 5];
//! remote.read(&Location::from_bytes(&location), 0, &mut bytes)?;
//! # Ok(())
//! # }
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mitosis_core::wire::resolution::{Ask, Reason};
use rdma_sys as sys;
use rdma_sys::rdma_cm_event_type as kind;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::carrier::Options;
use super::channel::{Event, EventChannel, Id, Parameters, Space};
use super::device::{self, Port};
use super::failure::failed;
use super::listen::{listening, watch};
use super::memory::{Access, ProtectionDomain, Region};
use super::pair::{QueuePair, Read};
use super::queue::{status_name, Completion, CompletionChannel, CompletionQueue};
use super::resolve::{gone, over_each, Attempt};
use crate::address::RdmaAddress;
use crate::fabric::{FabricError, FabricErrorKind, Waker};

/// Most connections that a server keeps at a time.
const CONNECTIONS: usize = 256;
/// How long a single READ is, at most.
const CHUNK: usize = 64 * 1024;
/// How long a READ may take: longer than the device repeats it.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a READ is looked for before its reader sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// Where exposed memory is, and by which key: what a reader must be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// Its address in its process.
    pub address: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Its key.
    pub key: u32,
}

impl Location {
    /// Its form on a wire: address, length and key, little-endian.
    pub fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..].copy_from_slice(&self.key.to_le_bytes());
        bytes
    }

    /// What [`Location::to_bytes`] wrote. A wrong one harms nobody: reading it is refused.
    pub fn from_bytes(bytes: &[u8; 20]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, q, r, s, t] = *bytes;
        Self {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            len: u64::from_le_bytes([i, j, k, l, m, n, o, p]),
            key: u32::from_le_bytes([q, r, s, t]),
        }
    }
}

/// Memory that others may read, until it is dropped.
pub struct Exposed {
    region: Region,
    len: usize,
}

impl Exposed {
    /// What a reader must be told.
    pub fn location(&self) -> Location {
        Location {
            address: self.region.address(),
            len: self.len as u64,
            key: self.region.remote_key(),
        }
    }

    /// Its bytes. A reader may see a write half done: how it learns that one is whole is the two ends' own affair.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: no device writes to it: it is registered for remote reading only, and is in no queue pair of this process. The
        // borrow of `self` sees to it that nobody else has it.
        unsafe { self.region.bytes_mut(0, self.len) }.unwrap_or_default()
    }

    /// Revokes: when this returns, nobody can read it any more.
    pub fn revoke(self) {}
}

/// Offers memory of this process on a port, and keeps the connections of those who read it.
pub struct MemoryServer {
    pd: Arc<ProtectionDomain>,
    stop: Waker,
    thread: Option<JoinHandle<()>>,
    failure: Arc<Mutex<Option<FabricError>>>,
}

impl MemoryServer {
    /// Listens at the address, whose GID is one of this machine's ports, or zeros for the first active one.
    pub fn open(address: &RdmaAddress, options: &Options) -> Result<Self, FabricError> {
        let devices = device::open(&options.port)?;
        let ports = device::ports(&devices, &options.port)?;
        let (port, _, _) = device::port_with(&ports, address.gid, &options.port)?;
        let pd = ProtectionDomain::new(&port)?;
        let queue = CompletionQueue::new(&port, 16, None)?;
        let channel = EventChannel::new()?;
        let listener = listening(&channel, &port, Space::Connections, address, 64)?;
        let watch = watch(&channel, &port);
        let stop = Waker::new()?;
        let failure = Arc::new(Mutex::new(None));
        let (stopped, failed_with) = (stop.clone(), failure.clone());
        let mut serving = Serving {
            hint: address.qd_hint,
            port,
            pd: pd.clone(),
            queue,
            connections: HashMap::new(),
        };
        let thread = std::thread::Builder::new()
            .name("mitosis-memory".into())
            .spawn(move || {
                if let Err(error) = serving.run(&listener, watch.as_ref(), &stopped) {
                    *failed_with.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
            })
            .map_err(|error| failed("cannot start a thread", error))?;
        Ok(Self {
            pd,
            stop,
            thread: Some(thread),
            failure,
        })
    }

    /// Zeroed memory that others may read.
    pub fn expose(&self, len: usize) -> Result<Exposed, FabricError> {
        Ok(Exposed {
            region: Region::new(&self.pd, len, Access::RemoteRead)?,
            len,
        })
    }

    /// Why it serves no longer, if it does not; yielded once.
    pub fn failure(&self) -> Option<FabricError> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}

impl Drop for MemoryServer {
    fn drop(&mut self) {
        self.stop.wake();
        if let Some(thread) = self.thread.take() {
            // It does not panic; and if it did, there would be nothing to do about it here.
            let _ = thread.join();
        }
    }
}

/// The server's thread.
struct Serving {
    hint: u32,
    port: Port,
    pd: Arc<ProtectionDomain>,
    /// Of the queue pairs, which never complete anything.
    queue: Arc<CompletionQueue>,
    connections: HashMap<usize, (Id, QueuePair)>,
}

impl Serving {
    fn run(&mut self, listener: &Id, watch: Option<&Id>, stop: &Waker) -> Result<(), FabricError> {
        loop {
            while let Some(event) = listener.channel().next()? {
                self.take(event, listener, watch)?;
            }
            if !listener.channel().wait(Some(stop), None)? {
                return Ok(());
            }
        }
    }

    fn take(&mut self, event: Event, listener: &Id, watch: Option<&Id>) -> Result<(), FabricError> {
        match event.kind {
            kind::RDMA_CM_EVENT_DEVICE_REMOVAL => {
                if event.is_about(listener) || watch.is_some_and(|id| event.is_about(id)) {
                    return Err(gone(&self.port));
                }
                self.connections.remove(&event.about());
            }
            kind::RDMA_CM_EVENT_CONNECT_REQUEST => {
                let about = event.about();
                let (answer, id) = (self.judge(&event), event.request);
                let Some(id) = id else { return Ok(()) };
                match answer {
                    Err(reason) => {
                        // A client that does not hear it asks again.
                        let _ = id.reject(&(reason as u32).to_le_bytes());
                    }
                    Ok(()) => {
                        // What fails here is this client's connection only; dropping the identifier refuses it.
                        if let Ok(pair) = self.accept(&id) {
                            self.connections.insert(about, (id, pair));
                        }
                    }
                }
            }
            kind::RDMA_CM_EVENT_ESTABLISHED => {}
            // The connection is over, or never came about.
            _ => {
                self.connections.remove(&event.about());
            }
        }
        Ok(())
    }

    fn judge(&self, event: &Event) -> Result<(), Reason> {
        let ask = Ask::parse(&event.private_data)?;
        if ask.server_qd_hint != self.hint {
            return Err(Reason::Hint);
        }
        let device = event.request.as_ref().and_then(Id::device);
        match device {
            Some((name, number)) if self.port.is(&name, number) => Ok(()),
            _ => Err(Reason::Port),
        }
    }

    fn accept(&self, id: &Id) -> Result<QueuePair, FabricError> {
        if self.connections.len() >= CONNECTIONS {
            return Err(FabricError::new(
                FabricErrorKind::Exhausted,
                "no more connections",
                "",
            ));
        }
        let pair = QueuePair::reliable(&self.pd, &self.queue, Vec::new(), 1)?;
        let reads = self.port.max_reads();
        raise(
            id,
            &pair,
            sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ,
            reads,
        )?;
        id.accept(Parameters {
            qpn: pair.number(),
            reads,
            ..Parameters::default()
        })
        .map_err(|error| failed("cannot accept a connection", error))?;
        Ok(pair)
    }
}

/// Takes a queue pair from its creation to where it can send, as the connection says. Whoever is connected has `rights` to
/// what is registered for them.
fn raise(
    id: &Id,
    pair: &QueuePair,
    rights: sys::ibv_access_flags,
    reads: u8,
) -> Result<(), FabricError> {
    use sys::ibv_qp_state as State;
    for state in [State::IBV_QPS_INIT, State::IBV_QPS_RTR, State::IBV_QPS_RTS] {
        let (mut attributes, mask) = id
            .attributes_for(state)
            .map_err(|error| failed("a connection cannot be made", error))?;
        attributes.qp_access_flags = rights.0;
        attributes.max_rd_atomic = reads;
        attributes.max_dest_rd_atomic = reads;
        pair.modify(&mut attributes, mask)?;
    }
    Ok(())
}

/// A connection to a [`MemoryServer`] that reads its memory.
pub struct RemoteMemory {
    pair: QueuePair,
    id: Id,
    channel: Arc<CompletionChannel>,
    port: Port,
    address: RdmaAddress,
    /// READs that may be outstanding.
    reads: usize,
    posted: u64,
    /// Why nothing can be read any more.
    broken: Option<(FabricErrorKind, String, &'static str)>,
}

/// The number of the queue pair's only region.
const LANDING: usize = 0;

impl RemoteMemory {
    /// Connects to the server at the address.
    pub fn connect(address: &RdmaAddress, options: &Options) -> Result<Self, FabricError> {
        let devices = device::open(&options.port)?;
        let ports = device::ports(&devices, &options.port)?;
        let events = EventChannel::new()?;
        let ask = Ask {
            server_qd_hint: address.qd_hint,
            client_qd_hint: options.client_qd_hint,
            client_service_id: options.client_service_id,
        };
        let space = Space::Connections;
        over_each(
            &ports,
            address,
            space,
            &options.port,
            |search, timeout_ms| {
                let resolved = search.begin(&events, &ports)?;
                let (id, port) = (resolved.id, resolved.port);
                let reads = port.max_reads();
                let pd = ProtectionDomain::new(&port)?;
                let channel = CompletionChannel::new(&port)?;
                let queue = CompletionQueue::new(&port, u32::from(reads), Some(&channel))?;
                let landing = Region::new(&pd, usize::from(reads) * CHUNK, Access::Local)?;
                let regions = vec![Arc::new(landing)];
                let pair = QueuePair::reliable(&pd, &queue, regions, u32::from(reads))?;
                let private_data = ask.emit();
                id.connect(Parameters {
                    qpn: pair.number(),
                    private_data: &private_data,
                    reads,
                })
                .map_err(|error| failed(format!("cannot connect to {address}"), error))?;
                search
                    .await_event(&id, kind::RDMA_CM_EVENT_CONNECT_RESPONSE, timeout_ms)?
                    .ok_or(Attempt::NoAnswer)?;
                raise(&id, &pair, sys::ibv_access_flags(0), reads)?;
                id.establish()
                    .map_err(|error| failed(format!("cannot connect to {address}"), error))?;
                Ok(Self {
                    pair,
                    id,
                    channel,
                    port,
                    address: *address,
                    reads: usize::from(reads),
                    posted: 0,
                    broken: None,
                })
            },
        )
    }

    /// Reads what is `offset` bytes into the memory at `location`.
    ///
    /// # Errors
    ///
    /// [`FabricErrorKind::Denied`]: the memory was revoked, or the location is not one of this server's;
    /// [`FabricErrorKind::PeerGone`]: the server is gone. After either the connection is of no further use.
    /// [`FabricErrorKind::Misuse`]: the location has no such bytes.
    pub fn read(
        &mut self,
        location: &Location,
        offset: u64,
        into: &mut [u8],
    ) -> Result<(), FabricError> {
        let whole = self.usable().and_then(|()| {
            let end = offset.checked_add(into.len() as u64);
            let start = location.address.checked_add(offset);
            match (start, end) {
                (Some(start), Some(end)) if end <= location.len => Ok(start),
                _ => Err(FabricError::new(
                    FabricErrorKind::Misuse,
                    format!(
                        "{} bytes at {offset} of a location of {} bytes",
                        into.len(),
                        location.len
                    ),
                    "read what there is",
                )),
            }
        });
        let mut remote_address = whole?;
        let batch = self.reads * CHUNK;
        for part in into.chunks_mut(batch) {
            let mut reads = Vec::with_capacity(self.reads);
            for (index, chunk) in part.chunks(CHUNK).enumerate() {
                reads.push(Read {
                    wr_id: self.posted,
                    region: LANDING,
                    offset: index * CHUNK,
                    len: chunk.len(),
                    remote_address,
                    remote_key: location.key,
                });
                self.posted += 1;
                remote_address += chunk.len() as u64;
            }
            let taken = self.pair.post_reads(&reads)?;
            self.finish(taken)?;
            if taken < reads.len() {
                return Err(failed(
                    "the device takes no more READs",
                    io::Error::from_raw_os_error(libc::ENOMEM),
                ));
            }
            // SAFETY: all READs that were posted are over, so the device writes to the landing region no more; and `self` is
            // borrowed for as long as this is.
            let landed = self
                .pair
                .region(LANDING)
                .and_then(|region| unsafe { region.bytes(0, part.len()) });
            part.copy_from_slice(landed.unwrap_or_default());
        }
        Ok(())
    }

    /// Tries to write a byte to the memory at `location`, which is refused: for tests that show it.
    #[doc(hidden)]
    pub fn try_to_write(&mut self, location: &Location) -> Result<(), FabricError> {
        self.usable()?;
        let write = Read {
            wr_id: self.posted,
            region: LANDING,
            offset: 0,
            len: 1,
            remote_address: location.address,
            remote_key: location.key,
        };
        self.posted += 1;
        let taken = self.pair.post_writes(&[write])?;
        self.finish(taken)
    }

    fn usable(&mut self) -> Result<(), FabricError> {
        match &self.broken {
            None => self.check(),
            Some((kind, what, advice)) => Err(FabricError::new(*kind, what.clone(), *advice)),
        }
    }

    fn end<T>(
        &mut self,
        kind: FabricErrorKind,
        what: String,
        advice: &'static str,
    ) -> Result<T, FabricError> {
        self.broken = Some((kind, what.clone(), advice));
        Err(FabricError::new(kind, what, advice))
    }

    /// Whether the connection has ended.
    fn check(&mut self) -> Result<(), FabricError> {
        while let Some(event) = self.id.channel().next()? {
            if !event.is_about(&self.id) {
                continue;
            }
            match event.kind {
                kind::RDMA_CM_EVENT_DISCONNECTED | kind::RDMA_CM_EVENT_TIMEWAIT_EXIT => {
                    let what = format!("the memory server at {} is gone", self.address);
                    return self.end(FabricErrorKind::PeerGone, what, RECONNECT);
                }
                kind::RDMA_CM_EVENT_DEVICE_REMOVAL => return Err(gone(&self.port)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Waits until `outstanding` READs are over.
    fn finish(&mut self, mut outstanding: usize) -> Result<(), FabricError> {
        let started = Instant::now();
        let mut completions = Completion::batch();
        let mut armed = false;
        while outstanding > 0 {
            let completed = self.pair.send_cq().poll(&mut completions)?;
            for completion in completed {
                match completion.status() {
                    sys::ibv_wc_status::IBV_WC_SUCCESS => {}
                    sys::ibv_wc_status::IBV_WC_REM_ACCESS_ERR
                    | sys::ibv_wc_status::IBV_WC_REM_INV_REQ_ERR => {
                        let what = format!(
                            "the server at {} refused access: the memory was revoked, or its location is wrong",
                            self.address
                        );
                        return self.end(FabricErrorKind::Denied, what, RECONNECT);
                    }
                    sys::ibv_wc_status::IBV_WC_RETRY_EXC_ERR => {
                        let what = format!("the memory server at {} does not answer", self.address);
                        return self.end(FabricErrorKind::PeerGone, what, RECONNECT);
                    }
                    status => {
                        let what = format!(
                            "a READ from {} ended with '{}' (status {status})",
                            self.address,
                            status_name(status)
                        );
                        return self.end(FabricErrorKind::System, what, RECONNECT);
                    }
                }
            }
            outstanding = outstanding.saturating_sub(completed.len());
            if !completed.is_empty() {
                armed = false;
                continue;
            }
            if started.elapsed() > PATIENCE {
                let what = format!("the memory server at {} does not answer", self.address);
                return self.end(FabricErrorKind::PeerGone, what, RECONNECT);
            }
            if started.elapsed() < SPIN {
                std::hint::spin_loop();
            } else if armed {
                self.sleep()?;
                armed = false;
            } else {
                // What came before the arming gives no signal: one more look.
                self.pair.send_cq().arm()?;
                armed = true;
            }
        }
        Ok(())
    }

    fn sleep(&mut self) -> Result<(), FabricError> {
        let timeout = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let mut fds = [
            PollFd::from_borrowed_fd(self.channel.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.id.channel().fd(), PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed("poll", error.into())),
        }
        let [arrived, happened] = fds.map(|fd| !fd.revents().is_empty());
        if arrived {
            self.pair.send_cq().clear_signals();
        }
        if happened {
            self.check()?;
        }
        Ok(())
    }
}

const RECONNECT: &str = "connect again, with a location that holds";

impl Drop for RemoteMemory {
    fn drop(&mut self) {
        self.id.disconnect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_comes_back_as_it_was() {
        let location = Location {
            address: 0x0102_0304_0506_0708,
            len: 0x1112,
            key: 0x2122_2324,
        };
        let bytes = location.to_bytes();
        assert_eq!(bytes[..2], [8, 7]);
        assert_eq!(bytes[8..10], [0x12, 0x11]);
        assert_eq!(bytes[16..], [0x24, 0x23, 0x22, 0x21]);
        assert_eq!(Location::from_bytes(&bytes), location);
    }
}
