//! Why a process cannot become a seed, as its program is told, and the log.

use mitosis_core::uapi::refused;

use crate::log::{Line, Part};

/// What a process is refused for.
#[derive(Clone, Copy, Default)]
pub struct Refusal {
    /// One of [`refused`].
    pub reason: u32,
    /// An address or a file descriptor.
    pub at: u64,
}

impl Part for Refusal {
    fn put(&self, line: &mut Line) {
        match self.reason {
            refused::SHARED_MEMORY => "a writable shared mapping",
            refused::DEVICE_MEMORY => "a mapping of a device",
            refused::HUGETLB => "explicit huge pages",
            refused::TOO_MANY_VMAS => "too many mappings or files",
            refused::TOO_LARGE => "a descriptor too long",
            refused::FILE => "an open file",
            refused::THREADS => "more than one thread",
            _ => "a state that no child can have",
        }
        .put(line);
        " (at ".put(line);
        self.at.put(line);
        ")".put(line);
    }
}
