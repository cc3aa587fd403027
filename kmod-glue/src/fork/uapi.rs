//! `uapi/mitosis.h`, field by field: what a call's argument holds.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `_IOC(direction, 0xb5, number, size)`
const fn command<T>(direction: u32, number: u32) -> u32 {
    direction << 30 | (size_of::<T>() as u32) << 16 | 0xb5 << 8 | number
}

const WRITE: u32 = 1;
const READ: u32 = 2;

/// `MITOSIS_FREEZE`
pub const FREEZE: u32 = command::<Freeze>(WRITE, 1);
/// `MITOSIS_PREPARE`
pub const PREPARE: u32 = command::<Prepare>(READ | WRITE, 2);
/// `MITOSIS_UNPREPARE`
pub const UNPREPARE: u32 = command::<SeedId>(WRITE, 3);
/// `MITOSIS_LIST`
pub const LIST: u32 = command::<List>(READ | WRITE, 4);
/// `MITOSIS_QUERY`
pub const QUERY: u32 = command::<SeedInfo>(READ | WRITE, 5);
/// `MITOSIS_OPEN`
pub const OPEN: u32 = command::<Open>(READ | WRITE, 6);
/// `MITOSIS_CONNECT`
pub const CONNECT: u32 = command::<Machine>(WRITE, 8);
/// `MITOSIS_DISCONNECT`
pub const DISCONNECT: u32 = command::<Machine>(WRITE, 9);
/// `MITOSIS_PING`
pub const PING: u32 = command::<Ping>(READ | WRITE, 10);
/// `MITOSIS_STATS`
pub const STATS: u32 = command::<Stats>(READ, 11);

/// `MITOSIS_FREEZE_STRICT_FILES`
pub const FREEZE_STRICT_FILES: u32 = 1;
/// `MITOSIS_OPEN_EAGER`
pub const OPEN_EAGER: u32 = 1;
/// `MITOSIS_OPEN_PRIVATE`
pub const OPEN_PRIVATE: u32 = 2;

/// `MITOSIS_REFUSED_*`
pub mod refused {
    pub const SHARED_MEMORY: u32 = 1;
    pub const DEVICE_MEMORY: u32 = 2;
    pub const HUGETLB: u32 = 3;
    pub const TOO_MANY_VMAS: u32 = 4;
    pub const TOO_LARGE: u32 = 5;
    pub const FILE: u32 = 6;
    pub const THREADS: u32 = 7;
    pub const STATE: u32 = 8;
}

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[allow(missing_docs)]
        pub struct $name {
            $(pub $field: $type,)*
        }
    )*};
}

structures! {
    /// `struct mitosis_seed_id`
    SeedId { id: u32, generation: u32, }
    /// `struct mitosis_machine`
    Machine { gid: [u8; 16], service: u32, reserved: u32, }
    /// `struct mitosis_freeze`
    Freeze { token: u64, flags: u32, reserved: u32, }
    /// `struct mitosis_prepare`
    Prepare {
        token: u64,
        pid: i32,
        flags: u32,
        lease_ms: u64,
        seed: SeedId,
        capability: [u8; 16],
        descriptor_len: u64,
        vmas: u32,
        chunks: u32,
        refused: u32,
        reserved: u32,
        refused_at: u64,
    }
    /// `struct mitosis_seed_info`
    SeedInfo {
        seed: SeedId,
        pid: i32,
        uid: u32,
        age_ms: u64,
        lease_left_ms: u64,
        descriptor_len: u64,
        vmas: u32,
        chunks: u32,
        regions: u32,
        opened: u32,
        comm: [u8; 16],
    }
    /// `struct mitosis_list`
    List { seeds: u64, capacity: u32, count: u32, }
    /// `struct mitosis_open`
    Open {
        machine: Machine,
        seed: SeedId,
        capability: [u8; 16],
        descriptor: u64,
        descriptor_room: u32,
        descriptor_len: u32,
        flags: u32,
        prefetch: u32,
    }
    /// `struct mitosis_ping`
    Ping { machine: Machine, rtt_ns: u64, }
    /// `struct mitosis_stats`
    Stats {
        seeds: u64,
        prepared: u64,
        unprepared: u64,
        images: u64,
        children: u64,
        regions: u64,
        seed_pages: u64,
        cached_pages: u64,
        faults: u64,
        faults_zero: u64,
        faults_cached: u64,
        faults_read: u64,
        faults_rpc: u64,
        faults_failed: u64,
        pages_read: u64,
        connections: u64,
        reserved: [u64; 4],
    }
}

const _: () = assert!(size_of::<Prepare>() == 80);
const _: () = assert!(size_of::<SeedInfo>() == 72);
const _: () = assert!(size_of::<Open>() == 72);
const _: () = assert!(size_of::<Stats>() == 160);
