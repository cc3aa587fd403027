//! Processes of this machine, by a reference that no other process takes over.

use core::ptr::NonNull;

use super::ffi::{self, vma_flag};
use mitosis_core::descriptor::MAX_VMAS;

/// A process, or what is left of it.
pub struct Process(NonNull<ffi::Pid>);

// SAFETY: the kernel counts references on what this points to, which any thread may use and give back.
unsafe impl Send for Process {}
// SAFETY: as above.
unsafe impl Sync for Process {}

impl Process {
    /// A child of the caller's that lives, by its number in the caller's namespace.
    pub fn child_of_caller(number: i32) -> Option<Process> {
        // SAFETY: any number may be asked for; a reference is taken where it is a child's.
        NonNull::new(unsafe { ffi::mitosis_process_child(number) }).map(Process)
    }

    /// Whether it has not begun to end.
    pub fn is_alive(&self) -> bool {
        // SAFETY: `self` holds a reference.
        unsafe { ffi::mitosis_process_is_alive(self.0.as_ptr()) }
    }

    /// A plain `wait()` does not see it from here on, while its parent, the caller, is there.
    pub fn hide_from_wait(&self) {
        // SAFETY: `self` holds a reference.
        unsafe { ffi::mitosis_process_hide(self.0.as_ptr()) }
    }

    /// Whether no mapping of its is of a kind that a seed must not have, and they are not too many.
    pub fn is_plain(&self) -> bool {
        let mut count = 0;
        // SAFETY: `self` holds a reference; `count` is valid during the call.
        let flags = unsafe { ffi::mitosis_process_vma_flags(self.0.as_ptr(), &mut count) };
        let refused = vma_flag::MAY_WRITE | vma_flag::DEVICE | vma_flag::HUGETLB;
        count > 0 && count as usize <= MAX_VMAS && flags & refused == 0
    }
}

impl PartialEq for Process {
    fn eq(&self, other: &Process) -> bool {
        self.0 == other.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // SAFETY: the reference is `self`'s, and given back once.
        unsafe { ffi::mitosis_process_put(self.0.as_ptr()) }
    }
}
