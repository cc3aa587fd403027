//! Memory that the kernel gives: a single value, a table, and a page that a device may reach.
//!
//! Every allocation can fail and says so; nothing here aborts.

use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use zerocopy::FromZeros;

use crate::errno::Errno;
use crate::ffi;

/// Zeroed memory of at least `bytes`, aligned for T.
///
/// The kernel aligns any allocation to 8 bytes, and those whose size is a power of two to their size.
fn allocate<T>(bytes: usize) -> Result<NonNull<T>, Errno> {
    const { assert!(align_of::<T>() <= PAGE_LEN) };
    let bytes = if align_of::<T>() <= 8 {
        bytes.max(1)
    } else {
        let bytes = bytes.max(align_of::<T>());
        bytes.checked_next_power_of_two().ok_or(Errno::NO_MEMORY)?
    };
    // SAFETY: any size but zero may be asked for; null is handled.
    let memory = unsafe { ffi::mitosis_alloc(bytes) };
    NonNull::new(memory.cast()).ok_or(Errno::NO_MEMORY)
}

/// A value in kernel memory of its own.
pub struct Owned<T> {
    value: NonNull<T>,
}

// SAFETY: an `Owned` is the only way to its value, as a `Box` is.
unsafe impl<T: Send> Send for Owned<T> {}
// SAFETY: as a `Box`, it shares what its value shares.
unsafe impl<T: Sync> Sync for Owned<T> {}

impl<T> Owned<T> {
    /// Moves `value` into memory of its own.
    pub fn new(value: T) -> Result<Owned<T>, Errno> {
        Vacant::new().map(|place| place.fill(value))
    }

    /// The value's place, with the duty to give it back to [`Owned::from_raw`].
    pub fn leak(self) -> NonNull<T> {
        let value = self.value;
        core::mem::forget(self);
        value
    }

    /// Likewise, as C has it.
    pub fn into_raw(self) -> *mut T {
        self.leak().as_ptr()
    }

    /// Moves the value out and frees its memory.
    pub fn into_inner(self) -> T {
        let raw = self.into_raw();
        // SAFETY: the value is initialised, is moved out once, and its memory came from mitosis_alloc.
        unsafe {
            let value = raw.read();
            ffi::mitosis_free(raw.cast());
            value
        }
    }

    /// Takes back what [`Owned::into_raw`] gave.
    ///
    /// # Safety
    /// `raw` came from `into_raw`, is given back once, and nothing else refers to the value any more.
    pub unsafe fn from_raw(raw: *mut T) -> Option<Owned<T>> {
        NonNull::new(raw).map(|value| Owned { value })
    }
}

/// Memory for a value that is not there yet: for where a value that found none could not be dropped.
pub struct Vacant<T> {
    place: NonNull<T>,
}

impl<T> Vacant<T> {
    /// Room for one value.
    pub fn new() -> Result<Vacant<T>, Errno> {
        Ok(Vacant {
            place: allocate::<T>(size_of::<T>())?,
        })
    }

    /// Moves `value` into it.
    pub fn fill(self, value: T) -> Owned<T> {
        let place = self.place;
        core::mem::forget(self);
        // SAFETY: `place` is fresh memory of T's size and alignment.
        unsafe { place.write(value) };
        Owned { value: place }
    }
}

impl<T> Drop for Vacant<T> {
    fn drop(&mut self) {
        // SAFETY: the memory came from mitosis_alloc and holds nothing.
        unsafe { ffi::mitosis_free(self.place.as_ptr().cast()) }
    }
}

impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `value` was initialised in `fill` or `zeroed` and lives until drop.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for Owned<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: the value is initialised and is not used again; its memory came from mitosis_alloc.
        unsafe {
            self.value.drop_in_place();
            ffi::mitosis_free(self.value.as_ptr().cast());
        }
    }
}

