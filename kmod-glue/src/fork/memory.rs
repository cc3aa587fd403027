//! Pages, and the memory of a frozen process.

use core::ptr::NonNull;

use mitosis_core::wire::fork::CHUNK_PAGES;

use super::ffi;
use crate::errno::Errno;
use crate::memory::{Table, PAGE_LEN};

/// A reference on a page, given back when dropped.
pub struct PageRef(NonNull<ffi::Page>);

// SAFETY: a reference on a page may be given back by any thread.
unsafe impl Send for PageRef {}
// SAFETY: a shared reference allows no more than another reference on the page.
unsafe impl Sync for PageRef {}

impl PageRef {
    /// A page whose bytes are whatever they are.
    pub fn new() -> Result<PageRef, Errno> {
        // SAFETY: no preconditions; null is handled.
        let page = unsafe { ffi::mitosis_page_take() };
        NonNull::new(page).map(PageRef).ok_or(Errno::NO_MEMORY)
    }

    /// A page of zeros.
    pub fn zeroed() -> Result<PageRef, Errno> {
        // SAFETY: no preconditions; null is handled.
        let page = unsafe { ffi::mitosis_page_take_zeroed() };
        NonNull::new(page).map(PageRef).ok_or(Errno::NO_MEMORY)
    }

    /// Its `struct page`.
    pub fn as_ptr(&self) -> *mut ffi::Page {
        self.0.as_ptr()
    }

    /// Its `struct page`, with the duty to give the reference back.
    pub fn into_raw(self) -> *mut ffi::Page {
        let raw = self.0.as_ptr();
        core::mem::forget(self);
        raw
    }

    /// Another reference.
    pub fn again(&self) -> PageRef {
        // SAFETY: `self` keeps the page.
        unsafe { ffi::mitosis_page_get(self.as_ptr()) };
        PageRef(self.0)
    }

    /// Copies `bytes` to `offset`; false where they do not fit. Nobody else sees the page yet.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        if offset
            .checked_add(bytes.len())
            .is_none_or(|end| end > PAGE_LEN)
        {
            return false;
        }
        // SAFETY: pages of x86-64 have an address, and this one is PAGE_LEN bytes that only `self` refers to.
        unsafe {
            let place = ffi::mitosis_page_address(self.as_ptr()).cast::<u8>();
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), place.add(offset), bytes.len());
        }
        true
    }
}

impl Drop for PageRef {
    fn drop(&mut self) {
        // SAFETY: the reference is `self`'s, and given back once.
        unsafe { ffi::mitosis_page_put(self.as_ptr()) }
    }
}

/// The memory of a process, kept from being freed; its contents go when the process ends.
pub struct Memory {
    mm: NonNull<ffi::Mm>,
    pid: i32,
}

// SAFETY: the functions that it is used with may be called by any thread.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

/// What was found in a chunk: references on its pages, in order.
pub struct Collected {
    pages: Table<*mut ffi::Page>,
    count: usize,
    /// Pages that were found, a bit each.
    pub present: [u64; 8],
    /// Pages that must be asked for one by one.
    pub elsewhere: [u64; 8],
}

impl Memory {
    /// The calling process's, whose number in the initial namespace is `pid`.
    pub fn of_caller(pid: i32) -> Result<Memory, Errno> {
        // SAFETY: only processes call this, and those have memory; a reference is taken.
        let mm = unsafe { ffi::mitosis_task_mm() };
        let mm = NonNull::new(mm).ok_or(Errno::INVALID)?;
        Ok(Memory { mm, pid })
    }

    /// Takes references on the pages of a chunk.
    pub fn collect(&self, chunk: u64) -> Result<Collected, Errno> {
        let mut collected = Collected {
            pages: Table::try_new(CHUNK_PAGES, |_| Ok(core::ptr::null_mut()))?,
            count: 0,
            present: [0; 8],
            elsewhere: [0; 8],
        };
        // SAFETY: there is room for CHUNK_PAGES pages and as many bits; `mm` is held.
        let count = unsafe {
            ffi::mitosis_collect(
                self.mm.as_ptr(),
                chunk,
                collected.pages.as_mut_ptr(),
                collected.present.as_mut_ptr(),
                collected.elsewhere.as_mut_ptr(),
            )
        };
        collected.count = count as usize;
        Ok(collected)
    }

    /// Copies a page, which may have to be brought in from a disk.
    pub fn copy_page(&self, number: u64, to: &mut [u8; PAGE_LEN]) -> Result<(), Errno> {
        let address = number.checked_mul(PAGE_LEN as u64).ok_or(Errno::INVALID)?;
        // SAFETY: `to` has room for a page; `mm` is held.
        Errno::check(unsafe {
            ffi::mitosis_page_copy(self.pid, self.mm.as_ptr(), address, to.as_mut_ptr().cast())
        })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: taken in `of_caller`, released only here.
        unsafe { ffi::mitosis_mm_release(self.mm.as_ptr()) }
    }
}

impl Collected {
    /// How many pages were found.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The pages, whose references are the taker's from now on.
    pub fn take(&mut self) -> (*mut *mut ffi::Page, u32) {
        let count = core::mem::take(&mut self.count);
        (self.pages.as_mut_ptr(), count as u32)
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        for page in self.pages.iter().take(self.count) {
            // SAFETY: the reference was taken in `collect` and not handed on.
            unsafe { ffi::mitosis_page_put(*page) }
        }
    }
}
