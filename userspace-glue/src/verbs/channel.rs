//! rdma_cm: identifiers, and the channel by which it tells what became of them.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Instant;

use rdma_sys as sys;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};
use rustix::io::Errno;

use super::device::Port;
use super::failure::{cause, errno, failed};
use crate::fabric::{FabricError, FabricErrorKind, Waker};

/// Which of rdma_cm's port spaces.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    /// Queue pairs for datagrams.
    Datagrams,
    /// Reliable connections.
    Connections,
}

impl Space {
    fn number(self) -> sys::rdma_port_space::Type {
        match self {
            Space::Datagrams => sys::rdma_port_space::RDMA_PS_UDP,
            Space::Connections => sys::rdma_port_space::RDMA_PS_TCP,
        }
    }

    /// What a service's port is part of over InfiniBand.
    fn service(self, port: u16) -> u64 {
        (u64::from(self.number()) << 16) | u64::from(port)
    }
}

/// Where events come from.
pub(super) struct EventChannel {
    raw: NonNull<sys::rdma_event_channel>,
}

// SAFETY: librdmacm's objects may be used from any thread, and several at a time.
unsafe impl Send for EventChannel {}
// SAFETY: as above.
unsafe impl Sync for EventChannel {}

impl EventChannel {
    pub(super) fn new() -> Result<Arc<Self>, FabricError> {
        // SAFETY: it has no precondition.
        let raw = unsafe { sys::rdma_create_event_channel() };
        let raw = NonNull::new(raw).ok_or_else(no_manager)?;
        let channel = Self { raw };
        let fd = channel.fd();
        let flags = fcntl_getfl(fd).map_err(|error| failed("fcntl", error.into()))?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|error| failed("fcntl", error.into()))?;
        Ok(Arc::new(channel))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel lives, which the borrow of `self` sees to.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }

    /// Waits until an event has come; whether one has. `waker` and `deadline` end the wait.
    pub(super) fn wait(
        &self,
        waker: Option<&Waker>,
        deadline: Option<Instant>,
    ) -> Result<bool, FabricError> {
        loop {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            let timeout = left.map(|left| Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            });
            let mut fds = vec![PollFd::from_borrowed_fd(self.fd(), PollFlags::IN)];
            fds.extend(waker.map(|waker| PollFd::from_borrowed_fd(waker.as_fd(), PollFlags::IN)));
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {
                    return Ok(fds.first().is_some_and(|fd| !fd.revents().is_empty()));
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed("poll", error.into())),
            }
        }
    }

    /// The next event, without waiting.
    pub(super) fn next(self: &Arc<Self>) -> Result<Option<Event>, FabricError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the channel lives as long as `self`; there is room for what the call returns.
        if unsafe { sys::rdma_get_cm_event(self.raw.as_ptr(), &mut raw) } != 0 {
            let error = errno();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(failed("the connection manager fails", error)),
            };
        }
        // SAFETY: the call has returned an event, which is valid until it is acknowledged.
        let event = unsafe { self.read(&*raw) };
        // SAFETY: acknowledged once; all that is needed of it has been copied.
        unsafe { sys::rdma_ack_cm_event(raw) };
        Ok(Some(event))
    }

    /// # Safety
    /// The event is one that rdma_get_cm_event returned and that has not been acknowledged.
    unsafe fn read(self: &Arc<Self>, raw: &sys::rdma_cm_event) -> Event {
        let is_request = raw.event == sys::rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST;
        // SAFETY: an event is about an identifier that is not destroyed before the event is acknowledged. Its port space says which
        // of the two parameters the event has; the manager zeroes those of events without one.
        let (datagrams, private_data, len) = unsafe {
            if (*raw.id).ps == sys::rdma_port_space::RDMA_PS_UDP {
                let ud = &raw.param.ud;
                let way = Way {
                    attributes: ud.ah_attr,
                    qpn: ud.qp_num,
                    qkey: ud.qkey,
                };
                (Some(way), ud.private_data, ud.private_data_len)
            } else {
                let conn = &raw.param.conn;
                (None, conn.private_data, conn.private_data_len)
            }
        };
        let private_data = if private_data.is_null() {
            Vec::new()
        } else {
            // SAFETY: the event's own copy of the private data, of this length.
            unsafe { std::slice::from_raw_parts(private_data.cast::<u8>(), usize::from(len)) }
                .to_vec()
        };
        Event {
            kind: raw.event,
            status: raw.status,
            about: raw.id as usize,
            request: NonNull::new(raw.id).filter(|_| is_request).map(|raw| Id {
                raw,
                channel: self.clone(),
            }),
            private_data,
            datagrams,
        }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: created once; identifiers on it hold an `Arc` of it, so none is left.
        unsafe { sys::rdma_destroy_event_channel(self.raw.as_ptr()) };
    }
}

