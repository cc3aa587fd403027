//! A seed: a frozen process of this machine.

use mitosis_core::descriptor::Descriptor;
use mitosis_core::sync::count::Tally;
use mitosis_core::sync::gauge::Gauge;
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::fork::{Chunk, Status};
use zerocopy::byteorder::little_endian::{U32, U64};

use super::link::{Region, Visitor};
use super::memory::Memory;
use super::recent::Recent;
use crate::errno::Errno;
use crate::lock::Mutex;
use crate::memory::{Table, PAGE_LEN};
use crate::thread::{now_ns, Event};

/// How long a seed is there that no parent claims: as long as a parent waits for its copy to freeze.
pub const UNCLAIMED_NS: u64 = 60_000_000_000;

/// One chunk that is registered.
struct Registered {
    chunk: u64,
    region: Option<Region>,
    present: [u64; 8],
    elsewhere: [u64; 8],
}

/// The regions of a seed; none are made any more once it is closed.
struct Regions {
    closed: bool,
    list: Table<Option<Registered>>,
}

/// A frozen process.
pub struct Seed {
    /// Place in the table.
    pub id: u32,
    /// Which of the place's seeds.
    pub generation: u32,
    /// Who knows it may resume the seed.
    pub capability: [u8; 16],
    /// What its parent knows it by until it has the id.
    pub origin: Origin,
    /// Its number in the initial namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its program's name, padded with zeros.
    pub comm: [u8; 16],
    /// What it sleeps on.
    pub wake: Event,
    /// Whether it is to end.
    pub released: Stop,
    /// When it ends by itself; `u64::MAX` for never, which a parent has to ask for.
    pub lease_until_ns: Gauge,
    /// Whether it outlives its owner.
    pub leased: Gauge,
    /// When it froze.
    pub born_ns: u64,
    /// Times that its descriptor was fetched.
    pub opened: Tally,
    /// What it touched last.
    pub recent: Recent,
    memory: Memory,
    descriptor: Table<u8>,
    descriptor_len: usize,
    regions: Mutex<Regions>,
}

impl Seed {
    /// A seed of the calling process.
    pub fn new(
        name: &Name,
        memory: Memory,
        recent: Recent,
        descriptor: Table<u8>,
        descriptor_len: usize,
    ) -> Result<Seed, Errno> {
        let bytes = descriptor.get(..descriptor_len).ok_or(Errno::INVALID)?;
        let chunks = Descriptor::parse(bytes)
            .map_err(|_| Errno::INVALID)?
            .chunk_count();
        let born_ns = now_ns();
        Ok(Seed {
            id: name.title.id,
            generation: name.title.generation,
            capability: name.title.capability,
            origin: name.origin,
            pid: name.pid,
            uid: name.uid,
            comm: name.comm,
            wake: Event::new()?,
            released: Stop::new(),
            lease_until_ns: Gauge::new(born_ns.saturating_add(UNCLAIMED_NS)),
            leased: Gauge::new(0),
            born_ns,
            opened: Tally::new(),
            recent,
            memory,
            descriptor,
            descriptor_len,
            regions: Mutex::new(Regions {
                closed: false,
                list: Table::try_new(chunks, |_| Ok(None))?,
            })?,
        })
    }

    /// Its descriptor's bytes.
    pub fn descriptor(&self) -> &[u8] {
        self.descriptor.get(..self.descriptor_len).unwrap_or(&[])
    }

