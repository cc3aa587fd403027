//! A thread that finds the way back to senders.
//!
//! Finding a sender's link-layer address can take seconds if nobody answers. The serving thread must not wait for
//! that, so it hands the datagram's origin over here and goes on. Both directions are bounded rings; whoever floods
//! the server with unknown senders fills them, and only other unknown senders wait.

use mitosis_core::sync::spsc::{Consumer, Producer, Ring};
use mitosis_core::sync::stop::Stop;

use crate::devices::Port;
use crate::endpoint::Source;
use crate::errno::Errno;
use crate::thread::Event;
use crate::verbs::{AddressHandle, Completion, ProtectionDomain, GRH_LEN};

/// How many senders may be being found at a time.
pub const IN_FLIGHT: usize = 16;

/// A datagram whose sender is unknown. Its receive buffer stays with the serving thread.
pub struct Job {
    /// Which of the server's ports it came to.
    pub port: usize,
    /// The completion that brought it.
    pub completion: Completion,
    /// Its global routing header.
    pub grh: [u8; GRH_LEN],
}

/// What became of a job.
pub struct Found {
    /// The job's completion, which names the receive buffer.
    pub completion: Completion,
    /// Where it came from.
    pub source: Source,
    /// The way back.
    pub address: Result<AddressHandle, Errno>,
}

/// Jobs on their way to the resolver.
pub type Jobs = Ring<Job, IN_FLIGHT>;
/// Results on their way back.
pub type Results = Ring<Found, IN_FLIGHT>;

/// The resolver's side of the rings.
pub struct Resolver<'a> {
    /// The server's ports, each with its protection domain; the domains outlive what is in the rings.
    pub ports: &'a [(Port, ProtectionDomain)],
    /// Where jobs come from.
    pub jobs: Consumer<'a, Job, IN_FLIGHT>,
    /// Where results go. There are never more jobs than it has room for.
    pub results: Producer<'a, Found, IN_FLIGHT>,
    /// Signalled when there is a job, and when it is time to stop.
    pub wake: &'a Event,
    /// Signalled when there is a result.
    pub found: &'a Event,
    /// When to end.
    pub stop: &'a Stop,
}

impl Resolver<'_> {
    /// The life of the resolver's thread.
    pub fn run(mut self) {
        const NAP_NS: u64 = 1_000_000_000;
        while !self.stop.wanted() {
            let Some(job) = self.jobs.pop() else {
                self.wake.wait(NAP_NS);
                continue;
            };
            let Some((port, pd)) = self.ports.get(job.port) else {
                continue;
            };
            // SAFETY: the domain is borrowed from whoever owns the rings and the peers, and outlives them there.
            let address = unsafe { AddressHandle::to_sender(pd, port, &job.completion, &job.grh) };
            let found = Found {
                source: Source::of(&job.completion, &job.grh, job.port),
                completion: job.completion,
                address,
            };
            // The serving thread has at most IN_FLIGHT jobs out, so there is room.
            drop(self.results.push(found));
            self.found.signal();
        }
    }
}
