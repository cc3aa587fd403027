//! Time, chance, events and kernel threads.

use core::ffi::{c_void, CStr};
use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::errno::Errno;
use crate::ffi;
use crate::memory::Owned;

/// Nanoseconds since boot.
pub fn now_ns() -> u64 {
    // SAFETY: no preconditions.
    unsafe { ffi::mitosis_clock_ns() }
}

/// A number that a peer cannot guess.
pub fn random() -> u64 {
    // SAFETY: no preconditions.
    unsafe { ffi::mitosis_random_u64() }
}

/// Lets others run, if any want to.
pub fn give_way() {
    // SAFETY: only called from threads, which may sleep.
    unsafe { ffi::mitosis_yield() }
}

/// Sleeps for a while.
pub fn park() {
    // SAFETY: only called from threads, which may sleep.
    unsafe { ffi::mitosis_park() }
}

/// What one thread sleeps on and anything may signal, an interrupt too.
///
/// A signal is kept until the waiter takes it, so that none is lost between looking and sleeping.
pub struct Event {
    event: NonNull<ffi::Event>,
}

// SAFETY: a wait queue and an atomic are made for use from anywhere.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that nobody has signalled.
    pub fn new() -> Result<Event, Errno> {
        // SAFETY: no preconditions; null is handled.
        let event = unsafe { ffi::mitosis_event_create() };
        NonNull::new(event)
            .map(|event| Event { event })
            .ok_or(Errno::NO_MEMORY)
    }

    /// Wakes the waiter, or the next one to wait.
    pub fn signal(&self) {
        // SAFETY: the event lives as long as `self`.
        unsafe { ffi::mitosis_event_signal(self.as_ptr()) }
    }

    /// Sleeps until a signal, at most about `timeout_ns`.
    pub fn wait(&self, timeout_ns: u64) {
        // SAFETY: the event lives as long as `self`; only threads call this.
        unsafe { ffi::mitosis_event_wait(self.as_ptr(), timeout_ns) }
    }

    /// For C, which signals it while whoever was given it lives no longer than `self`.
    pub fn as_ptr(&self) -> *mut ffi::Event {
        self.event.as_ptr()
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: owners drop what may signal the event before the event itself.
        unsafe { ffi::mitosis_event_destroy(self.as_ptr()) }
    }
}

/// How long a thread looks for its next event before it sleeps.
///
/// Sleeping costs a wake-up, and in a virtual machine the halt of a processor; looking costs the processor. So a
/// thread looks only while nobody else wants its processor (soft-RoCE's workers least of all are kept waiting), and
/// only as long as has lately been worth it: the budget doubles when an event came soon after the thread fell asleep,
/// and falls to nothing when it did not.
#[derive(Default)]
pub struct Patience {
    budget_ns: u64,
    since_ns: u64,
}

impl Patience {
    /// First budget after none.
    const LEAST_NS: u64 = 20_000;
    /// Longest look.
    const MOST_NS: u64 = 1_000_000;

    /// Something has happened: the wait begins anew.
    pub fn renew(&mut self, now_ns: u64) {
        self.since_ns = now_ns;
    }

    /// Whether to look once more rather than sleep.
    pub fn lasts(&self, now_ns: u64) -> bool {
        // SAFETY: no preconditions.
        now_ns.saturating_sub(self.since_ns) < self.budget_ns && unsafe { ffi::mitosis_alone() }
    }

    /// Sleeps on `event`, at most about `timeout_ns`, and learns from how long it was.
    pub fn sleep(&mut self, event: &Event, timeout_ns: u64) {
        event.wait(timeout_ns);
        let waited_ns = now_ns().saturating_sub(self.since_ns);
        self.budget_ns = if waited_ns > Self::MOST_NS {
            0
        } else if waited_ns > self.budget_ns {
            (self.budget_ns * 2).clamp(Self::LEAST_NS, Self::MOST_NS)
        } else {
            self.budget_ns
        };
    }
}

/// A kernel thread that borrows from its starter, joined when dropped.
pub struct Thread<'a> {
    thread: NonNull<ffi::Thread>,
    _borrows: PhantomData<&'a mut ()>,
}

// SAFETY: any thread may join another.
unsafe impl Send for Thread<'_> {}
// SAFETY: a shared reference allows nothing.
unsafe impl Sync for Thread<'_> {}

impl<'a> Thread<'a> {
    /// Starts `body` as `name/index`.
    ///
    /// # Safety
    /// The returned thread is dropped, not forgotten: its drop is what ends the borrows of `body`.
    pub unsafe fn start<F: FnOnce() + Send + 'a>(
        name: &CStr,
        index: u32,
        body: F,
    ) -> Result<Thread<'a>, Errno> {
        unsafe extern "C" fn enter<F: FnOnce()>(context: *mut c_void) {
            // SAFETY: `context` is what `into_raw` gave below, handed over to this thread alone.
            if let Some(body) = unsafe { Owned::<F>::from_raw(context.cast()) } {
                body.into_inner()();
            }
        }
        let context = Owned::new(body)?.into_raw();
        // SAFETY: `enter` fits `context`; `name` is NUL-terminated and read during the call only.
        let thread =
            unsafe { ffi::mitosis_thread_start(enter::<F>, context.cast(), name.as_ptr(), index) };
        match NonNull::new(thread) {
            Some(thread) => Ok(Thread {
                thread,
                _borrows: PhantomData,
            }),
            None => {
                // SAFETY: no thread was started, so `context` is still this function's alone.
                drop(unsafe { Owned::from_raw(context) });
                Err(Errno::NO_MEMORY)
            }
        }
    }
}

impl Drop for Thread<'_> {
    fn drop(&mut self) {
        // SAFETY: the thread was started and is joined only here.
        unsafe { ffi::mitosis_thread_join(self.thread.as_ptr()) }
    }
}
