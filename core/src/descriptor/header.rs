//! What stands before the sections: how long each is, and a checksum (descriptor.md §2).

use crc::{Crc, CRC_64_XZ};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{
    action, chunks, file, identity, layout, registers, task, vma, DescriptorError, MAX_CHUNKS,
    MAX_DESCRIPTOR, MAX_FILES, MAX_VMAS, SIGNALS,
};

/// Length of the header in bytes.
pub const LEN: usize = 56;

/// First four bytes, little-endian: 'MTSD'.
pub const MAGIC: u32 = 0x4453_544d;

/// Version of the format.
pub const VERSION: u16 = 1;

/// The checksum covers everything from here on: what stands before is checked by itself.
const COVERED_FROM: usize = 16;

static CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// A section's place in the table, which is its place in the descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(usize)]
pub(super) enum Section {
    Identity,
    Registers,
    Layout,
    Task,
    Vmas,
    Chunks,
    Files,
    Actions,
    Paths,
}

/// How many sections there are.
const SECTIONS: usize = 9;

impl Section {
    pub(super) const ALL: [Self; SECTIONS] = [
        Self::Identity,
        Self::Registers,
        Self::Layout,
        Self::Task,
        Self::Vmas,
        Self::Chunks,
        Self::Files,
        Self::Actions,
        Self::Paths,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Registers => "registers",
            Self::Layout => "layout",
            Self::Task => "task",
            Self::Vmas => "VMAs",
            Self::Chunks => "chunks",
            Self::Files => "open files",
            Self::Actions => "signal actions",
            Self::Paths => "paths",
        }
    }

    /// Length of one of its records in bytes.
    pub(super) const fn record_len(self) -> usize {
        match self {
            Self::Identity => identity::LEN,
            Self::Registers => registers::LEN,
            Self::Layout => layout::LEN,
            Self::Task => task::LEN,
            Self::Vmas => vma::LEN,
            Self::Chunks => chunks::LEN,
            Self::Files => file::LEN,
            Self::Actions => action::LEN,
            Self::Paths => 1,
        }
    }

    /// How few and how many records it has.
    pub(super) const fn counts(self) -> (usize, usize) {
        match self {
            Self::Identity | Self::Registers | Self::Layout | Self::Task => (1, 1),
            // A process without a mapping cannot run.
            Self::Vmas => (1, MAX_VMAS),
            Self::Chunks => (0, MAX_CHUNKS),
            Self::Files => (0, MAX_FILES),
            Self::Actions => (SIGNALS, SIGNALS),
            Self::Paths => (0, MAX_DESCRIPTOR),
        }
    }
}

/// The header's bytes. Every field is little-endian and none needs alignment.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    magic: U32,
    version: U16,
    sections: U16,
    checksum: U64,
    total_len_bytes: U32,
    section_len_bytes: [U32; SECTIONS],
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// How long the sections are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    lens: [u32; SECTIONS],
}

impl Header {
    /// Reads the header, and checks each length against its section and their sum against
    /// `descriptor`.
    pub(super) fn parse(descriptor: &[u8]) -> Result<Self, DescriptorError> {
        let truncated = DescriptorError::Truncated {
            what: "header",
            at: 0,
            need: LEN,
        };
        // Magic number and version keep their places in every version.
        let &[m0, m1, m2, m3, v0, v1] = descriptor.first_chunk::<6>().ok_or(truncated)?;
        let magic = u32::from_le_bytes([m0, m1, m2, m3]);
        if magic != MAGIC {
            return Err(DescriptorError::Magic { found: magic });
        }
        let version = u16::from_le_bytes([v0, v1]);
        if version != VERSION {
            return Err(DescriptorError::Version { found: version });
        }
        let (fields, rest) = Fields::ref_from_prefix(descriptor).map_err(|_| truncated)?;
        if usize::from(fields.sections.get()) != SECTIONS {
            return Err(DescriptorError::Field {
                what: "number of sections",
                at: 0,
                found: u64::from(fields.sections.get()),
            });
        }
        if descriptor.len() > MAX_DESCRIPTOR {
            return Err(DescriptorError::Length {
                what: "the descriptor",
                said: descriptor.len(),
                need: MAX_DESCRIPTOR,
            });
        }
        let total = fields.total_len_bytes.get() as usize;
        if total != descriptor.len() {
            return Err(DescriptorError::Length {
                what: "the descriptor",
                said: total,
                need: descriptor.len(),
            });
        }
        let mut left = rest.len();
        let mut lens = [0; SECTIONS];
        for ((section, len), place) in Section::ALL
            .into_iter()
            .zip(fields.section_len_bytes)
            .zip(&mut lens)
        {
            let bytes = len.get() as usize;
            left = left.checked_sub(bytes).ok_or(DescriptorError::Truncated {
                what: section.name(),
                at: descriptor.len().saturating_sub(left),
                need: bytes,
            })?;
            check_len(section, bytes)?;
            *place = len.get();
        }
        if left != 0 {
            return Err(DescriptorError::Length {
                what: "all sections together",
                said: rest.len().saturating_sub(left),
                need: rest.len(),
            });
        }
        Ok(Self { lens })
    }

