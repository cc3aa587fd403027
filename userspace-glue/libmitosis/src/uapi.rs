//! `kmod-glue/uapi/mitosis.h`, field by field.

#![allow(missing_docs, reason = "the header says what they mean")]

/// `_IOC(direction, 0xb5, number, size)`
const fn command<T>(direction: u64, number: u64) -> u64 {
    direction << 30 | (size_of::<T>() as u64) << 16 | 0xb5 << 8 | number
}

const WRITE: u64 = 1;
const READ: u64 = 2;

pub const FREEZE: u64 = command::<Freeze>(WRITE, 1);
pub const PREPARE: u64 = command::<Prepare>(READ | WRITE, 2);
pub const UNPREPARE: u64 = command::<SeedId>(WRITE, 3);
pub const LIST: u64 = command::<List>(READ | WRITE, 4);
pub const QUERY: u64 = command::<SeedInfo>(READ | WRITE, 5);
pub const OPEN: u64 = command::<Open>(READ | WRITE, 6);
pub const RESUME: u64 = command::<Resume>(WRITE, 7);
pub const CONNECT: u64 = command::<Machine>(WRITE, 8);
pub const DISCONNECT: u64 = command::<Machine>(WRITE, 9);
pub const PING: u64 = command::<Ping>(READ | WRITE, 10);
pub const STATS: u64 = command::<Stats>(READ, 11);

pub const FREEZE_STRICT_FILES: u32 = 1;
pub const OPEN_EAGER: u32 = 1;
pub const OPEN_PRIVATE: u32 = 2;

macro_rules! structures {
    ($($(#[$doc:meta])* $name:ident: $len:literal { $($field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
