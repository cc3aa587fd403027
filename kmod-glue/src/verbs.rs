//! Verbs objects, each destroyed when it is dropped.
//!
//! A queue pair refers to its completion queues and its protection domain by lifetime, so that the compiler keeps
//! the order of destruction.

use core::ffi::c_int;
use core::ptr::NonNull;

use crate::devices::Port;
use crate::errno::Errno;
use crate::ffi;
use crate::memory::{Page, PAGE_LEN};
use crate::thread::Event;

pub use crate::ffi::{Completion, Receive};

/// Most completions a call of [`CompletionQueue::poll`] gives, and receives a call of [`QueuePair::post_receives`]
/// takes: the shim's MITOSIS_BATCH.
pub const BATCH: usize = 16;

/// How many sends share a doorbell at most: the shim's MITOSIS_SENDS, whose work requests lie on its stack.
pub const SENDS: usize = 8;

fn created<T>(object: *mut T, error: c_int) -> Result<NonNull<T>, Errno> {
    NonNull::new(object).ok_or(Errno(error))
}

/// A protection domain.
pub struct ProtectionDomain {
    pd: NonNull<ffi::IbPd>,
    device: *mut ffi::IbDevice,
}

// SAFETY: verbs objects may be used from any thread.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    /// A domain on the port's device.
    pub fn new(port: &Port) -> Result<ProtectionDomain, Errno> {
        let mut error = 0;
        // SAFETY: the device is valid while its `Devices` is held, which the caller's port stands for.
        let pd = unsafe { ffi::mitosis_pd_alloc(port.0.device, &mut error) };
        Ok(ProtectionDomain {
            pd: created(pd, error)?,
            device: port.0.device,
        })
    }

    pub(crate) fn as_ptr(&self) -> *mut ffi::IbPd {
        self.pd.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: what lives in the domain borrows it, so nothing is left in it.
        unsafe { ffi::mitosis_pd_free(self.as_ptr()) }
    }
}

/// A completion queue whose completions signal an event, once for each [`CompletionQueue::arm`].
pub struct CompletionQueue<'a> {
    cq: NonNull<ffi::IbCq>,
    event: &'a Event,
}

// SAFETY: verbs objects may be used from any thread.
unsafe impl Send for CompletionQueue<'_> {}

impl<'a> CompletionQueue<'a> {
    /// A queue of `entries` on the port's device.
    pub fn new(port: &Port, entries: u32, event: &'a Event) -> Result<CompletionQueue<'a>, Errno> {
        let mut error = 0;
        // SAFETY: the device is valid, and the event outlives the queue that signals it.
        let cq =
            unsafe { ffi::mitosis_cq_create(port.0.device, entries, event.as_ptr(), &mut error) };
        Ok(CompletionQueue {
            cq: created(cq, error)?,
            event,
        })
    }

    /// The completions that there are, at most [`BATCH`].
    pub fn poll<'c>(&mut self, completions: &'c mut [Completion; BATCH]) -> &'c [Completion] {
        // SAFETY: there is room for BATCH completions.
        let polled = unsafe {
            ffi::mitosis_cq_poll(self.cq.as_ptr(), completions.as_mut_ptr(), BATCH as u32)
        };
        completions.get(..polled as usize).unwrap_or(&[])
    }

    /// What its completions signal.
    pub fn event(&self) -> &Event {
        self.event
    }

    /// Asks for a signal at the next completion. True when some may already be there: poll before sleeping.
    pub fn arm(&mut self) -> bool {
        // SAFETY: the queue lives as long as `self`.
        unsafe { ffi::mitosis_cq_arm(self.cq.as_ptr()) }
    }
}

impl Drop for CompletionQueue<'_> {
    fn drop(&mut self) {
        // SAFETY: queue pairs on it borrow it, so none is left.
        unsafe { ffi::mitosis_cq_destroy(self.cq.as_ptr()) }
    }
}

/// An address handle: the way to a port.
///
/// It is created in a protection domain and must be dropped before that. Its holders (`peers`, `cm::Route`) keep the
/// two in that order.
pub struct AddressHandle {
    ah: NonNull<ffi::IbAh>,
}