const MANAGER: &str = "/dev/infiniband/rdma_cm";

fn no_manager() -> FabricError {
    let error = cause(MANAGER, errno());
    if error.kind() == io::ErrorKind::PermissionDenied {
        return failed(format!("cannot open {MANAGER}"), error);
    }
    FabricError::new(
        FabricErrorKind::NotFound,
        "the kernel's connection manager is not there for processes (/dev/infiniband/rdma_cm)",
        "`modprobe rdma_ucm`",
    )
    .because(error)
}

/// The way to a queue pair for datagrams.
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// The way to its port.
    pub(super) attributes: sys::ibv_ah_attr,
    /// Its number.
    pub(super) qpn: u32,
    /// The key that it asks for.
    pub(super) qkey: u32,
}

/// Something that happened to an identifier.
pub(super) struct Event {
    /// One of `rdma_cm_event_type`.
    pub(super) kind: u32,
    /// 0, or why: a negative errno, or a positive status of the other end's.
    pub(super) status: i32,
    about: usize,
    /// The new identifier that a request comes with.
    pub(super) request: Option<Id>,
    /// What the other end has to say.
    pub(super) private_data: Vec<u8>,
    /// In the space of datagrams: where to send to.
    pub(super) datagrams: Option<Way>,
}

impl Event {
    /// Whether it is about `id`.
    pub(super) fn is_about(&self, id: &Id) -> bool {
        self.about == id.raw.as_ptr() as usize
    }

    /// What tells identifiers apart.
    pub(super) fn about(&self) -> usize {
        self.about
    }

    /// What it is called.
    pub(super) fn name(&self) -> String {
        // SAFETY: the function takes any number, and returns a string that is never freed.
        let name = unsafe { CStr::from_ptr(sys::rdma_event_str(self.kind)) };
        name.to_string_lossy().into_owned()
    }

    /// The errno that its status is.
    pub(super) fn error(&self) -> io::Error {
        io::Error::from_raw_os_error(self.status.saturating_abs())
    }
}

/// An identifier of a resolution, a listener or a connection.
pub(super) struct Id {
    raw: NonNull<sys::rdma_cm_id>,
    channel: Arc<EventChannel>,
}

// SAFETY: librdmacm's objects may be used from any thread, and several at a time.
unsafe impl Send for Id {}
// SAFETY: as above.
unsafe impl Sync for Id {}

/// What is asked of a server, or answered to a client.
#[derive(Clone, Copy, Default)]
pub(super) struct Parameters<'a> {
    /// The queue pair of this end.
    pub(super) qpn: u32,
    /// What else there is to say.
    pub(super) private_data: &'a [u8],
    /// READs that this end may have outstanding, and those that it serves at a time.
    pub(super) reads: u8,
}

impl Parameters<'_> {
    fn raw(&self) -> sys::rdma_conn_param {
        sys::rdma_conn_param {
            private_data: self.private_data.as_ptr().cast(),
            private_data_len: u8::try_from(self.private_data.len()).unwrap_or(u8::MAX),
            responder_resources: self.reads,
            initiator_depth: self.reads,
            flow_control: 0,
            retry_count: 7,
            rnr_retry_count: 7,
            srq: 0,
            qp_num: self.qpn,
        }
    }
}

