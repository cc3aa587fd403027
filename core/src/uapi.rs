//! What calls on `/dev/mitosis` hold: `kmod-glue/uapi/mitosis.h`, field by field, which says what the fields mean. The
//! module reads them, and libmitosis writes them.

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
/// `MITOSIS_RESUME`
pub const RESUME: u32 = command::<Resume>(WRITE, 7);
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
/// `MITOSIS_PREPARE_WAIT`
pub const PREPARE_WAIT: u32 = 2;
/// `MITOSIS_OPEN_EAGER`
pub const OPEN_EAGER: u32 = 1;
/// `MITOSIS_OPEN_PRIVATE`
pub const OPEN_PRIVATE: u32 = 2;

/// `MITOSIS_REFUSED_*`
#[allow(missing_docs)]
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
    ($($(#[$doc:meta])* $name:ident: $len:literal { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[allow(missing_docs)]
        pub struct $name {
            $(pub $field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == $len);
    )*};
}

structures! {
    /// `struct mitosis_seed_id`
    SeedId: 8 { id: u32, generation: u32, }
    /// `struct mitosis_machine`: a machine's RDMA port, by its GID, and where the module listens
    /// there.
    Machine: 24 { gid: [u8; 16], service: u32, reserved: u32, }
    /// `struct mitosis_freeze`
    Freeze: 16 { token: u64, flags: u32, reserved: u32, }
    /// `struct mitosis_prepare`
    Prepare: 80 {
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
    SeedInfo: 72 {
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
    List: 16 { seeds: u64, capacity: u32, count: u32, }
    /// `struct mitosis_open`
    Open: 72 {
        machine: Machine,
        seed: SeedId,
        capability: [u8; 16],
        descriptor: u64,
        descriptor_room: u32,
        descriptor_len: u32,
        flags: u32,
        prefetch: u32,
    }
    /// `struct mitosis_resume`
    Resume: 16 { child: u64, flags: u32, reserved: u32, }
    /// `struct mitosis_ping`
    Ping: 32 { machine: Machine, rtt_ns: u64, }
    /// `struct mitosis_stats`
    Stats: 160 {
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

#[cfg(test)]
mod tests {
    use super::*;

    /// As a C compiler computes them from the header.
    #[test]
    fn commands_are_those_of_the_header() {
        assert_eq!(FREEZE, 0x4010_b501);
        assert_eq!(PREPARE, 0xc050_b502);
        assert_eq!(UNPREPARE, 0x4008_b503);
        assert_eq!(LIST, 0xc010_b504);
        assert_eq!(QUERY, 0xc048_b505);
        assert_eq!(OPEN, 0xc048_b506);
        assert_eq!(RESUME, 0x4010_b507);
        assert_eq!(CONNECT, 0x4018_b508);
        assert_eq!(DISCONNECT, 0x4018_b509);
        assert_eq!(PING, 0xc020_b50a);
        assert_eq!(STATS, 0x80a0_b50b);
    }
}
