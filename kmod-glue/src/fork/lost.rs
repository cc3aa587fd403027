//! Why a child cannot have a page, or a machine a seed.

use mitosis_core::wire::fork::Status;

use super::machine::MachineError;
use crate::errno::Errno;
use crate::log::{Line, Part};

/// Why a page cannot be had.
#[derive(Clone, Copy)]
pub enum PageError {
    /// This machine is out of memory.
    NoMemory,
    /// The seed has nothing there.
    Beyond,
    /// The seed's machine says no.
    Refused(Status),
    /// The seed's machine cannot be reached.
    Unreachable(MachineError),
    /// A READ failed.
    Read(Errno),
}

impl PageError {
    /// Whether it may be different in a moment.
    pub fn may_pass(&self) -> bool {
        match self {
            PageError::Unreachable(error) => error.may_pass(),
            PageError::Read(_) | PageError::Refused(Status::NotAttached) => true,
            _ => false,
        }
    }
}

impl Part for PageError {
    fn put(&self, line: &mut Line) {
        match self {
            PageError::NoMemory => "this machine is out of memory".put(line),
            PageError::Beyond => "the seed has nothing there".put(line),
            PageError::Refused(status) => status.text().put(line),
            PageError::Unreachable(error) => error.put(line),
            PageError::Read(errno) => {
                "READ failed: ".put(line);
                errno.put(line);
            }
        }
    }
}

impl From<Errno> for PageError {
    fn from(_: Errno) -> PageError {
        PageError::NoMemory
    }
}

impl From<MachineError> for PageError {
    fn from(error: MachineError) -> PageError {
        PageError::Unreachable(error)
    }
}
