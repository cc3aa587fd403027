//! Cache lines of a file that two processes map.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::path::Path;
use std::ptr::NonNull;
use std::slice;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

/// The words of a line.
pub type Line = [AtomicU64; 8];

/// The lines.
pub struct SharedLines {
    first: NonNull<Line>,
    count: usize,
}

impl SharedLines {
    /// Maps so many lines of the file, which is made if there is none.
    pub fn open(path: &Path, count: usize) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let len = count * size_of::<Line>();
        file.set_len(len as u64)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let first = unsafe {
            let flags = MapFlags::SHARED | MapFlags::POPULATE;
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            mmap(std::ptr::null_mut(), len, prot, flags, &file, 0)?
        };
        let first = NonNull::new(first.cast()).context("mapped at address 0")?;
        Ok(Self { first, count })
    }

    /// All of them.
    pub fn lines(&self) -> &[Line] {
        // SAFETY: they lie in the mapping, which `self` holds, and are aligned, as pages are; any bytes are a line; others
        // change them as atomics only.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl Drop for SharedLines {
    fn drop(&mut self) {
        let len = self.count * size_of::<Line>();
        // SAFETY: nothing refers to the lines but what borrows `self`.
        let _ = unsafe { munmap(self.first.as_ptr().cast(), len) };
    }
}