impl<T: FromZeros> Owned<T> {
    /// A value of all zeros, made in place: for what is too large for a kernel stack.
    pub fn zeroed() -> Result<Owned<T>, Errno> {
        // The memory is zeroed, and zeros are a T by `FromZeros`.
        let value = allocate::<T>(size_of::<T>())?;
        Ok(Owned { value })
    }
}

/// A table whose length is fixed when it is made.
pub struct Table<T> {
    first: NonNull<T>,
    len: usize,
}

// SAFETY: a `Table` is the only way to its entries, as a boxed slice is.
unsafe impl<T: Send> Send for Table<T> {}
// SAFETY: as a boxed slice, it shares what its entries share.
unsafe impl<T: Sync> Sync for Table<T> {}

impl<T> Table<T> {
    /// A table of `len` entries, each made by `make` from its index.
    pub fn try_new(
        len: usize,
        mut make: impl FnMut(usize) -> Result<T, Errno>,
    ) -> Result<Table<T>, Errno> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Errno::NO_MEMORY)?;
        let first = allocate::<T>(bytes)?;
        // Drops what has been made so far when `make` fails.
        let mut table = Table { first, len: 0 };
        for index in 0..len {
            let entry = make(index)?;
            // SAFETY: `index` < `len`, so the place lies inside the allocation, and it holds nothing yet.
            unsafe { first.add(index).write(entry) };
            table.len = index + 1;
        }
        Ok(table)
    }
}

impl<T: FromZeros> Table<T> {
    /// A table of `len` zeros.
    pub fn zeroed(len: usize) -> Result<Table<T>, Errno> {
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Errno::NO_MEMORY)?;
        // The memory is zeroed, and zeros are a T by `FromZeros`.
        let first = allocate::<T>(bytes)?;
        Ok(Table { first, len })
    }
}

impl<T> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` entries are initialised, in one allocation.
        unsafe { core::slice::from_raw_parts(self.first.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for Table<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { core::slice::from_raw_parts_mut(self.first.as_ptr(), self.len) }
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        let entries: *mut [T] = &mut **self;
        // SAFETY: the entries are initialised and not used again; their memory came from mitosis_alloc.
        unsafe {
            entries.drop_in_place();
            ffi::mitosis_free(self.first.as_ptr().cast());
        }
    }
}

/// Bytes in a page, and so in a [`Page`].
pub const PAGE_LEN: usize = 4096;

/// One zeroed page out of the kernel's direct map, so that every device, rxe too, can reach it.
pub struct Page {
    page: NonNull<[u8; PAGE_LEN]>,
}

// SAFETY: a `Page` is the only way to its memory on the CPU's side.
unsafe impl Send for Page {}

impl Page {
    /// Takes a page from the kernel.
    pub fn new() -> Result<Page, Errno> {
        // SAFETY: no preconditions; null is handled below.
        let page = unsafe { ffi::mitosis_page_alloc() };
        NonNull::new(page.cast())
            .map(|page| Page { page })
            .ok_or(Errno::NO_MEMORY)
    }

    /// Its address, for mapping.
    pub fn as_ptr(&self) -> *mut core::ffi::c_void {
        self.page.as_ptr().cast()
    }

    /// Its bytes. The caller owns the buffer at this moment: no posted work request names it.
    pub fn bytes(&self) -> &[u8; PAGE_LEN] {
        // SAFETY: the page is initialised (zeroed) and lives as long as `self`.
        unsafe { self.page.as_ref() }
    }

    /// Its bytes, to write. The caller owns the buffer at this moment: no posted work request names it.
    pub fn bytes_mut(&mut self) -> &mut [u8; PAGE_LEN] {
        // SAFETY: as in `bytes`; `&mut self` makes the borrow unique.
        unsafe { self.page.as_mut() }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: the page came from mitosis_page_alloc and is not used again.
        unsafe { ffi::mitosis_page_free(self.as_ptr()) }
    }
}