    /// Length of a section in bytes.
    pub(super) fn len(&self, section: Section) -> usize {
        self.lens.get(section as usize).copied().unwrap_or(0) as usize
    }

    pub(super) fn add(&mut self, section: Section, bytes: usize) {
        if let Some(len) = self.lens.get_mut(section as usize) {
            *len = len.saturating_add(bytes as u32);
        }
    }

    /// How many records a section has so far.
    pub(super) fn count(&self, section: Section) -> usize {
        self.len(section)
            .checked_div(section.record_len())
            .unwrap_or(0)
    }

    /// Writes the header of a descriptor that is complete otherwise.
    pub(super) fn emit(&self, descriptor: &mut [u8]) -> Option<()> {
        let total = u32::try_from(descriptor.len()).ok()?;
        let mut fields = Fields {
            magic: U32::new(MAGIC),
            version: U16::new(VERSION),
            sections: U16::new(SECTIONS as u16),
            checksum: U64::new(0),
            total_len_bytes: U32::new(total),
            section_len_bytes: self.lens.map(U32::new),
        };
        fields.write_to_prefix(descriptor).ok()?;
        fields.checksum = U64::new(CRC.checksum(descriptor.get(COVERED_FROM..)?));
        fields.write_to_prefix(descriptor).ok()
    }
}

/// A section has whole records, and neither too few nor too many of them.
fn check_len(section: Section, bytes: usize) -> Result<(), DescriptorError> {
    let record = section.record_len();
    let (least, most) = section.counts();
    let count = bytes.checked_div(record).unwrap_or(0);
    if count > most && least != most {
        return Err(DescriptorError::TooMany {
            what: section.name(),
            found: count,
            limit: most,
        });
    }
    let need = count.clamp(least, most).saturating_mul(record);
    if bytes != need {
        return Err(DescriptorError::Length {
            what: section.name(),
            said: bytes,
            need,
        });
    }
    Ok(())
}

/// Checks that a descriptor is as it was sent. It comes in as many slices as one likes; what it
/// says is not looked at.
pub fn verify<'a>(slices: impl IntoIterator<Item = &'a [u8]>) -> Result<(), DescriptorError> {
    let mut head = [0; COVERED_FROM];
    let mut have = 0usize;
    let mut digest = CRC.digest();
    for slice in slices {
        let (first, rest) = slice
            .split_at_checked(COVERED_FROM.saturating_sub(have))
            .unwrap_or((slice, &[]));
        for (place, byte) in head.iter_mut().skip(have).zip(first) {
            *place = *byte;
        }
        have = have.saturating_add(first.len());
        digest.update(rest);
    }
    if have < COVERED_FROM {
        return Err(DescriptorError::Truncated {
            what: "header",
            at: 0,
            need: LEN,
        });
    }
    let [.., c0, c1, c2, c3, c4, c5, c6, c7] = head;
    let said = u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]);
    let found = digest.finalize();
    if said == found {
        Ok(())
    } else {
        Err(DescriptorError::Checksum { said, found })
    }
}