    fn parsed(&self) -> Result<Descriptor<'_>, Status> {
        Descriptor::parsed_before(self.descriptor()).map_err(|_| Status::NoSuchSeed)
    }

    /// How many VMAs and chunks it has.
    pub fn size(&self) -> (usize, usize) {
        self.parsed().map_or((0, 0), |descriptor| {
            (descriptor.vma_count(), descriptor.chunk_count())
        })
    }

    /// How many chunks are registered, and how many pages they hold.
    pub fn registered(&self) -> (usize, usize) {
        let regions = self.regions.lock();
        let all = regions.list.iter().flatten();
        let pages = all
            .clone()
            .filter_map(|registered| registered.region.as_ref())
            .map(|region| region.count)
            .sum();
        (all.count(), pages)
    }

    /// Its parent claims it, and gives it a lease, or the life of its owner, or leaves it the lease that it has.
    pub fn let_to(&self, lease: Lease) {
        if lease.leased {
            self.leased.set(1);
        }
        if lease.leased || self.leased.value() == 0 {
            self.lease_until_ns.set(lease.until_ns);
            self.wake.signal();
        }
    }

    /// Tells it to end, and wakes it.
    pub fn release(&self) {
        self.released.want();
        self.wake.signal();
    }

    /// No key to it is worth anything from here on.
    pub fn revoke(&self) {
        let mut regions = self.regions.lock();
        regions.closed = true;
        for place in regions.list.iter_mut() {
            *place = None;
        }
    }

    /// Where the pages of a chunk can be read over `visitor`'s connection. Registers them if they are not yet.
    pub fn chunk(&self, chunk: u64, visitor: &Visitor) -> Result<Chunk, Status> {
        let descriptor = self.parsed()?;
        let index = descriptor
            .chunks()
            .position(|listed| listed == chunk)
            .ok_or(Status::NoSuchPlace)?;
        let mut regions = self.regions.lock();
        if regions.closed {
            return Err(Status::NoSuchSeed);
        }
        let place = regions.list.get_mut(index).ok_or(Status::NoSuchPlace)?;
        // A region of another device's domain makes way: machines have one that is used for this.
        let usable = place.as_ref().is_some_and(|registered| {
            registered.chunk == chunk
                && registered
                    .region
                    .as_ref()
                    .is_none_or(|region| region.is_in(visitor.domain()))
        });
        if !usable {
            *place = None;
            let mut pages = self.memory.collect(chunk).map_err(|_| Status::Exhausted)?;
            let region = match pages.count() {
                0 => None,
                _ => Some(
                    visitor
                        .register(&mut pages)
                        .map_err(|_| Status::Exhausted)?,
                ),
            };
            *place = Some(Registered {
                chunk,
                region,
                present: pages.present,
                elsewhere: pages.elsewhere,
            });
        }
        let registered = place.as_ref().ok_or(Status::NoSuchPlace)?;
        let mut answer = Chunk::refused(Status::Done);
        if let Some(region) = &registered.region {
            answer.rkey = U32::new(region.rkey());
            answer.address = U64::new(region.address());
            answer.present = registered.present.map(U64::new);
        }
        answer.elsewhere = registered.elsewhere.map(U64::new);
        Ok(answer)
    }

    /// Copies one page, from wherever it is.
    pub fn page(&self, number: u64, to: &mut [u8; PAGE_LEN]) -> Result<(), Status> {
        self.memory
            .copy_page(number, to)
            .map_err(|_| Status::NoSuchPlace)
    }
}

/// How long a seed lives.
#[derive(Clone, Copy)]
pub struct Lease {
    /// When it ends by itself; `u64::MAX` for never.
    pub until_ns: u64,
    /// Whether it outlives its owner.
    pub leased: bool,
}

impl Lease {
    /// As long as its owner.
    pub const NONE: Lease = Lease {
        until_ns: u64::MAX,
        leased: false,
    };
}

/// By what those who make a seed know it before it has a name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// The file of `/dev/mitosis` that it is made through.
    pub owner: u64,
    /// Drawn by its parent.
    pub token: u64,
}

/// What a seed is called.
#[derive(Clone, Copy)]
pub struct Title {
    /// Place in the table.
    pub id: u32,
    /// Which of the place's seeds.
    pub generation: u32,
    /// Who knows it may resume the seed.
    pub capability: [u8; 16],
}

/// What a seed goes by.
pub struct Name {
    /// What others call it.
    pub title: Title,
    /// What its parent calls it.
    pub origin: Origin,
    /// Its number in the initial namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its program's name.
    pub comm: [u8; 16],
}
