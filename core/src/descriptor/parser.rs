//! Reading a descriptor where it lies.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::header::{Header, Section};
use super::{
    action, chunks, file, header, identity, layout, paths, registers, task, vma, DescriptorError,
    Identity, Layout, OpenFile, Registers, SignalAction, Task, Vma, SIGNALS,
};

/// A descriptor that has been checked.
#[derive(Clone, Copy)]
pub struct Descriptor<'d> {
    identity: &'d identity::Fields,
    registers: &'d registers::Fields,
    layout: &'d layout::Fields,
    task: &'d task::Fields,
    vmas: &'d [vma::Fields],
    chunks: &'d [chunks::Fields],
    files: &'d [file::Fields],
    actions: &'d [action::Fields],
    paths: &'d [u8],
}

impl<'d> Descriptor<'d> {
    /// Checks everything about a descriptor but its checksum, which is [`verify`](super::verify)'s.
    /// `bytes` is the descriptor and not a byte more. Takes time in proportion to its length.
    pub fn parse(bytes: &'d [u8]) -> Result<Self, DescriptorError> {
        let descriptor = Self::parsed_before(bytes)?;
        descriptor.check()?;
        Ok(descriptor)
    }

    /// As [`parse`](Self::parse), of bytes that it has accepted before and that nobody has changed
    /// since: takes no time to speak of, and looks into no section. From any other bytes the
    /// result is safe to use, but says anything.
    pub fn parsed_before(bytes: &'d [u8]) -> Result<Self, DescriptorError> {
        let header = Header::parse(bytes)?;
        let mut sections = Sections {
            header,
            rest: bytes.get(header::LEN..).unwrap_or_default(),
            at: header::LEN,
        };
        Ok(Self {
            identity: sections.one(Section::Identity)?,
            registers: sections.one(Section::Registers)?,
            layout: sections.one(Section::Layout)?,
            task: sections.one(Section::Task)?,
            vmas: sections.many(Section::Vmas)?,
            chunks: sections.many(Section::Chunks)?,
            files: sections.many(Section::Files)?,
            actions: sections.many(Section::Actions)?,
            paths: sections.take(Section::Paths)?,
        })
    }

    fn check(&self) -> Result<(), DescriptorError> {
        let mut at = header::LEN;
        let error = DescriptorError::field;
        self.identity.check().map_err(|wrong| error(at, wrong))?;
        at = at.saturating_add(identity::LEN);
        self.registers.check().map_err(|wrong| error(at, wrong))?;
        at = at.saturating_add(registers::LEN);
        self.layout.check().map_err(|wrong| error(at, wrong))?;
        at = at.saturating_add(layout::LEN);
        self.task.check().map_err(|wrong| error(at, wrong))?;
        at = at.saturating_add(task::LEN);

        let mut walk = paths::Walk::new(self.paths);
        let mut after = 0;
        for fields in self.vmas {
            fields
                .check(after)
                .and_then(|()| walk.check(fields.path()))
                .map_err(|wrong| error(at, wrong))?;
            after = fields.end();
            at = at.saturating_add(vma::LEN);
        }
        let mut last = None;
        for listed in self.chunks {
            let chunk = listed.get();
            chunks::fields(u64::from(chunk), last).map_err(|wrong| error(at, wrong))?;
            last = Some(chunk);
            at = at.saturating_add(chunks::LEN);
        }
        let mut last = None;
        for fields in self.files {
            fields
                .check(last)
                .and_then(|()| walk.check(fields.path()))
                .map_err(|wrong| error(at, wrong))?;
            last = Some(fields.fd());
            at = at.saturating_add(file::LEN);
        }
        for (signal, fields) in (1..).zip(self.actions) {
            fields.check(signal).map_err(|wrong| error(at, wrong))?;
            at = at.saturating_add(action::LEN);
        }
        walk.finish().map_err(|wrong| error(at, wrong))
    }

