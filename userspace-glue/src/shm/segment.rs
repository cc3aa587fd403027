//! The memory that a server and one client share: a ring for each direction.
//!
//! The server makes it, so that its size and kind are what the server means them to be, and seals its size, so that neither
//! can take pages away that the other has mapped. A client checks both before it maps it.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;

use mitosis_core::sync::line_ring::{lines_of, Control, Line, Memory};
use rustix::fs::{
    fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create, MemfdFlags, SealFlags,
};
use rustix::io::Errno;
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

use super::DATAGRAM_LEN;

/// The fewest and the most lines of a ring. The most keeps what a wrong number makes us map within reason.
const LINES: std::ops::RangeInclusive<usize> = 256..=1 << 16;

const _: () = assert!(lines_of(DATAGRAM_LEN) <= *LINES.start());

const SEALS: SealFlags = SealFlags::SHRINK
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// The nearest number of lines that a ring can have.
pub fn ring_lines(wanted: usize) -> usize {
    wanted
        .clamp(*LINES.start(), *LINES.end())
        .next_power_of_two()
}

/// Length of a segment in bytes: both rings' control blocks, then their lines.
const fn segment_len(lines: usize) -> usize {
    2 * (size_of::<Control>() + lines * size_of::<Line>())
}

/// Why a segment that a server has passed is not mapped.
pub enum NotASegment {
    /// It is not sealed, not as long as was said, or its size makes no sense.
    Wrong,
    /// The system does not map it.
    System(Errno),
}

/// A segment in our address space.
struct Mapping {
    base: NonNull<u8>,
    lines: usize,
}

// SAFETY: the mapping belongs to the process, not to the thread that made it, and stays where it is.
unsafe impl Send for Mapping {}

// SAFETY: what lies in it is made of atomics.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, lines: usize) -> Result<Arc<Self>, Errno> {
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                segment_len(lines),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                fd,
                0,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        Ok(Arc::new(Self { base, lines }))
    }

    /// One of the two rings.
    fn ring(self: &Arc<Self>, index: usize) -> Ring {
        debug_assert!(index < 2);
        let controls = 2 * size_of::<Control>();
        // SAFETY: both places lie in the mapping, which is `segment_len(lines)` long.
        let (control, first) = unsafe {
            (
                self.base.add(index * size_of::<Control>()),
                self.base
                    .add(controls + index * self.lines * size_of::<Line>()),
            )
        };
        Ring {
            control: control.cast(),
            first: first.cast(),
            lines: self.lines,
            _mapping: Arc::clone(self),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the rings that look into the mapping hold it, so none is left.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), segment_len(self.lines)) };
        debug_assert!(unmapped.is_ok());
    }
}

/// One of a segment's rings, as the core's ends want it.
pub struct Ring {
    control: NonNull<Control>,
    first: NonNull<Line>,
    lines: usize,
    _mapping: Arc<Mapping>,
}

// SAFETY: it points into a mapping that it holds, which any thread may use.
unsafe impl Send for Ring {}

impl Memory for Ring {
    #[inline(always)]
    fn lines(&self) -> &[Line] {
        // SAFETY: the lines lie in the mapping, which `self` holds; they are aligned, as pages are and the control blocks'
        // length is; any bytes are a valid line; and the other process can change them only as what they are, atomics.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.lines) }
    }

    #[inline(always)]
    fn control(&self) -> &Control {
        // SAFETY: as for the lines.
        unsafe { self.control.as_ref() }
    }
}

/// The two rings of a segment.
pub struct Rings {
    /// From the client to the server.
    pub upward: Ring,
    /// From the server to the client.
    pub downward: Ring,
}

impl Rings {
    fn of(mapping: &Arc<Mapping>) -> Self {
        Self {
            upward: mapping.ring(0),
            downward: mapping.ring(1),
        }
    }
}

/// A new segment with rings of so many lines, and the file by which it is passed on.
pub fn create(lines: usize) -> Result<(OwnedFd, Rings), Errno> {
    let fd = memfd_create(
        "mitosis-shm",
        MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
    )?;
    ftruncate(&fd, segment_len(lines) as u64)?;
    fcntl_add_seals(&fd, SEALS)?;
    let mapping = Mapping::new(fd.as_fd(), lines)?;
    Ok((fd, Rings::of(&mapping)))
}

/// Maps a segment that a server has passed, whose rings it says have so many lines.
pub fn open(fd: BorrowedFd<'_>, lines: usize) -> Result<Rings, NotASegment> {
    if !LINES.contains(&lines) || !lines.is_power_of_two() {
        return Err(NotASegment::Wrong);
    }
    // A file that cannot be sealed has no seals to tell.
    let seals = fcntl_get_seals(fd).map_err(|_| NotASegment::Wrong)?;
    let stat = fstat(fd).map_err(NotASegment::System)?;
    if !seals.contains(SealFlags::SHRINK) || stat.st_size != segment_len(lines) as i64 {
        return Err(NotASegment::Wrong);
    }
    let mapping = Mapping::new(fd, lines).map_err(NotASegment::System)?;
    Ok(Rings::of(&mapping))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mitosis_core::sync::line_ring::{Receiver, Sender};

    #[test]
    fn what_one_mapping_sends_the_other_receives() {
        let (fd, rings) = create(256).unwrap();
        let Ok(same) = open(fd.as_fd(), 256) else {
            panic!("a segment is one")
        };
        for (sending, receiving) in [(rings.upward, same.upward), (same.downward, rings.downward)] {
            let mut sender = Sender::new(sending);
            let mut receiver = Receiver::<_, 16>::new(receiving);
            for number in 0..1000_u64 {
                sender.push(&number.to_ne_bytes(), &[7; 100]).unwrap();
                assert_eq!(receiver.pop(), Ok(Some(108)));
                assert_eq!(receiver.words()[0], number);
            }
        }
    }

    #[test]
    fn a_file_that_is_no_segment_is_not_mapped() {
        let wrong = |fd: BorrowedFd<'_>, lines| matches!(open(fd, lines), Err(NotASegment::Wrong));
        let (fd, _rings) = create(256).unwrap();
        for lines in [0, 128, 255, 512, 1 << 17, usize::MAX] {
            assert!(wrong(fd.as_fd(), lines), "{lines}");
        }
        let unsealed = memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&unsealed, segment_len(256) as u64).unwrap();
        assert!(wrong(unsealed.as_fd(), 256));
        let (reader, _writer) = std::io::pipe().unwrap();
        assert!(wrong(reader.as_fd(), 256));
    }

    #[test]
    fn nobody_can_take_the_pages_away() {
        let (fd, _rings) = create(256).unwrap();
        assert_eq!(ftruncate(&fd, 0), Err(Errno::PERM));
        assert_eq!(fcntl_add_seals(&fd, SealFlags::WRITE), Err(Errno::PERM));
    }
}
