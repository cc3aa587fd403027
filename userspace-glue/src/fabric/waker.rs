//! What ends a wait from another thread.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{eventfd, EventfdFlags};
use rustix::io::Errno;

use super::{FabricError, FabricErrorKind};

/// Ends the waits of a fabric from any thread: the one that is under way, or else the next. A fabric makes one at its
/// start, sleeps on [`Waker::as_fd`] among others, and calls [`Waker::clear`] once it has woken.
#[derive(Clone, Debug)]
pub struct Waker {
    counter: Arc<OwnedFd>,
}

impl Waker {
    /// A waker that has not been used.
    pub fn new() -> Result<Self, FabricError> {
        let counter =
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| {
                let what = "cannot create an eventfd";
                FabricError::new(
                    FabricErrorKind::Exhausted,
                    what,
                    "raise the limit of open files (ulimit -n)",
                )
                .because(errno)
            })?;
        Ok(Self {
            counter: Arc::new(counter),
        })
    }

    /// Ends the wait.
    pub fn wake(&self) {
        // It fails when the counter is full only, and then it is not 0.
        let _ = rustix::io::write(&*self.counter, &1_u64.to_ne_bytes());
    }

    /// From now on waits are as long as they were asked to be.
    pub fn clear(&self) {
        let mut count = [0; 8];
        while rustix::io::read(&*self.counter, &mut count) == Err(Errno::INTR) {}
    }
}

impl AsFd for Waker {
    /// Readable while the wait is to end.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.counter.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{poll, PollFd, PollFlags, Timespec};

    fn is_readable(waker: &Waker) -> bool {
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut [PollFd::new(waker, PollFlags::IN)], Some(&now)).unwrap() == 1
    }

    #[test]
    fn it_is_readable_from_wake_to_clear() {
        let waker = Waker::new().unwrap();
        assert!(!is_readable(&waker));
        let other = waker.clone();
        std::thread::spawn(move || {
            other.wake();
            other.wake();
        })
        .join()
        .unwrap();
        assert!(is_readable(&waker));
        waker.clear();
        assert!(!is_readable(&waker));
        waker.clear();
    }
}
