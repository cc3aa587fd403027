//! The functions and structures of `shim/shim.h` and `shim/module.h`, field by field.
//!
//! Nothing outside the safe wrappers (`memory`, `thread`, `devices`, `verbs`, `cm`, `log`) uses this module.

use core::ffi::{c_char, c_int, c_void};

/// Declares types that only C can see into.
macro_rules! opaque {
    ($($(#[$doc:meta])* $name:ident;)*) => {$(
        $(#[$doc])*
        #[repr(C)]
        pub struct $name {
            _opaque: [u8; 0],
        }
    )*};
}

pub(crate) use opaque;

opaque! {
    /// `struct ib_device`
    IbDevice;
    /// `struct ib_pd`
    IbPd;
    /// `struct ib_cq`
    IbCq;
    /// `struct ib_qp`
    IbQp;
    /// `struct ib_ah`
    IbAh;
    /// `struct mitosis_event`
    Event;
    /// `struct mitosis_thread`
    Thread;
    /// `struct mitosis_resolution`
    Resolution;
    /// `struct mitosis_listener`
    Listener;
    /// `struct mitosis_devices`
    Devices;
}

/// `struct mitosis_port`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Port {
    pub device: *mut IbDevice,
    pub port_num: u32,
    pub mtu_bytes: u32,
    pub ifindex: u32,
    pub max_qp_wr: u32,
    pub is_infiniband: u32,
    pub gid: [u8; 16],
    pub name: [u8; 64],
}

/// `struct mitosis_completion`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Completion {
    pub wr_id: u64,
    pub status: u32,
    pub byte_len: u32,
    pub src_qp: u32,
    pub wc_flags: u32,
    pub slid: u32,
    pub pkey_index: u16,
    pub vlan_id: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
    pub network_hdr_type: u8,
    pub has_grh: u8,
    pub is_ipv4: u8,
    pub reserved: [u8; 3],
}

const _: () = assert!(size_of::<Completion>() == 40);

/// `struct mitosis_receive`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Receive {
    pub wr_id: u64,
    pub grh_dma: u64,
    pub data_dma: u64,
    pub data_len: u32,
}

/// `struct mitosis_piece`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Piece {
    pub dma: u64,
    pub len: u32,
    pub reserved: u32,
}

/// `MITOSIS_PIECES`
pub const PIECES: usize = 3;

/// `struct mitosis_send`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Send {
    pub ah: *mut IbAh,
    pub wr_id: u64,
    pub pieces: [Piece; PIECES],
    pub piece_count: u32,
    pub remote_qpn: u32,
    pub remote_qkey: u32,
    pub signaled: u32,
}

/// `enum mitosis_cm_step`
pub mod cm_step {
    pub const PENDING: u32 = 0;
    pub const ADDRESS: u32 = 1;
    pub const ROUTE: u32 = 2;
    pub const ESTABLISHED: u32 = 3;
    pub const REFUSED: u32 = 4;
    pub const FAILED: u32 = 5;
}

/// `struct mitosis_cm_state`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct CmState {
    pub step: u32,
    pub status: i32,
    pub remote_qpn: u32,
    pub remote_qkey: u32,
    pub reason: u32,
}

/// `struct mitosis_cm_request`
#[repr(C)]
pub struct CmRequest {
    pub device: *mut IbDevice,
    pub port_num: u32,
    pub private_data_len: u32,
    pub private_data: *const u8,
}

/// `struct mitosis_cm_answer`
#[repr(C)]
pub struct CmAnswer {
    pub accept: u32,
    pub qpn: u32,
    pub qkey: u32,
    pub reason: u32,
}

/// `struct mitosis_text`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Text {
    pub bytes: *const u8,
    pub len: usize,
}

impl Text {
    /// # Safety
    /// C's bytes are valid for as long as the result is used.
    pub unsafe fn bytes<'a>(&self) -> &'a [u8] {
        // SAFETY: by this function's contract.
        unsafe { core::slice::from_raw_parts(self.bytes, self.len) }
    }
}

/// `struct mitosis_server_parameters`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ServerParameters {
    pub running_secs: u32,
    pub test_rpc_id: u32,
    pub qd_hint: u32,
    pub service_id: u32,
    pub cluster_key: Text,
}

/// `struct mitosis_client_parameters`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ClientParameters {
    pub server_qd_hint: u32,
    pub client_qd_hint: u32,
    pub server_service_id: u32,
    pub client_service_id_base: u32,
    pub test_rpc_id: u32,
    pub running_secs: u32,
    pub report_interval: u32,
    pub thread_count: u32,
    pub window: u32,
    pub session_id_base: u32,
    pub payload_size: u32,
    pub gid: Text,
    pub cluster_key: Text,
}

/// `MITOSIS_DEFAULT`
pub const DEFAULT: u32 = u32::MAX;

/// `struct mitosis_flood_parameters`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct FloodParameters {
    pub server_qd_hint: u32,
    pub server_service_id: u32,
    pub test_rpc_id: u32,
    pub datagrams: u32,
    pub seed: u32,
    pub gid: Text,
    pub play: Text,
    pub connect: Text,
    pub confirm: Text,
}