/// A call of librdmacm, which returns 0, or -1 with errno.
fn called(returned: i32) -> io::Result<()> {
    match returned {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

impl Id {
    pub(super) fn new(channel: &Arc<EventChannel>, space: Space) -> Result<Self, FabricError> {
        let mut raw = ptr::null_mut();
        // SAFETY: the channel is alive, and there is room for what the call returns.
        called(unsafe {
            sys::rdma_create_id(
                channel.raw.as_ptr(),
                &mut raw,
                ptr::null_mut(),
                space.number(),
            )
        })
        .map_err(|error| failed("cannot create a connection identifier", error))?;
        let raw = NonNull::new(raw)
            .ok_or_else(|| failed("cannot create a connection identifier", errno()))?;
        Ok(Self {
            raw,
            channel: channel.clone(),
        })
    }

    /// The channel that tells what becomes of it.
    pub(super) fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }

    /// Binds it to a port of this machine's, or to a service on all ports.
    pub(super) fn bind(&self, address: &SocketAddress) -> io::Result<()> {
        let mut address = *address;
        // SAFETY: the identifier lives as long as `self`; the address is read during the call.
        called(unsafe { sys::rdma_bind_addr(self.raw.as_ptr(), address.as_mut_ptr()) })
    }

    pub(super) fn listen(&self, backlog: i32) -> io::Result<()> {
        // SAFETY: the identifier lives as long as `self`.
        called(unsafe { sys::rdma_listen(self.raw.as_ptr(), backlog) })
    }

    /// Begins to look for the way to `to`, from `from` if that is given.
    pub(super) fn resolve_address(
        &self,
        from: Option<&SocketAddress>,
        to: &SocketAddress,
        timeout_ms: i32,
    ) -> io::Result<()> {
        let (mut from, mut to) = (from.copied(), *to);
        let from = from
            .as_mut()
            .map_or(ptr::null_mut(), SocketAddress::as_mut_ptr);
        // SAFETY: the identifier lives as long as `self`; the addresses are read during the call.
        called(unsafe {
            sys::rdma_resolve_addr(self.raw.as_ptr(), from, to.as_mut_ptr(), timeout_ms)
        })
    }

    pub(super) fn resolve_route(&self, timeout_ms: i32) -> io::Result<()> {
        // SAFETY: the identifier lives as long as `self`.
        called(unsafe { sys::rdma_resolve_route(self.raw.as_ptr(), timeout_ms) })
    }

    /// Asks the server.
    pub(super) fn connect(&self, parameters: Parameters<'_>) -> io::Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: the identifier lives as long as `self`; the parameters are read during the call.
        called(unsafe { sys::rdma_connect(self.raw.as_ptr(), &mut raw) })
    }

    /// Answers a request.
    pub(super) fn accept(&self, parameters: Parameters<'_>) -> io::Result<()> {
        let mut raw = parameters.raw();
        // SAFETY: the identifier lives as long as `self`; the parameters are read during the call.
        called(unsafe { sys::rdma_accept(self.raw.as_ptr(), &mut raw) })
    }

    /// Refuses a request.
    pub(super) fn reject(&self, private_data: &[u8]) -> io::Result<()> {
        let len = u8::try_from(private_data.len()).unwrap_or(u8::MAX);
        // SAFETY: the identifier lives as long as `self`; the private data is read during the call.
        called(unsafe { sys::rdma_reject(self.raw.as_ptr(), private_data.as_ptr().cast(), len) })
    }

    /// Says that this end of a connection is ready, too.
    pub(super) fn establish(&self) -> io::Result<()> {
        // SAFETY: the identifier lives as long as `self`.
        called(unsafe { sys::rdma_establish(self.raw.as_ptr()) })
    }

    /// Ends a connection.
    pub(super) fn disconnect(&self) {
        // SAFETY: the identifier lives as long as `self`. One that is not connected refuses, which changes nothing.
        unsafe { sys::rdma_disconnect(self.raw.as_ptr()) };
    }

    /// What the queue pair of a connection needs to enter `state`.
    pub(super) fn attributes_for(
        &self,
        state: sys::ibv_qp_state::Type,
    ) -> io::Result<(sys::ibv_qp_attr, i32)> {
        // SAFETY: integers and nested integers, for which zeros are a value.
        let mut attributes: sys::ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attributes.qp_state = state;
        let mut mask = 0;
        // SAFETY: the identifier lives as long as `self`; there is room for what the call writes.
        called(unsafe { sys::rdma_init_qp_attr(self.raw.as_ptr(), &mut attributes, &mut mask) })?;
        Ok((attributes, mask))
    }

    /// The name of its device and the number of its port, once it has one.
    pub(super) fn device(&self) -> Option<(String, u8)> {
        // SAFETY: the identifier lives as long as `self`; the device that it has is librdmacm's own, which never closes it.
        unsafe {
            let id = self.raw.as_ref();
            let context = NonNull::new(id.verbs)?;
            let name = CStr::from_ptr(sys::ibv_get_device_name((*context.as_ptr()).device));
            Some((name.to_string_lossy().into_owned(), id.port_num))
        }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed only here; every event about it has been acknowledged as soon as it came.
        unsafe { sys::rdma_destroy_id(self.raw.as_ptr()) };
    }
}

const AF_IB: u16 = 27;

/// `struct sockaddr_ib` of rdma-core's <infiniband/ib.h>, in the host's byte order except where the names say otherwise.
#[repr(C)]
#[derive(Clone, Copy)]
struct SockaddrIb {
    family: u16,
    pkey_be: u16,
    flowinfo_be: u32,
    gid: [u8; 16],
    service_be: u64,
    service_mask_be: u64,
    scope_id: u64,
}

/// An address as the connection manager takes it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union SocketAddress {
    any: libc::sockaddr_storage,
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
    ib: SockaddrIb,
}

