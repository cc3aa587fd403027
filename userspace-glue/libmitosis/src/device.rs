//! `/dev/mitosis`, and the calls that need nothing else.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::error::Error;
use crate::system::{errno, ioctl};
pub use crate::uapi::SeedInfo;
use crate::uapi::{self, List, Machine, Ping, SeedId, Stats};

/// The process's one open file of the device, or -1. A seed lives as long as it is open.
static OPENED: AtomicI32 = AtomicI32::new(-1);

/// The device, opened once a process and kept open until it ends.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    pub(crate) fd: RawFd,
}

impl Device {
    /// Opens the device, unless it is open.
    pub fn open() -> Result<Self, Error> {
        // Relaxed: the number is all there is to it.
        let fd = OPENED.load(Ordering::Relaxed);
        if fd >= 0 {
            return Ok(Self { fd });
        }
        // SAFETY: the path is a C string.
        let fd = unsafe { libc::open(c"/dev/mitosis".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(match errno() {
                libc::ENOENT | libc::ENXIO | libc::ENODEV => Error::NoDevice,
                libc::EACCES | libc::EPERM => Error::NoAccess,
                errno => Error::System {
                    what: "opening /dev/mitosis",
                    errno,
                },
            });
        }
        // Relaxed: as above. Of two threads that open it at once, one is second.
        match OPENED.compare_exchange(-1, fd, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(Self { fd }),
            Err(first) => {
                crate::system::close(fd);
                Ok(Self { fd: first })
            }
        }
    }

    /// Forgets the open file, which a child does not have.
    pub(crate) fn forget() {
        // Relaxed: a child has one thread.
        OPENED.store(-1, Ordering::Relaxed);
    }

    /// The seeds of this machine that the caller may see: its own, or with `CAP_SYS_ADMIN` all.
    pub fn list(&self) -> Result<Vec<SeedInfo>, Error> {
        let mut seeds = vec![SeedInfo::default(); 64];
        loop {
            let mut list = List {
                seeds: seeds.as_mut_ptr() as u64,
                capacity: u32::try_from(seeds.len()).unwrap_or(u32::MAX),
                count: 0,
            };
            // SAFETY: the structure is the one that the call takes; `seeds` has as much room as it says.
            unsafe { ioctl(self.fd, uapi::LIST, &mut list) }.map_err(|errno| Error::System {
                what: "listing seeds",
                errno,
            })?;
            let count = list.count as usize;
            if count <= seeds.len() {
                seeds.truncate(count);
                return Ok(seeds);
            }
            // More may come while this one looks.
            seeds.resize(count.saturating_add(64), SeedInfo::default());
        }
    }

    /// What is known of a seed of this machine. Waits until it has frozen.
    pub fn query(&self, seed: SeedId) -> Result<SeedInfo, Error> {
        let mut info = SeedInfo {
            seed,
            ..SeedInfo::default()
        };
        // SAFETY: the structure is the one that the call takes.
        unsafe { ioctl(self.fd, uapi::QUERY, &mut info) }
            .map_err(|errno| of_seed("querying a seed", seed, errno))?;
        Ok(info)
    }

    /// Ends a seed. Children that have all their pages go on; the others get SIGBUS where they
    /// miss one.
    pub fn unprepare(&self, seed: SeedId) -> Result<(), Error> {
        let mut seed = seed;
        // SAFETY: the structure is the one that the call takes.
        unsafe { ioctl(self.fd, uapi::UNPREPARE, &mut seed) }
            .map_err(|errno| of_seed("unpreparing a seed", seed, errno))?;
        Ok(())
    }

    /// Connects to a machine before that is needed.
    pub fn connect(&self, machine: Machine) -> Result<(), Error> {
        let mut to = machine;
        // SAFETY: the structure is the one that the call takes.
        unsafe { ioctl(self.fd, uapi::CONNECT, &mut to) }
            .map_err(|errno| Error::of_machine(machine, errno))?;
        Ok(())
    }

    /// Drops the connections to a machine.
    pub fn disconnect(&self, machine: Machine) -> Result<(), Error> {
        let mut from = machine;
        // SAFETY: the structure is the one that the call takes.
        unsafe { ioctl(self.fd, uapi::DISCONNECT, &mut from) }.map_err(|errno| Error::System {
            what: "disconnecting",
            errno,
        })?;
        Ok(())
    }

    /// How long a machine takes to answer, in ns.
    pub fn ping(&self, machine: Machine) -> Result<u64, Error> {
        let mut ping = Ping { machine, rtt_ns: 0 };
        // SAFETY: the structure is the one that the call takes.
        unsafe { ioctl(self.fd, uapi::PING, &mut ping) }
            .map_err(|errno| Error::of_machine(machine, errno))?;
        Ok(ping.rtt_ns)
    }

    /// What the module has and has done.
    pub fn stats(&self) -> Result<Stats, Error> {
        let mut stats = Stats::default();
        // SAFETY: the structure is the one that the call takes.
        unsafe { ioctl(self.fd, uapi::STATS, &mut stats) }.map_err(|errno| Error::System {
            what: "reading statistics",
            errno,
        })?;
        Ok(stats)
    }
}

/// What an error number means where a seed was named.
pub(crate) fn of_seed(what: &'static str, seed: SeedId, errno: i32) -> Error {
    match errno {
        libc::ENOENT => Error::NoSuchSeed { seed },
        libc::EACCES | libc::EPERM => Error::NotEntitled { seed },
        libc::EINPROGRESS => Error::NotYet { seed },
        errno => Error::System { what, errno },
    }
}
