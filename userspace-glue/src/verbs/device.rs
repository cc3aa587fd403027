//! RDMA devices and their ports.

use std::ffi::CStr;
use std::fmt;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys as sys;
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};

use super::failure::{cause, check, errno, failed, no_device, unknown_device};
use crate::fabric::{FabricError, FabricErrorKind};

/// Which of this machine's ports is used. Whatever is left open is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortChoice {
    /// The device, `rxe0` or `mlx5_0`.
    pub device: Option<String>,
    /// The number of its port, from 1.
    pub port: Option<u8>,
    /// Which entry of the port's GID table is its own end of the path.
    pub gid_index: Option<u8>,
}

/// An open device.
pub(super) struct Context {
    raw: NonNull<sys::ibv_context>,
    name: String,
}

// SAFETY: libibverbs's objects may be used from any thread, and several at a time.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: opened once; whatever was made of it holds an `Arc` of it and is gone. A device that is gone already refuses,
        // which changes nothing.
        unsafe { sys::ibv_close_device(self.as_ptr()) };
    }
}

/// Something that happened to a device or one of its ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Happened {
    /// The device has been removed or is broken.
    DeviceGone,
    /// The port of this number has gone down.
    PortDown(i32),
    /// A queue is broken.
    QueueBroken,
    /// Nothing that ends anything.
    Other,
}

impl Context {
    pub(super) fn as_ptr(&self) -> *mut sys::ibv_context {
        self.raw.as_ptr()
    }

    /// The device's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Readable when [`Context::happened`] has something to tell.
    pub(super) fn events(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the device is, which the borrow of `self` sees to.
        unsafe { BorrowedFd::borrow_raw((*self.as_ptr()).async_fd) }
    }

    /// The next thing that has happened to the device, without waiting.
    pub(super) fn happened(&self) -> Option<Happened> {
        let mut event = MaybeUninit::<sys::ibv_async_event>::zeroed();
        // SAFETY: the device is open, and there is room for an event.
        if unsafe { sys::ibv_get_async_event(self.as_ptr(), event.as_mut_ptr()) } != 0 {
            return None;
        }
        // SAFETY: the event was written whole. Its kind is read as the number that it is in C: a kernel may know more kinds
        // than the enum has. Every element of the union is an integer or a pointer, and was zeroed before.
        let (kind, port) = unsafe {
            let kind = ptr::addr_of!((*event.as_ptr()).event_type).cast::<u32>();
            (kind.read(), (*event.as_ptr()).element.port_num)
        };
        // SAFETY: it came from ibv_get_async_event, and is acknowledged once.
        unsafe { sys::ibv_ack_async_event(event.as_mut_ptr()) };
        Some(happened(kind, port))
    }
}

fn happened(kind: u32, port: i32) -> Happened {
    use sys::ibv_event_type as Kind;
    const DEVICE_FATAL: u32 = Kind::IBV_EVENT_DEVICE_FATAL as u32;
    const PORT_ERR: u32 = Kind::IBV_EVENT_PORT_ERR as u32;
    const CQ_ERR: u32 = Kind::IBV_EVENT_CQ_ERR as u32;
    const QP_FATAL: u32 = Kind::IBV_EVENT_QP_FATAL as u32;
    match kind {
        DEVICE_FATAL => Happened::DeviceGone,
        PORT_ERR => Happened::PortDown(port),
        CQ_ERR | QP_FATAL => Happened::QueueBroken,
        _ => Happened::Other,
    }
}

/// All devices that this process can see, opened; or the one that was chosen.
pub(super) fn open(choice: &PortChoice) -> Result<Vec<Arc<Context>>, FabricError> {
    let mut count = 0;
    // SAFETY: `count` can be written.
    let list = unsafe { sys::ibv_get_device_list(&mut count) };
    if list.is_null() {
        return Err(no_device());
    }
    let opened = open_listed(list, count, choice);
    // SAFETY: the list came from ibv_get_device_list; open devices do not need it.
    unsafe { sys::ibv_free_device_list(list) };
    opened
}

