//! The atomics and the cell that `sync` is made of: the real ones, or loom's under
//! `cfg(rdma_loom)`.

#[cfg(rdma_loom)]
pub(super) use loom::{
    cell::UnsafeCell,
    sync::atomic::{fence, AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

#[cfg(not(rdma_loom))]
pub(super) use core::sync::atomic::{fence, AtomicBool, AtomicU64, AtomicUsize, Ordering};

/// `core`'s cell with the access methods of loom's.
#[cfg(not(rdma_loom))]
pub(super) struct UnsafeCell<T>(core::cell::UnsafeCell<T>);

#[cfg(not(rdma_loom))]
impl<T> UnsafeCell<T> {
    pub(super) const fn new(value: T) -> Self {
        Self(core::cell::UnsafeCell::new(value))
    }

    /// Calls `access` with a pointer through which the value may be changed if nothing else reads
    /// or writes it.
    #[inline(always)]
    pub(super) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}
