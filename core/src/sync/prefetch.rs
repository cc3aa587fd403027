//! A hint that a cache line will be wanted.
#![allow(unsafe_code)]

/// The line will be written.
#[inline(always)]
pub(super) fn to_write<T>(line: Option<&T>) {
    #[cfg(all(target_arch = "x86_64", not(rdma_loom), not(miri)))]
    if let Some(line) = line {
        // SAFETY: a prefetch changes nothing that a program can see. Not by the intrinsic, which kernel builds lack. Processors
        // without this one take it for nothing.
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