fn open_listed(
    list: *mut *mut sys::ibv_device,
    count: i32,
    choice: &PortChoice,
) -> Result<Vec<Arc<Context>>, FabricError> {
    // SAFETY: ibv_get_device_list returned an array of `count` devices.
    let devices = unsafe { std::slice::from_raw_parts(list, usize::try_from(count).unwrap_or(0)) };
    let named = devices.iter().map(|&device| {
        // SAFETY: the device is in the list, which has not been freed; its name is a string of it.
        let name = unsafe { CStr::from_ptr(sys::ibv_get_device_name(device)) };
        (device, name.to_string_lossy().into_owned())
    });
    let mut named: Vec<_> = named.collect();
    if named.is_empty() {
        return Err(no_device());
    }
    if let Some(chosen) = &choice.device {
        let known: Vec<String> = named.iter().map(|(_, name)| name.clone()).collect();
        named.retain(|(_, name)| name == chosen);
        if named.is_empty() {
            return Err(unknown_device(chosen, &known));
        }
    }
    let mut opened = Vec::new();
    let mut refused = None;
    for (device, name) in named {
        match open_one(device, name) {
            Ok(context) => opened.push(Arc::new(context)),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        // One that cannot be opened does not matter as long as another can.
        Some(error) if opened.is_empty() => Err(error),
        _ => Ok(opened),
    }
}

fn open_one(device: *mut sys::ibv_device, name: String) -> Result<Context, FabricError> {
    // SAFETY: the caller's list holds the device.
    let raw = unsafe { sys::ibv_open_device(device) };
    let raw = NonNull::new(raw).ok_or_else(|| {
        let error = errno();
        // SAFETY: the caller's list holds the device, whose `dev_name` is a string in it.
        let file = unsafe { CStr::from_ptr((*device).dev_name.as_ptr()) };
        let path = format!("/dev/infiniband/{}", file.to_string_lossy());
        let what = format!("cannot open the RDMA device {name} ({path})");
        failed(what, cause(&path, error))
    })?;
    let context = Context { raw, name };
    let events = context.events();
    let flags = fcntl_getfl(events).map_err(|error| failed("fcntl", error.into()))?;
    fcntl_setfl(events, flags | OFlags::NONBLOCK).map_err(|error| failed("fcntl", error.into()))?;
    Ok(context)
}

/// A port that can carry traffic.
#[derive(Clone)]
pub(super) struct Port {
    context: Arc<Context>,
    number: u8,
    mtu: u16,
    is_infiniband: bool,
    gids: i32,
    max_work_requests: u32,
    max_completions: u32,
    max_reads: u8,
    is_soft: bool,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.context.name())?;
        match self.number {
            1 => Ok(()),
            number => write!(f, "/{number}"),
        }
    }
}

/// What `ibv_port_attr.link_layer` says of InfiniBand itself.
const LINK_LAYER_INFINIBAND: u8 = 1;

impl Port {
    pub(super) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn number(&self) -> u8 {
        self.number
    }

    /// Largest datagram in bytes: the active MTU.
    pub(super) fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether the link is InfiniBand rather than Ethernet.
    pub(super) fn is_infiniband(&self) -> bool {
        self.is_infiniband
    }

    /// Most work requests in a queue.
    pub(super) fn max_work_requests(&self) -> u32 {
        self.max_work_requests
    }

    /// Most entries of a completion queue.
    pub(super) fn max_completions(&self) -> u32 {
        self.max_completions
    }

    /// Whether this machine's processors do the device's work.
    pub(super) fn is_soft(&self) -> bool {
        self.is_soft
    }

    /// READs of a connection that may be outstanding: at most 16.
    pub(super) fn max_reads(&self) -> u8 {
        self.max_reads
    }

