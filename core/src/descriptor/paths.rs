//! The paths that VMAs and open files have (descriptor.md §11).
//!
//! They stand at the descriptor's end in the reverse order of their use, so that a path's distance
//! from the end is known when it is written, and one that follows itself stands there once.

use super::{check, Wrong, MAX_PATH};

/// Where a path is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reference {
    /// Distance of its first byte from the end of the section, in bytes; 0 without a path.
    pub(super) back: u32,
    /// Its length in bytes; 0 without a path.
    pub(super) len: u16,
}

/// The bytes of a path; `None` without one.
#[inline]
pub(super) fn resolve(section: &[u8], path: Reference) -> Option<&[u8]> {
    if path.len == 0 {
        return None;
    }
    let start = section.len().checked_sub(path.back as usize)?;
    section.get(start..)?.get(..usize::from(path.len))
}

/// A path that a descriptor can hold.
pub(super) fn check_path(path: &[u8]) -> Result<(), Wrong> {
    let len = path.len();
    check(len > 0 && len <= MAX_PATH, "length of a path", len as u64)?;
    check(!path.contains(&0), "byte of a path", 0)
}

/// Follows the references of the records in their order.
pub(super) struct Walk<'d> {
    section: &'d [u8],
    last: Reference,
}

impl<'d> Walk<'d> {
    pub(super) fn new(section: &'d [u8]) -> Self {
        Self {
            section,
            last: Reference::default(),
        }
    }

    /// Checks the next record's reference: none, the last once more, or the next in the section.
    pub(super) fn check(&mut self, path: Reference) -> Result<(), Wrong> {
        let wrong = Wrong {
            what: "place of a path",
            found: u64::from(path.back),
        };
        if path.len == 0 {
            return check(path.back == 0, wrong.what, wrong.found);
        }
        if path == self.last {
            return Ok(());
        }
        if self.last.back.checked_add(u32::from(path.len)) != Some(path.back) {
            return Err(wrong);
        }
        let bytes = resolve(self.section, path).ok_or(wrong)?;
        check_path(bytes)?;
        // One that repeats the last would have its reference.
        let repeated = resolve(self.section, self.last) == Some(bytes);
        check(!repeated, "repeated path", u64::from(path.back))?;
        self.last = path;
        Ok(())
    }

    /// Checks that no path is without a reference.
    pub(super) fn finish(&self) -> Result<(), Wrong> {
        let unused = self.section.len().saturating_sub(self.last.back as usize);
        check(
            unused == 0,
            "bytes of paths that nothing refers to",
            unused as u64,
        )
    }
}
