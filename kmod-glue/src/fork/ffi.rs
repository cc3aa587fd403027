//! The functions and structures of `shim/fork.h`, field by field, and those of `uapi/mitosis.h` that Rust fills in.

use core::ffi::{c_int, c_void};

use crate::ffi::{opaque, Event, IbDevice, IbPd, Port, Text};

opaque! {
    /// `struct mitosis_mutex`
    Mutex;
    /// `struct page`
    Page;
    /// `struct mm_struct`
    Mm;
    /// `struct pid`
    Pid;
    /// `struct mitosis_link`
    Link;
    /// `struct mitosis_link_listener`
    LinkListener;
    /// `struct mitosis_read`
    Read;
    /// `struct mitosis_region`
    Region;
    /// `struct mitosis_image_file`
    ImageFile;
    /// `struct mitosis_child`
    Child;
}

/// `struct mitosis_registers`: as the descriptor's.
pub type Registers = mitosis_core::descriptor::Registers;
/// `struct mitosis_layout`: as the descriptor's.
pub type Layout = mitosis_core::descriptor::Layout;
/// `struct mitosis_action`: as the descriptor's.
pub type Action = mitosis_core::descriptor::SignalAction;

/// `struct mitosis_task`
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Task {
    pub blocked: u64,
    pub rseq: u64,
    pub rseq_len: u32,
    pub rseq_signature: u32,
    pub robust_list: u64,
    pub robust_list_len: u64,
    pub clear_child_tid: u64,
    pub altstack_sp: u64,
    pub altstack_size: u64,
    pub altstack_flags: u32,
    pub personality: u32,
}

/// `struct mitosis_identity`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Identity {
    pub uid: u32,
    pub threads: u32,
    pub pid: i32,
    pub reserved: u32,
    pub comm: [u8; 16],
    pub release: [u8; 65],
    pub version: [u8; 65],
    pub padding: [u8; 6],
}

impl Identity {
    /// Nothing yet.
    pub const EMPTY: Identity = Identity {
        uid: 0,
        threads: 0,
        pid: 0,
        reserved: 0,
        comm: [0; 16],
        release: [0; 65],
        version: [0; 65],
        padding: [0; 6],
    };
}

/// `MITOSIS_VMA_*` beyond the descriptor's flags.
pub mod vma_flag {
    pub const MAY_WRITE: u32 = 0x100;
    pub const DEVICE: u32 = 0x200;
    pub const HUGETLB: u32 = 0x400;
    pub const FILE: u32 = 0x800;
    pub const SPECIAL: u32 = 0x1000;
}

/// `struct mitosis_vma`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    pub pgoff: u64,
    pub flags: u32,
    pub path_len: u32,
    pub path: *const u8,
}

/// `struct mitosis_open_file`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct OpenFile {
    pub fd: u32,
    pub status_flags: u32,
    pub close_on_exec: u32,
    pub mode: u32,
    pub position: u64,
    pub path_len: u32,
    pub reserved: u32,
    pub path: *const u8,
}

/// `struct mitosis_link_request`
#[repr(C)]
pub struct LinkRequest {
    pub device: *mut IbDevice,
    pub port_num: u32,
    pub private_data_len: u32,
    pub private_data: *const u8,
    pub gid: [u8; 16],
}

/// `struct mitosis_fork_parameters`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ForkParameters {
    pub service_id: u32,
    pub prefetch: u32,
    pub cache_pages: u32,
    pub warm_pages: u32,
    pub cluster_key: Text,
}

/// Takes what an iteration found; not 0 stops it.
pub type Take<T> = unsafe extern "C" fn(*mut c_void, T) -> c_int;