    /// Whether this is port `number` of the device called `name`.
    pub(super) fn is(&self, name: &str, number: u8) -> bool {
        self.context.name() == name && self.number == number
    }

    /// An entry of the port's GID table; zeros are an entry that is not in use.
    pub(super) fn gid(&self, index: u8) -> Option<[u8; 16]> {
        let mut gid = MaybeUninit::<sys::ibv_gid>::zeroed();
        // SAFETY: the device is open, and there is room for a GID.
        let returned = unsafe {
            sys::ibv_query_gid(
                self.context.as_ptr(),
                self.number,
                i32::from(index),
                gid.as_mut_ptr(),
            )
        };
        // SAFETY: it was zeroed, and any bytes are a GID.
        let raw = unsafe { gid.assume_init().raw };
        (returned == 0 && raw != [0; 16]).then_some(raw)
    }

    /// The places in the table that are in use.
    pub(super) fn gids(&self) -> impl Iterator<Item = (u8, [u8; 16])> + '_ {
        // An address handle names an entry in 8 bits.
        let count = u8::try_from(self.gids).unwrap_or(u8::MAX);
        (0..count).filter_map(|index| Some((index, self.gid(index)?)))
    }

    /// The number of the network interface of a GID, which a link-local address needs to be one.
    pub(super) fn interface(&self, gid_index: u8) -> Option<u32> {
        let path = format!(
            "/sys/class/infiniband/{}/ports/{}/gid_attrs/ndevs/{gid_index}",
            self.context.name(),
            self.number
        );
        let name = std::fs::read_to_string(path).ok()?;
        let index = format!("/sys/class/net/{}/ifindex", name.trim());
        std::fs::read_to_string(index).ok()?.trim().parse().ok()
    }
}

/// The active ports of `devices` that `choice` allows.
pub(super) fn ports(
    devices: &[Arc<Context>],
    choice: &PortChoice,
) -> Result<Vec<Port>, FabricError> {
    let mut active = Vec::new();
    let mut others = Vec::new();
    for context in devices {
        let mut device = MaybeUninit::<sys::ibv_device_attr>::zeroed();
        // SAFETY: the device is open, and there is room for its attributes.
        let returned = unsafe { sys::ibv_query_device(context.as_ptr(), device.as_mut_ptr()) };
        check(returned, || format!("cannot query {}", context.name()))?;
        // SAFETY: written by the call; and zeros are such attributes too.
        let device = unsafe { device.assume_init() };
        for number in 1..=device.phys_port_cnt {
            if choice.port.is_some_and(|chosen| chosen != number) {
                continue;
            }
            match port(context, number, &device)? {
                (Some(port), _) => active.push(port),
                (None, state) => others.push(format!("{}/{number} is {state}", context.name())),
            }
        }
    }
    if !active.is_empty() {
        return Ok(active);
    }
    if let (Some(number), true) = (choice.port, others.is_empty()) {
        let names: Vec<&str> = devices.iter().map(|context| context.name()).collect();
        return Err(FabricError::new(
            FabricErrorKind::NotFound,
            format!("{} has no port {number}", names.join(", ")),
            "ports are numbered from 1: `rdma link` shows them",
        ));
    }
    Err(FabricError::new(
        FabricErrorKind::PortDown,
        format!("no RDMA port is active: {}", others.join(", ")),
        "bring its network interface up (`ip link set eth0 up`), or plug in its cable",
    ))
}

