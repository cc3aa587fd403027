//! Memory that a device reaches.

use std::ffi::c_void;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys as sys;
use rustix::mm::{madvise, mmap_anonymous, munmap, Advice, MapFlags, ProtFlags};

use super::device::{Context, Port};
use super::failure::{errno, failed, not_pinned};
use crate::fabric::FabricError;

const PAGE_LEN: usize = 4096;
const HUGE_PAGE_LEN: usize = 2 << 20;

/// A protection domain: what belongs together on a device.
pub(super) struct ProtectionDomain {
    raw: NonNull<sys::ibv_pd>,
    _context: Arc<Context>,
}

// SAFETY: libibverbs's objects may be used from any thread, and several at a time.
unsafe impl Send for ProtectionDomain {}
// SAFETY: as above.
unsafe impl Sync for ProtectionDomain {}

impl ProtectionDomain {
    pub(super) fn new(port: &Port) -> Result<Arc<Self>, FabricError> {
        let context = port.context().clone();
        // SAFETY: the device is open.
        let raw = unsafe { sys::ibv_alloc_pd(context.as_ptr()) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| failed("cannot allocate a protection domain", errno()))?;
        Ok(Arc::new(Self {
            raw,
            _context: context,
        }))
    }

    pub(super) fn as_ptr(&self) -> *mut sys::ibv_pd {
        self.raw.as_ptr()
    }
}

impl Drop for ProtectionDomain {
    fn drop(&mut self) {
        // SAFETY: allocated once; whatever is in it holds an `Arc` of it, so nothing is.
        unsafe { sys::ibv_dealloc_pd(self.as_ptr()) };
    }
}

/// Who may do what with a region, besides its own process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// This process's own device.
    Local,
    /// And whoever has a connection to the domain and knows the key may read.
    RemoteRead,
}

/// Pages of this process that its device can reach, in huge pages where the system has any to give.
pub(super) struct Region {
    memory: Mapping,
    /// Dropped first, in `Drop`.
    registration: NonNull<sys::ibv_mr>,
    _pd: Arc<ProtectionDomain>,
}

// SAFETY: a registration may be used from any thread, and the memory is reached through unsafe functions only.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed memory of at least `len` bytes.
    pub(super) fn new(
        pd: &Arc<ProtectionDomain>,
        len: usize,
        access: Access,
    ) -> Result<Self, FabricError> {
        let memory = Mapping::new(len)?;
        let rights = match access {
            Access::Local => sys::ibv_access_flags::IBV_ACCESS_LOCAL_WRITE,
            // Not even the own device writes to it.
            Access::RemoteRead => sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ,
        };
        // SAFETY: the memory is mapped, and stays so until it is deregistered in `drop`.
        let registration = unsafe {
            sys::ibv_reg_mr(
                pd.as_ptr(),
                memory.start.as_ptr().cast(),
                memory.len,
                rights.0 as i32,
            )
        };
        let registration =
            NonNull::new(registration).ok_or_else(|| not_pinned(memory.len, errno()))?;
        Ok(Self {
            memory,
            registration,
            _pd: pd.clone(),
        })
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> usize {
        self.memory.len
    }

    /// Whether it lies in huge pages.
    pub(super) fn is_huge(&self) -> bool {
        self.memory.is_huge
    }

    /// Where it begins.
    pub(super) fn address(&self) -> u64 {
        self.memory.start.as_ptr() as u64
    }

    /// The key by which others may read it.
    pub(super) fn remote_key(&self) -> u32 {
        // SAFETY: registered as long as `self` lives.
        unsafe { (*self.registration.as_ptr()).rkey }
    }

    /// What a work request gathers from or scatters to; `None` where the region has no such bytes.
    pub(super) fn piece(&self, offset: usize, len: usize) -> Option<sys::ibv_sge> {
        let end = offset.checked_add(len)?;
        (end <= self.len()).then_some(())?;
        Some(sys::ibv_sge {
            addr: self.address() + offset as u64,
            length: u32::try_from(len).ok()?,
            // SAFETY: registered as long as `self` lives.
            lkey: unsafe { (*self.registration.as_ptr()).lkey },
        })
    }

    /// Bytes of it; `None` where it has none such.
    ///
    /// # Safety
    /// Until the result is dropped no device writes to them, and nobody calls [`Region::bytes_mut`] of any of them.
    pub(super) unsafe fn bytes(&self, offset: usize, len: usize) -> Option<&[u8]> {
        let end = offset.checked_add(len)?;
        (end <= self.len()).then_some(())?;
        // SAFETY: within the mapping, which has been zeroed, lives as long as `self`, and which nobody writes to by the contract.
        Some(unsafe { std::slice::from_raw_parts(self.memory.start.as_ptr().add(offset), len) })
    }

    /// Bytes of it, to be written; `None` where it has none such.
    ///
    /// # Safety
    /// Until the result is dropped no device writes to them, and nobody else has any of them borrowed.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn bytes_mut(&self, offset: usize, len: usize) -> Option<&mut [u8]> {
        let end = offset.checked_add(len)?;
        (end <= self.len()).then_some(())?;
        // SAFETY: within the mapping, which has been zeroed, lives as long as `self`, and which is the caller's by the contract.
        Some(unsafe { std::slice::from_raw_parts_mut(self.memory.start.as_ptr().add(offset), len) })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: registered once, deregistered only here, before its memory is unmapped. Queue pairs that name it hold it.
        unsafe { sys::ibv_dereg_mr(self.registration.as_ptr()) };
    }
}