extern "C" {
    pub fn mitosis_mutex_create() -> *mut Mutex;
    pub fn mitosis_mutex_destroy(mutex: *mut Mutex);
    pub fn mitosis_mutex_lock(mutex: *mut Mutex);
    pub fn mitosis_mutex_try_lock(mutex: *mut Mutex) -> bool;
    pub fn mitosis_mutex_unlock(mutex: *mut Mutex);

    pub fn mitosis_task_registers(registers: *mut Registers);
    pub fn mitosis_task_state(task: *mut Task);
    pub fn mitosis_task_layout(layout: *mut Layout);
    pub fn mitosis_task_identity(identity: *mut Identity);
    pub fn mitosis_task_action(signal: u32, action: *mut Action) -> bool;
    pub fn mitosis_task_set_registers(registers: *const Registers);
    pub fn mitosis_task_set_state(task: *const Task);
    pub fn mitosis_task_set_layout(layout: *const Layout) -> c_int;
    pub fn mitosis_cpuid(leaf: u32, subleaf: u32, registers: *mut [u32; 4]);
    pub fn mitosis_xcr0() -> u32;
    pub fn mitosis_task_is_admin() -> bool;
    pub fn mitosis_task_number_here(global_pid: i32) -> i32;
    pub fn mitosis_task_is_alive(local_pid: i32) -> bool;
    pub fn mitosis_task_kill_self();
    pub fn mitosis_task_mm() -> *mut Mm;
    pub fn mitosis_mm_release(mm: *mut Mm);
    pub fn mitosis_process_child(local_pid: i32) -> *mut Pid;
    pub fn mitosis_process_put(pid: *mut Pid);
    pub fn mitosis_process_is_alive(pid: *mut Pid) -> bool;
    pub fn mitosis_process_hide(pid: *mut Pid);
    pub fn mitosis_process_vma_flags(pid: *mut Pid, count: *mut u32) -> u32;
    pub fn mitosis_event_wait_frozen(event: *mut Event, timeout_ns: u64) -> c_int;

    pub fn mitosis_each_vma(take: Take<*const Vma>, context: *mut c_void) -> c_int;
    pub fn mitosis_each_chunk(take: Take<u64>, context: *mut c_void) -> c_int;
    pub fn mitosis_each_recent(
        take: unsafe extern "C" fn(*mut c_void, u64, *const u64) -> c_int,
        context: *mut c_void,
    ) -> c_int;
    pub fn mitosis_each_file(take: Take<*const OpenFile>, context: *mut c_void) -> c_int;
    pub fn mitosis_collect(
        mm: *mut Mm,
        chunk: u64,
        pages: *mut *mut Page,
        present: *mut u64,
        elsewhere: *mut u64,
    ) -> u32;
    pub fn mitosis_page_copy(pid: i32, mm: *mut Mm, address: u64, to: *mut c_void) -> c_int;

    pub fn mitosis_child_clear(keep_start: u64, keep_end: u64) -> c_int;
    pub fn mitosis_child_vdso() -> u64;
    pub fn mitosis_child_begin() -> *mut Child;
    pub fn mitosis_child_end(child: *mut Child);
    pub fn mitosis_child_map(
        image: *mut ImageFile,
        child: *mut Child,
        start: u64,
        len: u64,
        index: u32,
        flags: u32,
    ) -> c_int;
    pub fn mitosis_image_file_create(image: *mut c_void) -> c_int;
    pub fn mitosis_page_take() -> *mut Page;
    pub fn mitosis_page_take_zeroed() -> *mut Page;
    pub fn mitosis_page_address(page: *mut Page) -> *mut c_void;
    pub fn mitosis_page_get(page: *mut Page);
    pub fn mitosis_page_put(page: *mut Page);
    pub fn mitosis_copy_to_user(to: u64, from: *const c_void, len: usize) -> c_int;

    pub fn mitosis_link_connect(
        port: *const Port,
        pd: *mut IbPd,
        gid: *const u8,
        service_port: u16,
        private_data: *const u8,
        len: u32,
        timeout_ms: u32,
        error: *mut c_int,
    ) -> *mut Link;
    pub fn mitosis_link_alive(link: *mut Link) -> bool;
    pub fn mitosis_link_break(link: *mut Link);
    pub fn mitosis_link_give_up(link: *mut Link);
    pub fn mitosis_link_destroy(link: *mut Link);
    pub fn mitosis_link_listen(
        service_port: u16,
        infiniband: bool,
        event: *mut Event,
        admit: unsafe extern "C" fn(*mut c_void, *const LinkRequest) -> *mut IbPd,
        established: unsafe extern "C" fn(*mut c_void, *const LinkRequest, *mut Link) -> bool,
        context: *mut c_void,
        error: *mut c_int,
    ) -> *mut LinkListener;
    pub fn mitosis_link_unlisten(listener: *mut LinkListener);

    pub fn mitosis_read_create(device: *mut IbDevice) -> *mut Read;
    pub fn mitosis_read_destroy(read: *mut Read);
    pub fn mitosis_read_post(
        link: *mut Link,
        read: *mut Read,
        pages: *const *mut Page,
        count: u32,
        remote: u64,
        rkey: u32,
    ) -> c_int;
    pub fn mitosis_read_wait(read: *mut Read) -> c_int;

    pub fn mitosis_region_create(
        link: *mut Link,
        pages: *mut *mut Page,
        count: u32,
        error: *mut c_int,
    ) -> *mut Region;
    pub fn mitosis_region_rkey(region: *const Region) -> u32;
    pub fn mitosis_region_iova(region: *const Region) -> u64;
    pub fn mitosis_region_destroy(region: *mut Region);
}
