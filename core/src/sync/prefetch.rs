//! Hints that a cache line will be wanted.
#![allow(unsafe_code)]

use super::line_ring::Line;

/// The line will be read.
#[inline(always)]
pub(super) fn to_read(line: Option<&Line>) {
    #[cfg(all(target_arch = "x86_64", not(rdma_loom), not(miri)))]
    if let Some(line) = line {
        // SAFETY: a prefetch changes nothing that a program can see. Not by the intrinsic, which kernel builds lack.
        unsafe {
            core::arch::asm!(
                "prefetcht0 [{}]",
                in(reg) core::ptr::from_ref(line),
                options(nostack, preserves_flags, readonly)
            );
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(rdma_loom), not(miri))))]
    let _ = line;
}

/// The line will be written.
#[inline(always)]
pub(super) fn to_write(line: Option<&Line>) {
    #[cfg(all(target_arch = "x86_64", not(rdma_loom), not(miri)))]
    if let Some(line) = line {
        // SAFETY: as above. Processors without this prefetch take it for nothing.
        unsafe {
            core::arch::asm!(
                "prefetchw [{}]",
                in(reg) core::ptr::from_ref(line),
                options(nostack, preserves_flags, readonly)
            );
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(rdma_loom), not(miri))))]
    let _ = line;
}
