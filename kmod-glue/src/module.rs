//! What both modules have in common: one test that runs in a thread of its own from insmod to rmmod.

use core::ffi::CStr;
use core::sync::atomic::{AtomicPtr, Ordering};

use mitosis_core::sync::stop::Stop;

use crate::errno::Errno;
use crate::memory::Owned;
use crate::thread::{Event, Thread};

/// What a test is given besides its parameters.
pub struct Control {
    /// When to end.
    pub stop: Stop,
    /// What the test's main thread sleeps on; signalled with `stop`.
    pub event: Event,
}

/// A loaded module. Fields are dropped in this order: the thread is joined before what it borrows goes.
struct Loaded {
    thread: Option<Thread<'static>>,
    control: Control,
}

/// The place of the one loaded module.
pub struct Slot {
    loaded: AtomicPtr<Loaded>,
}

impl Slot {
    /// Nothing is loaded.
    pub const fn empty() -> Slot {
        Slot {
            loaded: AtomicPtr::new(core::ptr::null_mut()),
        }
    }

    /// Starts `body` in a thread and returns at once.
    pub fn load<F>(&self, name: &'static CStr, body: F) -> Result<(), Errno>
    where
        F: FnOnce(&Control) + Send + 'static,
    {
        let mut loaded = Owned::new(Loaded {
            thread: None,
            control: Control {
                stop: Stop::new(),
                event: Event::new()?,
            },
        })?;
        let control: *const Control = &loaded.control;
        // SAFETY: `control` stays where it is in its own memory until `unload` has dropped the thread.
        let control: &'static Control = unsafe { &*control };
        // SAFETY: the thread goes into `loaded`, which `unload` drops.
        loaded.thread = Some(unsafe { Thread::start(name, 0, move || body(control))? });
        // Release: pairs with the Acquire in `unload`.
        self.loaded.store(loaded.into_raw(), Ordering::Release);
        Ok(())
    }

    /// Ends the thread and waits for it.
    pub fn unload(&self) {
        // Acquire: pairs with the Release in `load`.
        let raw = self.loaded.swap(core::ptr::null_mut(), Ordering::Acquire);
        // SAFETY: `raw` is null or what `load` stored; the swap makes this the only taker.
        if let Some(loaded) = unsafe { Owned::from_raw(raw) } {
            loaded.control.stop.want();
            loaded.control.event.signal();
        }
    }
}
