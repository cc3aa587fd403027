//! Writing a descriptor.

use zerocopy::{Immutable, IntoBytes};

use super::header::{Header, Section};
use super::paths::{self, Reference};
use super::{
    action, chunks, file, header, identity, layout, registers, task, vma, EncodeError, Identity,
    Layout, OpenFile, Registers, SignalAction, Task, Vma, MAX_DESCRIPTOR,
};

/// Writes a descriptor into a buffer, section after section in the order of the methods below,
/// and [`finish`](Self::finish). After an error the buffer is of no use.
pub struct Encoder<'b> {
    buffer: &'b mut [u8],
    header: Header,
    /// Where the next record goes.
    front: usize,
    /// Where the paths begin: they grow downwards from the end of the buffer until they are moved.
    back: usize,
    section: Section,
    last_path: Reference,
    last_end: u64,
    last_chunk: Option<u32>,
    last_fd: Option<u32>,
}

impl<'b> Encoder<'b> {
    /// An encoder into `buffer`; what is beyond [`MAX_DESCRIPTOR`] stays unused.
    pub fn new(buffer: &'b mut [u8]) -> Self {
        let most = buffer.len().min(MAX_DESCRIPTOR);
        let used = buffer.get_mut(..most).unwrap_or_default();
        Self {
            back: used.len(),
            buffer: used,
            header: Header::default(),
            front: header::LEN,
            section: Section::Identity,
            last_path: Reference::default(),
            last_end: 0,
            last_chunk: None,
            last_fd: None,
        }
    }

    /// Which seed it is, and where it can be resumed.
    pub fn identity(&mut self, identity: &Identity<'_>) -> Result<(), EncodeError> {
        self.append(Section::Identity, &identity::Fields::of(identity)?)
    }

    /// The registers with which a child begins.
    pub fn registers(&mut self, registers: &Registers) -> Result<(), EncodeError> {
        let fields = registers::Fields::of(registers);
        fields.check()?;
        self.append(Section::Registers, &fields)
    }

    /// Where the program's parts are.
    pub fn layout(&mut self, layout: &Layout) -> Result<(), EncodeError> {
        let fields = layout::Fields::of(layout);
        fields.check()?;
        self.append(Section::Layout, &fields)
    }

    /// What the kernel keeps for the thread.
    pub fn task(&mut self, task: &Task) -> Result<(), EncodeError> {
        let fields = task::Fields::of(task);
        fields.check()?;
        self.append(Section::Task, &fields)
    }

    /// The next VMA by address.
    pub fn vma(&mut self, vma: &Vma<'_>) -> Result<(), EncodeError> {
        let path = self.path(vma.path)?;
        let fields = vma::Fields::of(vma, path);
        fields.check(self.last_end)?;
        self.last_end = vma.end;
        self.append(Section::Vmas, &fields)
    }

    /// The next chunk that the seed has pages in: an address in it shifted right by
    /// [`chunks::SHIFT`].
    pub fn chunk(&mut self, chunk: u64) -> Result<(), EncodeError> {
        let fields = chunks::fields(chunk, self.last_chunk)?;
        self.last_chunk = Some(fields.get());
        self.append(Section::Chunks, &fields)
    }

    /// The next open file by number. Status flags that are not carried are left out.
    pub fn file(&mut self, file: &OpenFile<'_>) -> Result<(), EncodeError> {
        let path = self.path(file.path)?;
        let fields = file::Fields::of(file, path);
        fields.check(self.last_fd)?;
        self.last_fd = Some(file.fd);
        self.append(Section::Files, &fields)
    }

    /// What is done about the next signal, from 1 to 64.
    pub fn action(&mut self, action: &SignalAction) -> Result<(), EncodeError> {
        let signal = self.header.count(Section::Actions).saturating_add(1);
        let fields = action::Fields::of(action);
        fields.check(signal)?;
        self.append(Section::Actions, &fields)
    }

    /// Moves the paths to their place, writes the header, and returns the length of the
    /// descriptor in bytes: it is at the start of the buffer.
    pub fn finish(mut self) -> Result<usize, EncodeError> {
        self.enter(Section::Paths)?;
        let paths = self.buffer.len().saturating_sub(self.back);
        self.header.add(Section::Paths, paths);
        let len = self.front.saturating_add(paths);
        let gap = self.back.saturating_sub(self.front);
        for at in self.front..len {
            let byte = self.buffer.get(at.saturating_add(gap)).copied();
            if let (Some(place), Some(byte)) = (self.buffer.get_mut(at), byte) {
                *place = byte;
            }
        }
        let full = EncodeError::Full {
            what: "header",
            need: header::LEN,
            room: self.buffer.len(),
        };
        let descriptor = self.buffer.get_mut(..len).ok_or(full)?;
        self.header.emit(descriptor).ok_or(full)?;
        Ok(len)
    }

    /// Begins with a section, unless that has been done, after those before it are complete.
    fn enter(&mut self, section: Section) -> Result<(), EncodeError> {
        if section < self.section {
            return Err(EncodeError::Order {
                what: section.name(),
            });
        }
        let missing = Section::ALL.into_iter().find(|before| {
            let (least, _) = before.counts();
            *before < section && self.header.count(*before) < least
        });
        if let Some(missing) = missing {
            return Err(EncodeError::Order {
                what: missing.name(),
            });
        }
        self.section = section;
        Ok(())
    }

    fn append<T: IntoBytes + Immutable>(
        &mut self,
        section: Section,
        record: &T,
    ) -> Result<(), EncodeError> {
        self.enter(section)?;
        let (_, limit) = section.counts();
        if self.header.count(section) >= limit {
            return Err(EncodeError::TooMany {
                what: section.name(),
                limit,
            });
        }
        let full = EncodeError::Full {
            what: section.name(),
            need: size_of::<T>(),
            room: self.back.saturating_sub(self.front),
        };
        let room = self.buffer.get_mut(self.front..self.back).ok_or(full)?;
        record.write_to_prefix(room).map_err(|_| full)?;
        self.front = self.front.saturating_add(size_of::<T>());
        self.header.add(section, size_of::<T>());
        Ok(())
    }

    fn path(&mut self, path: Option<&[u8]>) -> Result<Reference, EncodeError> {
        let Some(path) = path else {
            return Ok(Reference::default());
        };
        paths::check_path(path)?;
        let written = self.buffer.get(self.back..).unwrap_or_default();
        if paths::resolve(written, self.last_path) == Some(path) {
            return Ok(self.last_path);
        }
        let full = EncodeError::Full {
            what: "path",
            need: path.len(),
            room: self.back.saturating_sub(self.front),
        };
        let start = self.back.checked_sub(path.len()).ok_or(full)?;
        if start < self.front {
            return Err(full);
        }
        let places = self.buffer.get_mut(start..self.back).ok_or(full)?;
        for (place, byte) in places.iter_mut().zip(path) {
            *place = *byte;
        }
        self.back = start;
        self.last_path = Reference {
            back: u32::try_from(self.buffer.len().saturating_sub(start)).map_err(|_| full)?,
            len: u16::try_from(path.len()).map_err(|_| full)?,
        };
        Ok(self.last_path)
    }
}