/// Private zeroed pages.
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    is_huge: bool,
}

impl Mapping {
    fn new(len: usize) -> Result<Self, FabricError> {
        let huge = len.max(1).next_multiple_of(HUGE_PAGE_LEN);
        // Rounding up must not pin twice as much as was asked for.
        if huge <= len.saturating_mul(2) {
            if let Ok(mapping) = Self::of(huge, MapFlags::HUGETLB | MapFlags::HUGE_2MB) {
                return Ok(Self {
                    is_huge: true,
                    ..mapping
                });
            }
        }
        let len = len.max(1).next_multiple_of(PAGE_LEN);
        let mapping = Self::of(len, MapFlags::empty())
            .map_err(|error| failed(format!("cannot map {} KiB", len / 1024), error.into()))?;
        // SAFETY: advice about pages of our own that nobody else knows of. Advice may be refused.
        let _ = unsafe { madvise(mapping.start.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(mapping)
    }

    fn of(len: usize, flags: MapFlags) -> rustix::io::Result<Self> {
        // SAFETY: a fresh mapping, wherever the kernel puts it.
        let start = unsafe {
            mmap_anonymous(
                ptr::null_mut::<c_void>(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | flags,
            )
        }?;
        // A child of fork() must not share pages that the device writes to: its parent would be given copies.
        // SAFETY: advice about pages of our own that nobody else knows of.
        unsafe { madvise(start, len, Advice::LinuxDontFork) }?;
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(rustix::io::Errno::NOMEM)?,
            len,
            is_huge: false,
        })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped once, unmapped only here; the registration is gone by now.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_zeroed_and_no_shorter_than_asked_for() {
        for len in [0, 1, 4096, 4097, HUGE_PAGE_LEN, HUGE_PAGE_LEN + 1] {
            let mapping = Mapping::new(len).unwrap();
            assert!(mapping.len >= len.max(1) && mapping.len <= len.max(PAGE_LEN) * 2);
            // SAFETY: within the mapping, which nobody else knows of.
            let bytes = unsafe { std::slice::from_raw_parts(mapping.start.as_ptr(), mapping.len) };
            assert!(bytes.iter().all(|&byte| byte == 0));
        }
    }
}