// SAFETY: verbs objects may be used from any thread.
unsafe impl Send for AddressHandle {}
// SAFETY: as above.
unsafe impl Sync for AddressHandle {}

impl AddressHandle {
    /// Takes over a handle that C created.
    ///
    /// # Safety
    /// Nobody else destroys it, and its protection domain outlives the result.
    pub(crate) unsafe fn from_raw(ah: *mut ffi::IbAh) -> Option<AddressHandle> {
        NonNull::new(ah).map(|ah| AddressHandle { ah })
    }

    /// The way back to the sender of a received datagram. May sleep while the link-layer address is resolved.
    ///
    /// # Safety
    /// `pd` outlives the result.
    pub unsafe fn to_sender(
        pd: &ProtectionDomain,
        port: &Port,
        completion: &Completion,
        grh: &[u8; GRH_LEN],
    ) -> Result<AddressHandle, Errno> {
        let mut error = 0;
        // SAFETY: the pointers are valid during the call.
        let ah = unsafe {
            ffi::mitosis_ah_from_completion(
                pd.as_ptr(),
                port.0.port_num,
                completion,
                grh.as_ptr(),
                &mut error,
            )
        };
        Ok(AddressHandle {
            ah: created(ah, error)?,
        })
    }
}

impl Drop for AddressHandle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed only here, from a thread that may sleep.
        unsafe { ffi::mitosis_ah_destroy(self.ah.as_ptr()) }
    }
}

/// Bytes of the global routing header that precedes every received datagram.
pub const GRH_LEN: usize = 40;

/// Where a datagram goes.
pub struct Destination<'a> {
    /// The way to its port.
    pub address: &'a AddressHandle,
    /// Its queue pair number.
    pub qpn: u32,
    /// The key that its queue pair asks for.
    pub qkey: u32,
}

/// A UD queue pair, ready to send and receive.
pub struct QueuePair<'a> {
    qp: NonNull<ffi::IbQp>,
    _pd: &'a ProtectionDomain,
}

// SAFETY: verbs objects may be used from any thread.
unsafe impl Send for QueuePair<'_> {}

/// The size of a queue pair and the key it asks for.
pub struct QueuePairConfig {
    /// Sends that may be outstanding.
    pub send_depth: u32,
    /// Receives that may be posted.
    pub recv_depth: u32,
    /// The key that incoming datagrams must carry.
    pub qkey: u32,
}

impl<'a> QueuePair<'a> {
    /// A queue pair on `port`.
    ///
    /// # Safety
    /// Both completion queues outlive the result, and so does the memory of whatever is posted.
    pub unsafe fn new(
        port: &Port,
        pd: &'a ProtectionDomain,
        send_cq: &CompletionQueue<'_>,
        recv_cq: &CompletionQueue<'_>,
        config: &QueuePairConfig,
    ) -> Result<QueuePair<'a>, Errno> {
        let mut error = 0;
        // SAFETY: domain, queues and port belong to one device and are alive.
        let qp = unsafe {
            ffi::mitosis_qp_create_ud(
                pd.as_ptr(),
                send_cq.cq.as_ptr(),
                recv_cq.cq.as_ptr(),
                config.send_depth,
                config.recv_depth,
                port.0.port_num,
                config.qkey,
                &mut error,
            )
        };
        Ok(QueuePair {
            qp: created(qp, error)?,
            _pd: pd,
        })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair lives as long as `self`.
        unsafe { ffi::mitosis_qp_num(self.qp.as_ptr()) }
    }

    /// Posts up to [`BATCH`] receives at once.
    pub fn post_receives(&self, receives: &[Receive]) -> Result<(), Errno> {
        // SAFETY: the receives name memory that outlives the queue pair, by the contract of `new`.
        Errno::check(unsafe {
            ffi::mitosis_post_receives(self.qp.as_ptr(), receives.as_ptr(), receives.len() as u32)
        })
    }

    /// Posts sends with one doorbell, whose pieces must not be written until they have completed. On an error, so many
    /// have been posted nevertheless.
    ///
    /// # Safety
    /// The address handles of `sends` are alive.
    pub unsafe fn post_sends(&self, sends: &[QueuedSend]) -> Result<(), (usize, Errno)> {
        let mut posted = 0;
        // SAFETY: the buffers' memory outlives the queue pair, by the contract of `new`; QueuedSend is a transparent
        // wrapper.
        let result = unsafe {
            ffi::mitosis_post_sends(
                self.qp.as_ptr(),
                sends.as_ptr().cast(),
                sends.len() as u32,
                &mut posted,
            )
        };
        Errno::check(result).map_err(|errno| (posted as usize, errno))
    }
}