extern "C" {
    pub fn mitosis_log(level: c_int, text: *const u8, len: u32);

    pub fn mitosis_alloc(size: usize) -> *mut c_void;
    pub fn mitosis_free(memory: *mut c_void);
    pub fn mitosis_page_alloc() -> *mut c_void;
    pub fn mitosis_page_free(page: *mut c_void);

    pub fn mitosis_clock_ns() -> u64;
    pub fn mitosis_random_u64() -> u64;
    pub fn mitosis_yield();
    pub fn mitosis_alone() -> bool;
    pub fn mitosis_park();
    pub fn mitosis_event_create() -> *mut Event;
    pub fn mitosis_event_destroy(event: *mut Event);
    pub fn mitosis_event_signal(event: *mut Event);
    pub fn mitosis_event_wait(event: *mut Event, timeout_ns: u64);
    pub fn mitosis_thread_start(
        body: unsafe extern "C" fn(*mut c_void),
        context: *mut c_void,
        name: *const c_char,
        index: u32,
    ) -> *mut Thread;
    pub fn mitosis_thread_join(thread: *mut Thread);

    pub fn mitosis_devices_open(removed: *mut Event) -> *mut Devices;
    pub fn mitosis_devices_ports(devices: *mut Devices, ports: *mut Port, capacity: u32) -> u32;
    pub fn mitosis_devices_removed(devices: *mut Devices) -> bool;
    pub fn mitosis_devices_close(devices: *mut Devices);

    pub fn mitosis_pd_alloc(device: *mut IbDevice, error: *mut c_int) -> *mut IbPd;
    pub fn mitosis_pd_free(pd: *mut IbPd);
    pub fn mitosis_cq_create(
        device: *mut IbDevice,
        entries: u32,
        event: *mut Event,
        error: *mut c_int,
    ) -> *mut IbCq;
    pub fn mitosis_cq_destroy(cq: *mut IbCq);
    pub fn mitosis_cq_poll(cq: *mut IbCq, completions: *mut Completion, capacity: u32) -> u32;
    pub fn mitosis_cq_arm(cq: *mut IbCq) -> bool;
    pub fn mitosis_qp_create_ud(
        pd: *mut IbPd,
        send_cq: *mut IbCq,
        recv_cq: *mut IbCq,
        send_depth: u32,
        recv_depth: u32,
        port_num: u32,
        qkey: u32,
        error: *mut c_int,
    ) -> *mut IbQp;
    pub fn mitosis_qp_destroy(qp: *mut IbQp);
    pub fn mitosis_qp_num(qp: *const IbQp) -> u32;
    pub fn mitosis_post_receives(qp: *mut IbQp, receives: *const Receive, count: u32) -> c_int;
    pub fn mitosis_post_sends(
        qp: *mut IbQp,
        sends: *const Send,
        count: u32,
        posted: *mut u32,
    ) -> c_int;
    pub fn mitosis_ah_from_completion(
        pd: *mut IbPd,
        port_num: u32,
        completion: *const Completion,
        grh: *const u8,
        error: *mut c_int,
    ) -> *mut IbAh;
    pub fn mitosis_ah_destroy(ah: *mut IbAh);
    pub fn mitosis_dma_map(
        device: *mut IbDevice,
        page: *mut c_void,
        to_device: bool,
        error: *mut c_int,
    ) -> u64;
    pub fn mitosis_dma_unmap(device: *mut IbDevice, dma: u64, to_device: bool);
    pub fn mitosis_dma_sync_for_cpu(device: *mut IbDevice, dma: u64, len: u32);

    pub fn mitosis_cm_open(event: *mut Event, error: *mut c_int) -> *mut Resolution;
    pub fn mitosis_cm_resolve_address(
        resolution: *mut Resolution,
        port: *const Port,
        gid: *const u8,
        service_port: u16,
        timeout_ms: u32,
    ) -> c_int;
    pub fn mitosis_cm_resolve_route(resolution: *mut Resolution, timeout_ms: u32) -> c_int;
    pub fn mitosis_cm_connect(
        resolution: *mut Resolution,
        pd: *mut IbPd,
        private_data: *const u8,
        len: u32,
    ) -> c_int;
    pub fn mitosis_cm_state(resolution: *mut Resolution, state: *mut CmState);
    pub fn mitosis_cm_device(resolution: *mut Resolution, port_num: *mut u32) -> *mut IbDevice;
    pub fn mitosis_cm_take_ah(resolution: *mut Resolution) -> *mut IbAh;
    pub fn mitosis_cm_close(resolution: *mut Resolution);
    pub fn mitosis_cm_listen(
        service_port: u16,
        infiniband: bool,
        answer: unsafe extern "C" fn(*mut c_void, *const CmRequest, *mut CmAnswer),
        context: *mut c_void,
        error: *mut c_int,
    ) -> *mut Listener;
    pub fn mitosis_cm_unlisten(listener: *mut Listener);
}
