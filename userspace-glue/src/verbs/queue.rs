//! Completion queues, and the channel by which they wake who sleeps.

use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys as sys;
use rustix::fs::{fcntl_getfl, fcntl_setfl, OFlags};

use super::device::{Context, Port};
use super::failure::{check, errno, failed};
use crate::fabric::FabricError;

/// Most completions that [`CompletionQueue::poll`] yields at once, and most work requests that are posted at once.
pub(super) const BATCH: usize = 32;

/// What became of a work request. Where it is not [`Completion::is_success`], only number and status mean something.
#[repr(transparent)]
pub(super) struct Completion(sys::ibv_wc);

impl Default for Completion {
    fn default() -> Self {
        // SAFETY: integers all over, for which zeros are a value.
        Self(unsafe { MaybeUninit::zeroed().assume_init() })
    }
}

impl Completion {
    /// Room for [`CompletionQueue::poll`].
    pub(super) fn batch() -> [Self; BATCH] {
        std::array::from_fn(|_| Self::default())
    }

    /// The request's number.
    pub(super) fn wr_id(&self) -> u64 {
        self.0.wr_id
    }

    /// 0, or one of `ibv_wc_status`.
    pub(super) fn status(&self) -> u32 {
        self.0.status
    }

    pub(super) fn is_success(&self) -> bool {
        self.0.status == sys::ibv_wc_status::IBV_WC_SUCCESS
    }

    /// Of a receive: how many bytes came, the global routing header included.
    pub(super) fn byte_len(&self) -> usize {
        self.0.byte_len as usize
    }

    /// Of a receive: the sender's queue pair.
    pub(super) fn source_qpn(&self) -> u32 {
        self.0.src_qp
    }

    /// Of a receive: the sender's local identifier; 0 over Ethernet.
    pub(super) fn source_lid(&self) -> u16 {
        self.0.slid
    }

    /// Of a receive: whether a global routing header came with it.
    pub(super) fn has_grh(&self) -> bool {
        self.0.wc_flags & sys::ibv_wc_flags::IBV_WC_GRH.0 != 0
    }

    pub(super) fn as_ptr(&self) -> *const sys::ibv_wc {
        &self.0
    }

    /// A second of the same.
    pub(super) fn again(&self) -> Self {
        // SAFETY: integers all over, which may be copied.
        Self(unsafe { ptr::read(&self.0) })
    }
}

/// What a status is called.
pub(super) fn status_name(status: u32) -> String {
    // SAFETY: the function takes any number, and returns a string that is never freed.
    let name = unsafe { std::ffi::CStr::from_ptr(sys::ibv_wc_status_str(status)) };
    name.to_string_lossy().into_owned()
}

/// What is readable when a completion queue that was armed has a completion.
pub(super) struct CompletionChannel {
    raw: NonNull<sys::ibv_comp_channel>,
    _context: Arc<Context>,
}

// SAFETY: libibverbs's objects may be used from any thread, and several at a time.
unsafe impl Send for CompletionChannel {}
// SAFETY: as above.
unsafe impl Sync for CompletionChannel {}

impl CompletionChannel {
    pub(super) fn new(port: &Port) -> Result<Arc<Self>, FabricError> {
        let context = port.context().clone();
        // SAFETY: the device is open.
        let raw = unsafe { sys::ibv_create_comp_channel(context.as_ptr()) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| failed("cannot create a completion channel", errno()))?;
        let channel = Self {
            raw,
            _context: context,
        };
        let fd = channel.fd();
        let flags = fcntl_getfl(fd).map_err(|error| failed("fcntl", error.into()))?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(|error| failed("fcntl", error.into()))?;
        Ok(Arc::new(channel))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel lives, which the borrow of `self` sees to.
        unsafe { BorrowedFd::borrow_raw((*self.raw.as_ptr()).fd) }
    }
}

impl Drop for CompletionChannel {
    fn drop(&mut self) {
        // SAFETY: created once; queues on it hold an `Arc` of it, so none is left.
        unsafe { sys::ibv_destroy_comp_channel(self.raw.as_ptr()) };
    }
}

/// A completion queue.
pub(super) struct CompletionQueue {
    raw: NonNull<sys::ibv_cq>,
    channel: Option<Arc<CompletionChannel>>,
    _context: Arc<Context>,
}

// SAFETY: libibverbs's objects may be used from any thread, and several at a time.
unsafe impl Send for CompletionQueue {}
// SAFETY: as above.
unsafe impl Sync for CompletionQueue {}

impl CompletionQueue {
    /// A queue of at least `entries`, which signals `channel` once each time that it was armed.
    pub(super) fn new(
        port: &Port,
        entries: u32,
        channel: Option<&Arc<CompletionChannel>>,
    ) -> Result<Arc<Self>, FabricError> {
        let context = port.context().clone();
        // SAFETY: device and channel are alive and belong together.
        let raw = unsafe {
            sys::ibv_create_cq(
                context.as_ptr(),
                i32::try_from(entries.min(port.max_completions())).unwrap_or(i32::MAX),
                ptr::null_mut(),
                channel.map_or(ptr::null_mut(), |channel| channel.raw.as_ptr()),
                0,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| {
            failed(
                format!("cannot create a completion queue of {entries}"),
                errno(),
            )
        })?;
        Ok(Arc::new(Self {
            raw,
            channel: channel.cloned(),
            _context: context,
        }))
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_cq {
        self.raw.as_ptr()
    }

    /// The completions that there are, at most [`BATCH`].
    #[inline]
    pub(super) fn poll<'c>(
        &self,
        completions: &'c mut [Completion; BATCH],
    ) -> Result<&'c [Completion], FabricError> {
        // SAFETY: there is room for BATCH completions, which are `ibv_wc` in layout.
        let polled = unsafe {
            sys::ibv_poll_cq(self.as_ptr(), BATCH as i32, completions.as_mut_ptr().cast())
        };
        let Ok(polled) = usize::try_from(polled) else {
            return Err(failed("cannot poll a completion queue", errno()));
        };
        Ok(completions.get(..polled).unwrap_or(&[]))
    }

    /// Asks for a signal at the next completion. Poll once more before sleeping.
    pub(super) fn arm(&self) -> Result<(), FabricError> {
        // SAFETY: the queue lives as long as `self`.
        let returned = unsafe { sys::ibv_req_notify_cq(self.as_ptr(), 0) };
        check(returned, || "cannot arm a completion queue".into())
    }

    /// Takes the signals that have come, without waiting.
    pub(super) fn clear_signals(&self) {
        let Some(channel) = &self.channel else { return };
        let mut count = 0;
        let (mut cq, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel lives as long as `self`; there is room for what the call returns.
        while unsafe { sys::ibv_get_cq_event(channel.raw.as_ptr(), &mut cq, &mut context) } == 0 {
            count += 1;
        }
        // Destroying the queue waits until each of its signals has been acknowledged.
        if count > 0 {
            // SAFETY: as many signals of this queue, the channel's only one that is ever armed, have been taken.
            unsafe { sys::ibv_ack_cq_events(self.as_ptr(), count) };
        }
    }
}

impl Drop for CompletionQueue {
    fn drop(&mut self) {
        // A signal that came and was not taken is not waited for.
        // SAFETY: created once; queue pairs on it hold an `Arc` of it, so none is left.
        unsafe { sys::ibv_destroy_cq(self.as_ptr()) };
    }
}
