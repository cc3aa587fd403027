//! Images: what this machine knows of another's seed, and the pages of it that were fetched, for all children here.
//!
//! A chunk of 2 MiB is asked for when it is first touched; the answer says which of its pages exist, and where they can be
//! read. A page that is touched is read together with those after it. What has been read stays with the image, so that
//! the next child finds it.

use mitosis_core::descriptor::{verify, Descriptor, VmaKind};
use mitosis_core::sync::count::Tally;
use mitosis_core::wire::fork::{
    has_bit, native, rpc_id, Chunk as Answer, Place, Recent, SeedName, Status, CHUNK_PAGES,
    MAX_RECENT, PREAMBLE_LEN,
};
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::channel::Into;
use super::chunk::Chunk;
use super::complaints::Untold;
use super::ffi;
use super::incoming::{status_of, Copied, Incoming};
use super::link::{Link, READ_PAGES};
use super::lost::PageError;
use super::machine::{Machine, MachineError, Request};
use super::memory::PageRef;
use super::Fork;
use crate::errno::Errno;
use crate::lock::{Guard, Mutex, Shared};
use crate::memory::{Owned, Table, PAGE_LEN};
use crate::warning;

/// Chunks are guarded in so many groups, so that faults in different ones rarely meet.
const STRIPES: usize = 64;
/// Most pages that are mapped with one that was touched: those of its 64 KiB, as the kernel does it for files, and as many as a
/// READ brings.
pub const AROUND: usize = 32;
/// Of how many pages of an image that are lost the log says each.
const LOST_TOLD: u64 = 16;
/// log2 of the pages in a chunk.
const CHUNK_SHIFT: u32 = 9;

/// Chunks of one group.
struct Stripe {
    chunks: Table<Option<Owned<Chunk>>>,
}

/// What this machine has of a seed.
pub struct Image {
    /// Where the seed is.
    pub machine: Shared<Machine>,
    /// By what it is asked for.
    pub name: SeedName,
    prefetch: usize,
    /// Whether each child gets pages of its own.
    private: bool,
    /// The chunk whose pages go next where there are too many.
    hand: Tally,
    bytes: Table<u8>,
    /// Numbers of the chunks that the seed has pages in, as the descriptor lists them.
    chunks: Table<u64>,
    stripes: Table<Mutex<Stripe>>,
    zero: PageRef,
    /// Pages that children could not have.
    lost: Tally,
}

impl Image {
    /// Fetches a seed's descriptor.
    pub fn fetch(
        fork: &Fork,
        machine: Shared<Machine>,
        name: &SeedName,
        prefetch: usize,
        private: bool,
    ) -> Result<Image, PageError> {
        let mut incoming = Incoming::new()?;
        let request = Request::of(name.as_bytes());
        let mut make = |_| Request::of(request.bytes());
        machine.call(fork, rpc_id::DESCRIBE, &mut make, &mut incoming)?;
        match status_of(&incoming.preamble) {
            Status::Done => {}
            status => return Err(PageError::Refused(status)),
        }
        let damaged = PageError::Unreachable(MachineError::Damaged);
        verify([&*incoming.bytes]).map_err(|_| damaged)?;
        let bytes = incoming.bytes;
        let descriptor = Descriptor::parse(&bytes).map_err(|_| damaged)?;
        let identity = descriptor.identity();
        let known = SeedName {
            id: identity.seed.id.into(),
            generation: identity.seed.generation.into(),
            capability: identity.capability.0,
            by_id: 0.into(),
            reserved: 0.into(),
        };
        let mut listed = descriptor.chunks();
        let chunks = Table::try_new(descriptor.chunk_count(), |_| {
            listed.next().ok_or(Errno::INVALID)
        })?;
        drop(listed);
        let count = chunks.len();
        let stripes = Table::try_new(STRIPES, |stripe| {
            let here = (count + STRIPES - 1 - stripe) / STRIPES;
            Mutex::new(Stripe {
                chunks: Table::try_new(here, |_| Ok(None))?,
            })
        })?;
        Ok(Image {
            machine,
            name: known,
            prefetch: prefetch.clamp(1, READ_PAGES),
            private,
            hand: Tally::new(),
            bytes,
            chunks,
            stripes,
            zero: PageRef::zeroed()?,
            lost: Tally::new(),
        })
    }