fn port(
    context: &Arc<Context>,
    number: u8,
    device: &sys::ibv_device_attr,
) -> Result<(Option<Port>, &'static str), FabricError> {
    let mut attributes = MaybeUninit::<sys::ibv_port_attr>::zeroed();
    // SAFETY: the device is open, and there is room for the attributes, whose size the call tells the provider.
    let returned =
        unsafe { sys::___ibv_query_port(context.as_ptr(), number, attributes.as_mut_ptr()) };
    check(returned, || {
        format!("cannot query port {number} of {}", context.name())
    })?;
    // SAFETY: zeroed, and then written by the call.
    let attributes = unsafe { attributes.assume_init() };
    let state = match attributes.state {
        sys::ibv_port_state::IBV_PORT_ACTIVE => "active",
        sys::ibv_port_state::IBV_PORT_DOWN => "down",
        sys::ibv_port_state::IBV_PORT_INIT => "waiting for the subnet manager",
        sys::ibv_port_state::IBV_PORT_ARMED => "armed",
        _ => "not active",
    };
    let mtu = match attributes.active_mtu {
        sys::ibv_mtu::IBV_MTU_256 => 256,
        sys::ibv_mtu::IBV_MTU_512 => 512,
        sys::ibv_mtu::IBV_MTU_2048 => 2048,
        sys::ibv_mtu::IBV_MTU_4096 => 4096,
        // Every port can do that much.
        _ => 1024,
    };
    let count = |number: i32| u32::try_from(number).unwrap_or(0);
    let port = Port {
        context: context.clone(),
        number,
        mtu,
        is_infiniband: attributes.link_layer == LINK_LAYER_INFINIBAND,
        gids: attributes.gid_tbl_len,
        max_work_requests: count(device.max_qp_wr),
        max_completions: count(device.max_cqe),
        max_reads: device
            .max_qp_rd_atom
            .min(device.max_qp_init_rd_atom)
            .clamp(1, 16) as u8,
        // Only hardware is a device of some bus.
        is_soft: !std::path::Path::new("/sys/class/infiniband")
            .join(context.name())
            .join("device")
            .exists(),
    };
    let active = attributes.state == sys::ibv_port_state::IBV_PORT_ACTIVE;
    Ok((active.then_some(port), state))
}

/// The port that has `gid` in its table, and where; the first one's first if `gid` is zeros.
pub(super) fn port_with(
    ports: &[Port],
    gid: [u8; 16],
    choice: &PortChoice,
) -> Result<(Port, u8, [u8; 16]), FabricError> {
    let mut known = Vec::new();
    for port in ports {
        for (index, own) in port.gids() {
            if choice.gid_index.is_some_and(|chosen| chosen != index) {
                continue;
            }
            if own == gid || gid == [0; 16] {
                return Ok((port.clone(), index, own));
            }
            known.push(format!("{} ({port})", Ipv6Addr::from(own)));
        }
    }
    let wanted = match (choice.gid_index, gid == [0; 16]) {
        (Some(index), true) => format!("a GID at index {index}"),
        (Some(index), false) => format!("the GID {} at index {index}", Ipv6Addr::from(gid)),
        (None, _) => format!("the GID {}", Ipv6Addr::from(gid)),
    };
    let advice = if known.is_empty() {
        "see /sys/class/infiniband/*/ports/*/gids".to_string()
    } else {
        format!("a server serves at one of {}, or at [::]", known.join(", "))
    };
    Err(FabricError::new(
        FabricErrorKind::NotFound,
        format!("no active RDMA port of this machine has {wanted}"),
        advice,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_that_end_something_are_told_from_others() {
        assert_eq!(happened(8, 0), Happened::DeviceGone);
        assert_eq!(happened(10, 2), Happened::PortDown(2));
        assert_eq!(happened(0, 0), Happened::QueueBroken);
        assert_eq!(happened(1, 0), Happened::QueueBroken);
        for kind in [4, 9, 11, 17, 99] {
            assert_eq!(happened(kind, 1), Happened::Other, "{kind}");
        }
    }

    #[test]
    fn a_machine_without_devices_says_how_to_get_one() {
        let chosen = PortChoice {
            device: Some("no-such-device".into()),
            ..PortChoice::default()
        };
        let error = open(&chosen).err().expect("no device has that name");
        assert_eq!(error.kind(), FabricErrorKind::NotFound);
        assert!(!error.advice().is_empty(), "{error}");
    }
}
