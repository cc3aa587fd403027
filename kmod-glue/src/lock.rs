//! A value behind a kernel mutex, and one that several own.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;

use mitosis_core::sync::count::References;

use crate::errno::Errno;
use crate::fork::ffi;
use crate::memory::{Owned, Vacant};

/// A value that one thread at a time may use. Waiting for it sleeps.
pub struct Mutex<T> {
    mutex: NonNull<ffi::Mutex>,
    value: UnsafeCell<T>,
}

// SAFETY: the kernel's mutex lets one thread at a time reach the value.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    /// A mutex that nobody holds.
    pub fn new(value: T) -> Result<Mutex<T>, Errno> {
        // SAFETY: no preconditions; null is handled.
        let mutex = unsafe { ffi::mitosis_mutex_create() };
        Ok(Mutex {
            mutex: NonNull::new(mutex).ok_or(Errno::NO_MEMORY)?,
            value: UnsafeCell::new(value),
        })
    }

    /// Waits for the value.
    pub fn lock(&self) -> Guard<'_, T> {
        // SAFETY: the mutex lives as long as `self`; only threads call this, and none holds it already.
        unsafe { ffi::mitosis_mutex_lock(self.mutex.as_ptr()) };
        Guard { of: self }
    }

    /// The value, if nobody has it.
    pub fn try_lock(&self) -> Option<Guard<'_, T>> {
        // SAFETY: as in `lock`.
        let taken = unsafe { ffi::mitosis_mutex_try_lock(self.mutex.as_ptr()) };
        // Made only where the mutex was taken: a guard that is dropped releases it, whoever holds it.
        taken.then(|| Guard { of: self })
    }
}

impl<T> Drop for Mutex<T> {
    fn drop(&mut self) {
        // SAFETY: created in `new`; guards borrow `self`, so nobody holds it.
        unsafe { ffi::mitosis_mutex_destroy(self.mutex.as_ptr()) }
    }
}

/// The right to use the value.
pub struct Guard<'m, T> {
    of: &'m Mutex<T>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the guard holds the mutex.
        unsafe { &*self.of.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard holds the mutex, and `&mut self` makes the borrow unique.
        unsafe { &mut *self.of.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    fn drop(&mut self) {
        // SAFETY: locked when the guard was made, by this thread.
        unsafe { ffi::mitosis_mutex_unlock(self.of.mutex.as_ptr()) }
    }
}

struct Counted<T> {
    references: References,
    value: T,
}

/// A value with several owners: dropped by the last.
pub struct Shared<T> {
    counted: NonNull<Counted<T>>,
}

// SAFETY: as an `Arc`.
unsafe impl<T: Send + Sync> Send for Shared<T> {}
// SAFETY: as an `Arc`.
unsafe impl<T: Send + Sync> Sync for Shared<T> {}

/// Room for a value that several will own.
pub struct Room<T> {
    place: Vacant<Counted<T>>,
}

impl<T> Room<T> {
    /// Room for one value.
    pub fn new() -> Result<Room<T>, Errno> {
        Vacant::new().map(|place| Room { place })
    }

    /// Moves `value` into it, which has one owner then.
    pub fn fill(self, value: T) -> Shared<T> {
        let counted = self.place.fill(Counted {
            references: References::new(),
            value,
        });
        Shared {
            counted: counted.leak(),
        }
    }
}

impl<T> Shared<T> {
    /// A value with one owner.
    pub fn new(value: T) -> Result<Shared<T>, Errno> {
        Room::new().map(|room| room.fill(value))
    }

    /// Its address, with the duty to give it back to [`Shared::from_raw`].
    pub fn into_raw(self) -> *mut core::ffi::c_void {
        let raw = self.counted.as_ptr().cast();
        core::mem::forget(self);
        raw
    }

    /// Takes back what [`Shared::into_raw`] gave.
    ///
    /// # Safety
    /// `raw` came from `into_raw` of the same type, and is given back once.
    pub unsafe fn from_raw(raw: *mut core::ffi::c_void) -> Option<Shared<T>> {
        NonNull::new(raw.cast()).map(|counted| Shared { counted })
    }

    /// Looks at what [`Shared::into_raw`] gave, without taking it back.
    ///
    /// # Safety
    /// `raw` came from `into_raw` of the same type, and is not given back during `'r`.
    pub unsafe fn peek<'r>(raw: *mut core::ffi::c_void) -> Option<&'r T> {
        // SAFETY: by this function's contract, an owner keeps the value alive.
        unsafe { raw.cast::<Counted<T>>().as_ref() }.map(|counted| &counted.value)
    }

    /// Whether nobody else has a reference, if those that there are cannot be taken meanwhile.
    pub fn is_only(&self) -> bool {
        // SAFETY: `self` keeps the value alive.
        unsafe { self.counted.as_ref() }.references.is_only()
    }

    /// Whether both are one value.
    pub fn same(&self, other: &Shared<T>) -> bool {
        self.counted == other.counted
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Shared<T> {
        // SAFETY: `self` keeps the value alive.
        unsafe { self.counted.as_ref() }.references.take();
        Shared {
            counted: self.counted,
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `self` keeps the value alive.
        unsafe { &self.counted.as_ref().value }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // SAFETY: `self` keeps the value alive until here.
        if unsafe { self.counted.as_ref() }.references.give_up() {
            // SAFETY: the memory came from `Owned::leak`, and this was the last reference.
            drop(unsafe { Owned::from_raw(self.counted.as_ptr()) });
        }
    }
}