    /// The seed's descriptor as it came.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The seed's descriptor.
    pub fn descriptor(&self) -> Result<Descriptor<'_>, Errno> {
        Descriptor::parsed_before(&self.bytes).map_err(|_| Errno::INVALID)
    }

    /// Begins to read what the seed's process touched last, which its continuation is likely to touch first. What comes of it
    /// is seen when a page is touched.
    pub fn warm(&self, fork: &Fork) -> Result<(), PageError> {
        let mut left = fork.warm_pages as usize;
        if left == 0 {
            return Ok(());
        }
        let mut reply = Table::zeroed(PREAMBLE_LEN + MAX_RECENT * size_of::<Recent>())?;
        let mut make = |token| self.place(token, 0);
        let mut sink = Into::new(&mut reply);
        self.machine
            .call(fork, rpc_id::RECENT, &mut make, &mut sink)?;
        let len = sink.len;
        let preamble = reply.first_chunk().copied().unwrap_or([0xff; PREAMBLE_LEN]);
        match status_of(&preamble) {
            Status::Done => {}
            status => return Err(PageError::Refused(status)),
        }
        let link = self.machine.link(fork)?;
        let listed = reply.get(PREAMBLE_LEN..len).unwrap_or(&[]);
        for bytes in listed.chunks_exact(size_of::<Recent>()) {
            let Ok(recent) = Recent::ref_from_bytes(bytes) else {
                break;
            };
            let Ok(index) = self.chunks.binary_search(&recent.number.get()) else {
                continue;
            };
            let stripe = self.stripes.get(index % STRIPES);
            let mut stripe = stripe.ok_or(PageError::Beyond)?.lock();
            let chunk = chunk_of(&mut stripe, index / STRIPES)?;
            if Status::from_u32(recent.chunk.status.get()) != Some(Status::Done) {
                continue;
            }
            if !chunk.known {
                chunk.learn(&recent.chunk);
            }
            let touched = native(&recent.touched);
            let mut slot = 0;
            while let Some(next) = chunk.present_from(slot) {
                slot = next + 1;
                if !has_bit(&touched, next) || chunk.is_here_or_comes(next) {
                    continue;
                }
                if left == 0 || chunk.is_busy() {
                    break;
                }
                let most = READ_PAGES.min(left);
                left -= chunk.begin(link.clone(), next, most, Some(&touched))?;
            }
        }
        Ok(())
    }

    /// The page with this number of the child's VMA that began as the descriptor's `vma`. `dropped` if the child has given
    /// it up, so that zeros are there unless it is a file's.
    pub fn page(
        &self,
        fork: &Fork,
        vma: u32,
        number: u64,
        dropped: bool,
    ) -> Result<PageRef, PageError> {
        let descriptor = self.descriptor()?;
        let vma = descriptor.vma(vma as usize).ok_or(PageError::Beyond)?;
        let address = number.saturating_mul(PAGE_LEN as u64);
        let file = vma.kind == VmaKind::File;
        // What a mapping has grown by since is not the seed's.
        if address < vma.start || address >= vma.end || (dropped && !file) {
            return self.zeros(fork, file);
        }
        let listed = self.chunks.binary_search(&(number >> CHUNK_SHIFT));
        let Ok(index) = listed else {
            return self.zeros(fork, file);
        };
        self.page_of_chunk(fork, index, number, file)
    }

    /// Puts pages that are here, around the one with this number but not that one, into `pages`; returns the first one's number.
    pub fn around(
        &self,
        fork: &Fork,
        vma: u32,
        number: u64,
        pages: &mut [*mut ffi::Page; AROUND],
    ) -> u64 {
        let from = number - number % (AROUND as u64 / 2);
        let descriptor = self.descriptor().ok();
        let vma = descriptor.and_then(|descriptor| descriptor.vma(vma as usize));
        let Ok(index) = self.chunks.binary_search(&(number >> CHUNK_SHIFT)) else {
            return from;
        };
        let stripe = self.stripes.get(index % STRIPES);
        let (Some(vma), Some(mut stripe)) = (vma, stripe.map(Mutex::lock)) else {
            return from;
        };
        let chunk = stripe.chunks.get_mut(index / STRIPES);
        let Some(chunk) = chunk.and_then(Option::as_deref_mut) else {
            return from;
        };
        let until = number + READ_PAGES as u64;
        for (number_here, place) in (from..until).zip(pages) {
            let address = number_here.saturating_mul(PAGE_LEN as u64);
            let inside = address >= vma.start && address < vma.end;
            let slot = number_here as usize % CHUNK_PAGES;
            if number_here != number
                && inside
                && number_here >> CHUNK_SHIFT == number >> CHUNK_SHIFT
            {
                if let Some(page) = self.hand_out(fork, chunk, slot) {
                    *place = page.into_raw();
                }
            }
        }
        from
    }

    fn zeros(&self, fork: &Fork, file: bool) -> Result<PageRef, PageError> {
        if file {
            return Err(PageError::Beyond);
        }
        fork.counters.faults_zero.add(1);
        Ok(self.zero.again())
    }

    fn page_of_chunk(
        &self,
        fork: &Fork,
        index: usize,
        number: u64,
        file: bool,
    ) -> Result<PageRef, PageError> {
        let slot = number as usize % CHUNK_PAGES;
        let stripe = self.stripes.get(index % STRIPES);
        let mut stripe = stripe.ok_or(PageError::Beyond)?.lock();
        let chunk = chunk_of(&mut stripe, index / STRIPES)?;
        if let Some(page) = self.hand_out(fork, chunk, slot) {
            fork.counters.faults_cached.add(1);
            return Ok(page);
        }
        if !chunk.known {
            self.ask(fork, number >> CHUNK_SHIFT, chunk)?;
        }
        if has_bit(&chunk.present, slot) {
            return self.read(fork, index, slot, chunk);
        }
        if file || has_bit(&chunk.elsewhere, slot) {
            let page = self.copy(fork, number)?;
            fork.counters.faults_rpc.add(1);
            if let Some(place) = chunk.pages.get_mut(slot).filter(|_| !self.private) {
                *place = Some(page.again());
                fork.counters.cached_pages.add(1);
            }
            return Ok(page);
        }
        self.zeros(fork, file)
    }

    fn place(&self, token: u64, number: u64) -> Request {
        let place = Place {
            seed: self.name,
            token: U64::new(token),
            number: U64::new(number),
        };
        Request::of(place.as_bytes())
    }

    /// Asks where a chunk's pages are.
    fn ask(&self, fork: &Fork, number: u64, chunk: &mut Chunk) -> Result<(), PageError> {
        let mut answer = Answer::new_zeroed();
        let mut make = |token| self.place(token, number);
        let mut sink = Into::new(answer.as_mut_bytes());
        self.machine
            .call(fork, rpc_id::CHUNK, &mut make, &mut sink)?;
        match Status::from_u32(answer.status.get()) {
            Some(Status::Done) => {}
            Some(status) => return Err(PageError::Refused(status)),
            None => return Err(PageError::Unreachable(MachineError::Damaged)),
        }
        chunk.learn(&answer);
        Ok(())
    }

    /// Reads a page and those after it.
    fn read(
        &self,
        fork: &Fork,
        index: usize,
        slot: usize,
        chunk: &mut Chunk,
    ) -> Result<PageRef, PageError> {
        let &number = self.chunks.get(index).ok_or(PageError::Beyond)?;
        let mut again = true;
        loop {
            let outcome = self.read_once(fork, index, slot, chunk);
            match outcome {
                // A region may have been made anew, for a connection of another port, or a machine come back: ask once more.
                Err(PageError::Read(_)) if again => {
                    again = false;
                    chunk.abandon();
                    self.ask(fork, number, chunk)?;
                    if !has_bit(&chunk.present, slot) {
                        return self.copy(fork, (number << CHUNK_SHIFT) + slot as u64);
                    }
                }
                outcome => return outcome,
            }
        }
    }

    fn read_once(
        &self,
        fork: &Fork,
        index: usize,
        slot: usize,
        chunk: &mut Chunk,
    ) -> Result<PageRef, PageError> {
        let before = match chunk.awaited(slot) {
            Some((before, true)) => before,
            Some((before, false)) => {
                chunk.deepen();
                before
            }
            None => {
                // Not where READs were heading: this one alone, and nothing ahead of it until a second follows.
                chunk.depth = usize::from(chunk.goes_on(slot));
                if chunk.is_busy() {
                    self.settle(fork, chunk)?;
                }
                let link = self.machine.link(fork)?;
                chunk.begin(link, slot, self.prefetch, None)?;
                chunk.under_way() - 1
            }
        };
        // What follows is begun before what is needed is waited for.
        let mut leads_on = None;
        if let (Some(link), 1..) = (chunk.link(), chunk.depth) {
            if chunk.read_ahead(&link, before + 1, self.prefetch) {
                leads_on = Some(link);
            }
        }
        for _ in 0..=before {
            self.settle(fork, chunk)?;
        }
        // The machine has just answered: a question does not keep this page waiting for one that is dead.
        if let Some(link) = leads_on {
            self.lead_on(fork, index, &link, chunk.depth);
        }
        fork.counters.faults_read.add(1);
        self.hand_out(fork, chunk, slot).ok_or(PageError::Beyond)
    }

    /// A page for a child, if it is here.
    fn hand_out(&self, fork: &Fork, chunk: &mut Chunk, slot: usize) -> Option<PageRef> {
        let place = chunk.pages.get_mut(slot)?;
        if !self.private {
            return place.as_ref().map(PageRef::again);
        }
        let page = place.take()?;
        fork.counters.cached_pages.subtract(1);
        Some(page)
    }

    /// Lets go of the pages of a chunk where there are too many; of one that nobody is looking at. Children keep what they have.
    fn make_room(&self, fork: &Fork) {
        let chunks = self.chunks.len() as u64;
        for _ in 0..chunks.min(STRIPES as u64) {
            if fork.counters.cached_pages.value() <= u64::from(fork.cache_pages) {
                return;
            }
            self.hand.add(1);
            let index = (self.hand.value() % chunks) as usize;
            let stripe = self.stripes.get(index % STRIPES).and_then(Mutex::try_lock);
            let Some(mut stripe) = stripe else { continue };
            let chunk = stripe.chunks.get_mut(index / STRIPES);
            let Some(chunk) = chunk.and_then(Option::as_deref_mut) else {
                continue;
            };
            let mut freed = 0;
            for place in chunk.pages.iter_mut() {
                freed += u64::from(place.take().is_some());
            }
            fork.counters.cached_pages.subtract(freed);
        }
    }

    /// Begins to read the chunk after this one, if the seed has one there, and nobody is looking at it.
    fn lead_on(&self, fork: &Fork, index: usize, link: &Shared<Link>, depth: usize) {
        let next = index + 1;
        let (Some(here), Some(&number)) = (self.chunks.get(index), self.chunks.get(next)) else {
            return;
        };
        if number != here + 1 {
            return;
        }
        // Never waited for: whoever has it may be waiting for this one.
        let stripe = self.stripes.get(next % STRIPES).and_then(Mutex::try_lock);
        let Some(mut stripe) = stripe else { return };
        let Ok(chunk) = chunk_of(&mut stripe, next / STRIPES) else {
            return;
        };
        // What becomes of it, a fault there will say.
        if !chunk.known && self.ask(fork, number, chunk).is_err() {
            return;
        }
        if chunk.lead_from_start(depth) {
            chunk.read_ahead(link, 0, self.prefetch);
        }
    }

    /// Waits for a chunk's first READ under way.
    fn settle(&self, fork: &Fork, chunk: &mut Chunk) -> Result<(), PageError> {
        let (read, kept) = chunk.settle()?;
        fork.counters.pages_read.add(read);
        fork.counters.cached_pages.add(kept);
        self.make_room(fork);
        Ok(())
    }

    /// Asks for one page that cannot be read.
    fn copy(&self, fork: &Fork, number: u64) -> Result<PageRef, PageError> {
        let mut incoming = Copied {
            preamble: [0; PREAMBLE_LEN],
            page: PageRef::zeroed()?,
        };
        let mut make = |token| self.place(token, number);
        self.machine
            .call(fork, rpc_id::PAGE, &mut make, &mut incoming)?;
        match status_of(&incoming.preamble) {
            Status::Done => Ok(incoming.page),
            Status::NoSuchPlace => Err(PageError::Beyond),
            status => Err(PageError::Refused(status)),
        }
    }

    /// Reads everything that can be read.
    pub fn read_all(&self, fork: &Fork) -> Result<(), PageError> {
        for (index, &number) in self.chunks.iter().enumerate() {
            let stripe = self.stripes.get(index % STRIPES);
            let mut stripe = stripe.ok_or(PageError::Beyond)?.lock();
            let chunk = chunk_of(&mut stripe, index / STRIPES)?;
            if !chunk.known {
                self.ask(fork, number, chunk)?;
            }
            for slot in 0..CHUNK_PAGES {
                if has_bit(&chunk.present, slot) && !chunk.has(slot) {
                    let page = self.read(fork, index, slot, chunk)?;
                    if let Some(place) = chunk.pages.get_mut(slot).filter(|_| self.private) {
                        *place = Some(page);
                        fork.counters.cached_pages.add(1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits for what is being read ahead, and lets go of the connections.
    pub fn settle_all(&self) {
        for stripe in self.stripes.iter() {
            let mut stripe = stripe.lock();
            for chunk in stripe.chunks.iter_mut().flatten() {
                chunk.abandon();
            }
        }
    }

    /// How many pages are kept.
    pub fn cached_pages(&self) -> usize {
        let mut pages = 0;
        for stripe in self.stripes.iter() {
            let stripe = stripe.lock();
            let chunks = stripe.chunks.iter().flatten();
            pages += chunks
                .map(|chunk| chunk.pages.iter().flatten().count())
                .sum::<usize>();
        }
        pages
    }

    /// A line for whoever looks for the reason why a child died. One that catches the signal can touch as many as it likes:
    /// after the first ones there is a line now and then.
    pub fn complain(&self, fork: &Fork, address: u64, error: &PageError) {
        self.lost.add(1);
        let untold = match self.lost.value() {
            ..=LOST_TOLD => Untold::NONE,
            _ => match fork.complaints.turn() {
                Some(untold) => untold,
                None => return,
            },
        };
        let (id, generation) = (self.name.id.get(), self.name.generation.get());
        let gid = self.machine.gid;
        warning!(
            "a page is lost: machine ",
            gid,
            ", seed ",
            id,
            ".",
            generation,
            ", page ",
            address >> 12,
            ": ",
            *error,
            untold
        );
    }
}

fn chunk_of<'s>(
    stripe: &'s mut Guard<'_, Stripe>,
    index: usize,
) -> Result<&'s mut Chunk, PageError> {
    let place = stripe.chunks.get_mut(index).ok_or(PageError::Beyond)?;
    if place.is_none() {
        *place = Some(Owned::new(Chunk::new()?)?);
    }
    place.as_deref_mut().ok_or(PageError::NoMemory)
}