    /// Which seed it is, and where it can be resumed.
    pub fn identity(&self) -> Identity<'d> {
        self.identity.record()
    }

    /// The registers with which a child begins.
    pub fn registers(&self) -> Registers {
        self.registers.record()
    }

    /// Where the program's parts are.
    pub fn layout(&self) -> Layout {
        self.layout.record()
    }

    /// What the kernel keeps for the thread.
    pub fn task(&self) -> Task {
        self.task.record()
    }

    /// How many VMAs there are; at least one.
    #[inline]
    pub fn vma_count(&self) -> usize {
        self.vmas.len()
    }

    /// The VMA with this number, in constant time; `None` from [`vma_count`](Self::vma_count) on.
    #[inline]
    pub fn vma(&self, index: usize) -> Option<Vma<'d>> {
        let fields = self.vmas.get(index)?;
        Some(fields.record(self.paths))
    }

    /// The VMAs by address, from below.
    pub fn vmas(&self) -> impl ExactSizeIterator<Item = Vma<'d>> + Clone + 'd {
        let paths = self.paths;
        self.vmas.iter().map(move |fields| fields.record(paths))
    }

    /// The number of the VMA that an address lies in, in logarithmic time.
    #[inline]
    pub fn vma_at(&self, address: u64) -> Option<usize> {
        let index = self.vmas.partition_point(|vma| vma.end() <= address);
        let vma = self.vma(index)?;
        (vma.start <= address).then_some(index)
    }

    /// How many chunks of 2 MiB the seed has pages in.
    pub fn chunk_count(&self) -> usize {
        self.chunks.len()
    }

    /// Their numbers, the first address shifted right by [`chunks::SHIFT`], from below.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = u64> + Clone + 'd {
        self.chunks.iter().map(|chunk| u64::from(chunk.get()))
    }

    /// Whether the seed has pages in the chunk that an address lies in, in logarithmic time. If
    /// not, and the address is in anonymous memory, there are zeros.
    #[inline]
    pub fn has_chunk(&self, address: u64) -> bool {
        chunks::contains(self.chunks, address)
    }

    /// The open files by number, from below.
    pub fn files(&self) -> impl ExactSizeIterator<Item = OpenFile<'d>> + Clone + 'd {
        let paths = self.paths;
        self.files.iter().map(move |fields| fields.record(paths))
    }

    /// What is done about signals 1 to 64.
    pub fn actions(&self) -> [SignalAction; SIGNALS] {
        let mut actions = [SignalAction::default(); SIGNALS];
        for (place, fields) in actions.iter_mut().zip(self.actions) {
            *place = fields.record();
        }
        actions
    }
}

impl core::fmt::Debug for Descriptor<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Descriptor")
            .field("identity", &self.identity())
            .field("vmas", &self.vma_count())
            .field("chunks", &self.chunk_count())
            .field("files", &self.files.len())
            .finish_non_exhaustive()
    }
}

/// Cuts a descriptor into its sections.
struct Sections<'d> {
    header: Header,
    rest: &'d [u8],
    at: usize,
}

impl<'d> Sections<'d> {
    fn truncated(&self, section: Section) -> DescriptorError {
        DescriptorError::Truncated {
            what: section.name(),
            at: self.at,
            need: self.header.len(section),
        }
    }

    fn take(&mut self, section: Section) -> Result<&'d [u8], DescriptorError> {
        let len = self.header.len(section);
        let (taken, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or_else(|| self.truncated(section))?;
        self.rest = rest;
        self.at = self.at.saturating_add(len);
        Ok(taken)
    }

    fn one<T>(&mut self, section: Section) -> Result<&'d T, DescriptorError>
    where
        T: FromBytes + Immutable + KnownLayout + Unaligned,
    {
        let bytes = self.take(section)?;
        T::ref_from_bytes(bytes).map_err(|_| self.truncated(section))
    }

    fn many<T>(&mut self, section: Section) -> Result<&'d [T], DescriptorError>
    where
        T: FromBytes + Immutable + Unaligned,
    {
        let bytes = self.take(section)?;
        <[T]>::ref_from_bytes(bytes).map_err(|_| self.truncated(section))
    }
}