const _: () = assert!(size_of::<SockaddrIb>() == 48);
const _: () = assert!(size_of::<SockaddrIb>() <= size_of::<libc::sockaddr_storage>());

impl SocketAddress {
    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        ptr::from_mut(self).cast()
    }

    fn zeroed() -> Self {
        // SAFETY: integers and arrays of them, for which zeros are a value.
        unsafe { MaybeUninit::zeroed().assume_init() }
    }

    /// A service at a GID: over Ethernet an IPv6 address or, in its mapped form, an IPv4 one. A link-local one is looked for
    /// behind `interface`.
    pub(super) fn of(
        port: &Port,
        space: Space,
        gid: [u8; 16],
        service_port: u16,
        interface: Option<u32>,
    ) -> Self {
        let mut address = Self::zeroed();
        if port.is_infiniband() {
            address.ib = SockaddrIb {
                family: AF_IB,
                pkey_be: u16::MAX,
                flowinfo_be: 0,
                gid,
                service_be: space.service(service_port).to_be(),
                service_mask_be: u64::MAX,
                scope_id: 0,
            };
            return address;
        }
        let ip = std::net::Ipv6Addr::from(gid);
        if let Some(ip) = ip.to_ipv4_mapped() {
            address.v4.sin_family = libc::AF_INET as u16;
            address.v4.sin_port = service_port.to_be();
            address.v4.sin_addr.s_addr = u32::from(ip).to_be();
        } else {
            address.v6.sin6_family = libc::AF_INET6 as u16;
            address.v6.sin6_port = service_port.to_be();
            address.v6.sin6_addr.s6_addr = gid;
            if ip.is_unicast_link_local() {
                address.v6.sin6_scope_id = interface.unwrap_or(0);
            }
        }
        address
    }

    /// A service on every port of one kind of link.
    pub(super) fn everywhere(port: &Port, space: Space, service_port: u16) -> Self {
        Self::of(port, space, [0; 16], service_port, None)
    }
}
