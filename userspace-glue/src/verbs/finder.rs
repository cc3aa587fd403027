//! A thread that finds the way back to senders.
//!
//! Finding a sender's link-layer address can take seconds if nobody answers. Whoever serves must not wait for that, so a
//! datagram's origin is handed over here while its receive buffer waits. Both directions are bounded; who floods a server
//! with unknown senders fills them, and only other unknown senders wait.

use std::sync::mpsc::{sync_channel, Receiver, SyncSender, TryRecvError};
use std::sync::Arc;

use super::device::Port;
use super::endpoint::Arrived;
use super::failure::failed;
use super::memory::ProtectionDomain;
use super::pair::{AddressHandle, GRH_LEN};
use super::peers::Source;
use super::queue::Completion;
use crate::fabric::{FabricError, Waker};

/// How many senders may be being looked for at a time.
pub(super) const IN_FLIGHT: usize = 16;

struct Job {
    arrived: Arrived,
    completion: Completion,
    grh: [u8; GRH_LEN],
}

/// What became of a search.
pub(super) struct Found {
    /// The datagram that it was for, whose buffer is to be given back.
    pub(super) arrived: Arrived,
    /// Where it came from.
    pub(super) source: Source,
    /// The way back.
    pub(super) address: Result<AddressHandle, FabricError>,
}

/// The serving end. When it is dropped, the thread ends with the search that it is at.
pub(super) struct Finder {
    jobs: SyncSender<Job>,
    found: Receiver<Found>,
    under_way: usize,
}

impl Finder {
    /// Starts the thread; `wake` is used when something was found.
    pub(super) fn start(
        port: &Port,
        pd: &Arc<ProtectionDomain>,
        wake: Waker,
    ) -> Result<Self, FabricError> {
        let (jobs, to_do) = sync_channel::<Job>(IN_FLIGHT);
        let (done, found) = sync_channel(IN_FLIGHT);
        let (port, pd) = (port.clone(), pd.clone());
        std::thread::Builder::new()
            .name("mitosis-find".into())
            .spawn(move || {
                for job in to_do {
                    let address = AddressHandle::to_sender(&pd, &port, &job.completion, &job.grh);
                    let found = Found {
                        source: Source::of(&job.completion, &job.grh),
                        arrived: job.arrived,
                        address,
                    };
                    if done.send(found).is_err() {
                        return;
                    }
                    wake.wake();
                }
            })
            .map_err(|error| failed("cannot start a thread", error))?;
        Ok(Self {
            jobs,
            found,
            under_way: 0,
        })
    }

    /// Whether another search can begin.
    pub(super) fn has_room(&self) -> bool {
        self.under_way < IN_FLIGHT
    }

    /// Begins a search, for which there must be room. The buffer comes back with what is found.
    pub(super) fn find(
        &mut self,
        arrived: Arrived,
        completion: Completion,
        grh: [u8; GRH_LEN],
    ) -> Result<(), Arrived> {
        let job = Job {
            arrived,
            completion,
            grh,
        };
        match self.jobs.try_send(job) {
            Ok(()) => {
                self.under_way += 1;
                Ok(())
            }
            Err(error) => {
                let (std::sync::mpsc::TrySendError::Full(job)
                | std::sync::mpsc::TrySendError::Disconnected(job)) = error;
                Err(job.arrived)
            }
        }
    }

    /// The next search that has ended.
    #[inline]
    pub(super) fn found(&mut self) -> Option<Found> {
        if self.under_way == 0 {
            return None;
        }
        match self.found.try_recv() {
            Ok(found) => {
                self.under_way -= 1;
                Some(found)
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        }
    }
}
