//! A page of a file that two processes map.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};

const LEN: usize = 4096;

/// The page.
pub struct SharedPage(NonNull<u8>);

impl SharedPage {
    /// Maps the file, which is made if there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let file = options
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        file.set_len(LEN as u64)?;
        // SAFETY: a new mapping at a place of the kernel's choice touches no other memory.
        let page = unsafe {
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            mmap(std::ptr::null_mut(), LEN, prot, flags, &file, 0)?
        };
        Ok(Self(
            NonNull::new(page.cast()).context("mapped at address 0")?,
        ))
    }

    /// Two words in cache lines of their own.
    pub fn lines(&self) -> (&AtomicU64, &AtomicU64) {
        // SAFETY: both lie in the page, which `self` holds, and are aligned; others change them as atomics only.
        unsafe {
            let word = |offset| &*self.0.add(offset).cast::<AtomicU64>().as_ptr();
            (word(0), word(LEN / 2))
        }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the page but what borrows `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), LEN) };
    }
}