/// A send that is ready to be posted. It refers to its address handle, but does not keep it.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct QueuedSend(ffi::Send);

// SAFETY: an address handle belongs to no thread, and is followed only in `post_sends`, whose caller vouches for it.
unsafe impl Send for QueuedSend {}

impl QueuedSend {
    /// Nothing to send yet.
    pub const EMPTY: QueuedSend = QueuedSend(ffi::Send {
        ah: core::ptr::null_mut(),
        wr_id: 0,
        pieces: [ffi::Piece {
            dma: 0,
            len: 0,
            reserved: 0,
        }; ffi::PIECES],
        piece_count: 0,
        remote_qpn: 0,
        remote_qkey: 0,
        signaled: 0,
    });

    /// What `pieces` gather, to be sent to `to`.
    #[inline]
    pub fn new(to: &Destination<'_>, pieces: &Pieces, wr_id: u64, signaled: bool) -> QueuedSend {
        QueuedSend(ffi::Send {
            ah: to.address.ah.as_ptr(),
            wr_id,
            pieces: pieces.pieces,
            piece_count: pieces.count,
            remote_qpn: to.qpn,
            remote_qkey: to.qkey,
            signaled: u32::from(signaled),
        })
    }
}

/// What a datagram is gathered from, in order.
#[derive(Default)]
pub struct Pieces {
    pieces: [ffi::Piece; ffi::PIECES],
    count: u32,
}

impl Pieces {
    /// Adds `len` bytes at `offset` of a page. Nothing is added where the page has no such bytes, or no piece is left.
    pub fn push(&mut self, page: &MappedPage, offset: usize, len: usize) {
        let fits = offset.checked_add(len).is_some_and(|end| end <= PAGE_LEN);
        if let (true, Some(piece)) = (fits, self.pieces.get_mut(self.count as usize)) {
            piece.dma = page.dma + offset as u64;
            piece.len = len as u32;
            self.count += 1;
        }
    }
}

impl Drop for QueuePair<'_> {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed only here. Afterwards the device touches no buffer that was posted.
        unsafe { ffi::mitosis_qp_destroy(self.qp.as_ptr()) }
    }
}

/// Which way a page's data goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The device reads it.
    ToDevice,
    /// The device writes it.
    FromDevice,
}

/// A page that a device can reach.
pub struct MappedPage {
    /// The memory.
    pub page: Page,
    /// Its address for the device.
    pub dma: u64,
    device: *mut ffi::IbDevice,
    direction: Direction,
}

// SAFETY: a mapping may be used and undone from any thread.
unsafe impl Send for MappedPage {}

impl MappedPage {
    /// A fresh page, mapped for the domain's device.
    pub fn new(pd: &ProtectionDomain, direction: Direction) -> Result<MappedPage, Errno> {
        let page = Page::new()?;
        let mut error = 0;
        // SAFETY: the page lives as long as the mapping, which `drop` undoes first.
        let dma = unsafe {
            ffi::mitosis_dma_map(
                pd.device,
                page.as_ptr(),
                direction == Direction::ToDevice,
                &mut error,
            )
        };
        Errno::check(error)?;
        Ok(MappedPage {
            page,
            dma,
            device: pd.device,
            direction,
        })
    }

    /// Makes the CPU see what the device wrote to `len` bytes at `offset`.
    pub fn sync_for_cpu(&self, offset: usize, len: usize) {
        // SAFETY: the mapping lives as long as `self`.
        unsafe { ffi::mitosis_dma_sync_for_cpu(self.device, self.dma + offset as u64, len as u32) }
    }
}

impl Drop for MappedPage {
    fn drop(&mut self) {
        // SAFETY: mapped in `new`, unmapped only here; no posted work request names it any more.
        unsafe {
            ffi::mitosis_dma_unmap(self.device, self.dma, self.direction == Direction::ToDevice)
        }
    }
}
