//! A UD queue pair with its rings: datagrams in, datagrams out.
//!
//! Who has which memory, the rule that the proofs here rest on:
//! - A receive buffer is the device's from the moment when it is posted until its completion has been polled, then this
//!   process's until it is given back. It is given back exactly once, whatever the datagram was.
//! - A place of the send ring is written before its send is posted, and again only after a completion has told that this
//!   send, or a later one, is over: sends complete in order.
//!
//! Only every [`SIGNAL_INTERVAL`]th send asks for a completion. Short datagrams travel in their work requests (inline).

use std::sync::Arc;

use mitosis_core::wire::MAX_DATAGRAM;

use super::device::Port;
use super::failure::failed;
use super::memory::{Access, ProtectionDomain, Region};
use super::pair::{AddressHandle, Capacity, Outgoing, QueuePair, Receive, GRH_LEN};
use super::queue::{status_name, Completion, CompletionChannel, CompletionQueue, BATCH};
use crate::fabric::{FabricError, FabricErrorKind};

/// How many sends share a completion.
const SIGNAL_INTERVAL: u64 = 16;
/// Sends that may be outstanding.
const SEND_DEPTH: u32 = 256;
/// The longest datagram that travels in its work request, if the device can.
const INLINE_LEN: u32 = 256;
/// Distance of two send buffers.
const SEND_STRIDE: usize = MAX_DATAGRAM;
/// A global routing header stands at the end of this much room, so that the datagram after it begins a cache line.
const GRH_ROOM: usize = 64;
/// How many receive buffers are posted at once.
const GIVE_BACK: usize = 16;

const _: () = assert!(GRH_LEN <= GRH_ROOM && GIVE_BACK <= BATCH);

/// The numbers of the queue pair's regions.
const SENDS: usize = 0;
const RECEIVES: usize = 1;

/// Where a datagram goes.
#[derive(Clone)]
pub(super) struct Destination {
    /// The way to its port.
    pub(super) address: Arc<AddressHandle>,
    /// Its queue pair number.
    pub(super) qpn: u32,
    /// The key that its queue pair asks for.
    pub(super) qkey: u32,
}

/// See the module's front comment.
pub(super) struct Endpoint {
    pair: QueuePair,
    channel: Arc<CompletionChannel>,
    /// Sends that are written and not posted; they go together.
    queued: Vec<Outgoing>,
    /// How many sends were ever queued; the last one's number.
    sent: u64,
    /// The last one that is over.
    over: u64,
    /// Sends that there was no room for.
    dropped: u64,
    completions: [Completion; BATCH],
    /// Receives that have completed and have not been taken yet: `next..arrived` of `completions`.
    next: usize,
    arrived: usize,
    given_back: Vec<Receive>,
    receive_buffers: u32,
    /// Places of the send ring.
    depth: u64,
    datagram_len: usize,
}

/// A receive that has completed. Its buffer is this process's until [`Endpoint::give_back`].
pub(super) struct Arrived {
    index: usize,
    len: usize,
}

impl Endpoint {
    /// An endpoint on `port` with as many receive buffers as there may be, at most `receive_buffers`, all posted.
    pub(super) fn open(
        port: &Port,
        pd: &Arc<ProtectionDomain>,
        qkey: u32,
        receive_buffers: u32,
    ) -> Result<Self, FabricError> {
        let receive_buffers = receive_buffers
            .min(port.max_work_requests())
            .min(port.max_completions())
            .max(1);
        let sends = SEND_DEPTH.min(port.max_work_requests());
        let datagram_len = usize::from(port.mtu()).min(MAX_DATAGRAM);
        let channel = CompletionChannel::new(port)?;
        let regions = vec![
            Arc::new(Region::new(
                pd,
                sends as usize * SEND_STRIDE,
                Access::Local,
            )?),
            Arc::new(Region::new(
                pd,
                receive_buffers as usize * stride(datagram_len),
                Access::Local,
            )?),
        ];
        let send_cq = CompletionQueue::new(port, sends, None)?;
        let recv_cq = CompletionQueue::new(port, receive_buffers, Some(&channel))?;
        let capacity = Capacity {
            sends,
            receives: receive_buffers,
            inline: INLINE_LEN,
        };
        let queues = [&send_cq, &recv_cq];
        let pair = QueuePair::datagrams(port, pd, queues, regions, capacity, qkey)?;
        let mut endpoint = Self {
            pair,
            channel,
            queued: Vec::with_capacity(BATCH),
            sent: 0,
            over: 0,
            dropped: 0,
            completions: Completion::batch(),
            next: 0,
            arrived: 0,
            given_back: Vec::with_capacity(BATCH),
            receive_buffers,
            depth: u64::from(sends),
            datagram_len,
        };
        for index in 0..receive_buffers as usize {
            endpoint.give_back(Arrived { index, len: 0 })?;
        }
        endpoint.post_given_back()?;
        Ok(endpoint)
    }

    /// The queue pair's number.
    pub(super) fn qpn(&self) -> u32 {
        self.pair.number()
    }

    /// Longest datagram in bytes.
    pub(super) fn datagram_len(&self) -> usize {
        self.datagram_len
    }

    /// How many receive buffers there are.
    pub(super) fn receive_buffers(&self) -> u32 {
        self.receive_buffers
    }

    /// Whether the receive buffers lie in huge pages.
    pub(super) fn is_huge(&self) -> bool {
        self.pair
            .region(RECEIVES)
            .is_some_and(|region| region.is_huge())
    }

    /// How many sends there was no room for.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Readable when a datagram has arrived since [`Endpoint::arm`].
    pub(super) fn channel(&self) -> &CompletionChannel {
        &self.channel
    }

    /// The next receive that has completed.
    #[inline]
    pub(super) fn receive(&mut self) -> Result<Option<Arrived>, FabricError> {
        if self.next == self.arrived && !self.poll()? {
            return Ok(None);
        }
        let Some(completion) = self.completions.get(self.next) else {
            return Ok(None);
        };
        self.next += 1;
        if !completion.is_success() {
            return Err(broken("a receive", completion.status()));
        }
        let arrived = Arrived {
            index: completion.wr_id() as usize,
            len: completion.byte_len(),
        };
        Ok(Some(arrived))
    }

    /// The completion of what [`Endpoint::receive`] yielded last.
    #[inline]
    pub(super) fn completion(&self) -> Option<&Completion> {
        self.completions.get(self.next.checked_sub(1)?)
    }

    /// Looks for completed receives, when there are none left; whether there are any.
    fn poll(&mut self) -> Result<bool, FabricError> {
        self.next = 0;
        self.arrived = 0;
        self.arrived = self.pair.recv_cq().poll(&mut self.completions)?.len();
        Ok(self.arrived > 0)
    }

    /// The global routing header of what arrived, and the datagram. `None` if it is no datagram.
    #[inline]
    pub(super) fn contents(&self, arrived: &Arrived) -> Option<(&[u8; GRH_LEN], &[u8])> {
        let region = self.pair.region(RECEIVES)?;
        let at = arrived.index * stride(self.datagram_len) + GRH_ROOM - GRH_LEN;
        // SAFETY: an `Arrived` is of a buffer whose completion was polled and which has not been given back, which takes it. Until
        // then the device does not write to it, and nobody in this process ever does.
        let bytes = unsafe { region.bytes(at, arrived.len) }?;
        bytes.split_first_chunk()
    }

    /// Gives a receive buffer back to the device, together with others: see [`Endpoint::flush`].
    #[inline]
    pub(super) fn give_back(&mut self, arrived: Arrived) -> Result<(), FabricError> {
        self.given_back.push(Receive {
            wr_id: arrived.index as u64,
            region: RECEIVES,
            offset: arrived.index * stride(self.datagram_len) + GRH_ROOM - GRH_LEN,
            len: GRH_LEN + self.datagram_len,
        });
        if self.given_back.len() >= GIVE_BACK {
            self.post_given_back()?;
        }
        Ok(())
    }

    fn post_given_back(&mut self) -> Result<(), FabricError> {
        if !self.given_back.is_empty() {
            self.pair.post_receives(&self.given_back)?;
            self.given_back.clear();
        }
        Ok(())
    }

    /// Queues a datagram of two pieces, which are copied. It is dropped if no place of the ring is free.
    #[inline]
    pub(super) fn send(
        &mut self,
        to: &Destination,
        header: &[u8],
        payload: &[u8],
    ) -> Result<(), FabricError> {
        let len = header.len() + payload.len();
        if len > self.datagram_len {
            return Err(FabricError::new(
                FabricErrorKind::Misuse,
                format!("a datagram of {len} bytes"),
                format!("the path carries {}", self.datagram_len),
            ));
        }
        let depth = self.depth;
        if self.sent - self.over >= depth / 2 {
            self.reap()?;
        }
        // The last place stays free, so that the place of send n is that of one that is over.
        if self.sent - self.over >= depth - 1 {
            self.dropped += 1;
            return Ok(());
        }
        let number = self.sent + 1;
        let offset = (number % depth) as usize * SEND_STRIDE;
        let Some(region) = self.pair.region(SENDS) else {
            return Ok(());
        };
        // SAFETY: the sends whose numbers share this place are `depth` apart; the last of them is over, as fewer than `depth` are
        // not. So the device does not read the place, and nobody else in this process ever looks at it.
        let place = unsafe { region.bytes_mut(offset, len) };
        let Some((first, second)) =
            place.and_then(|place| place.split_at_mut_checked(header.len()))
        else {
            return Ok(());
        };
        first.copy_from_slice(header);
        second.copy_from_slice(payload);
        self.sent = number;
        self.queued.push(Outgoing {
            wr_id: number,
            region: SENDS,
            offset,
            len,
            signaled: number % SIGNAL_INTERVAL == 0,
            address: to.address.clone(),
            qpn: to.qpn,
            qkey: to.qkey,
        });
        if self.queued.len() == BATCH {
            self.post_queued()?;
        }
        Ok(())
    }

    /// Posts the queued sends and the receive buffers that were given back: a doorbell each.
    #[inline]
    pub(super) fn flush(&mut self) -> Result<(), FabricError> {
        self.post_queued()?;
        self.post_given_back()
    }

    fn post_queued(&mut self) -> Result<(), FabricError> {
        if self.queued.is_empty() {
            return Ok(());
        }
        let taken = self.pair.post_sends(&self.queued)?;
        let left = self.queued.len() - taken;
        if left > 0 {
            // The device has less room than it promised. What it did not take counts as never sent.
            self.sent -= left as u64;
            self.dropped += left as u64;
        }
        self.queued.clear();
        Ok(())
    }

    /// Learns which sends are over.
    fn reap(&mut self) -> Result<(), FabricError> {
        let mut completions = Completion::batch();
        loop {
            let completed = self.pair.send_cq().poll(&mut completions)?;
            for completion in completed {
                match completion.status() {
                    0 => {}
                    // The pair itself is broken, by its owner's fault or the device's: a datagram that cannot be delivered is none.
                    status => return Err(broken("a send", status)),
                }
                self.over = self.over.max(completion.wr_id());
            }
            if completed.len() < BATCH {
                return Ok(());
            }
        }
    }

    /// Asks for a signal of the channel at the next arrival; whether there is one to be taken first.
    pub(super) fn arm(&mut self) -> Result<bool, FabricError> {
        if self.next < self.arrived {
            return Ok(true);
        }
        self.pair.recv_cq().arm()?;
        // What came between the last look and the arming gives no signal.
        self.poll()
    }

    /// Takes the channel's signals.
    pub(super) fn clear_signals(&self) {
        self.pair.recv_cq().clear_signals();
    }
}

/// Distance of two receive buffers.
fn stride(datagram_len: usize) -> usize {
    GRH_ROOM + datagram_len.next_multiple_of(64)
}

fn broken(what: &str, status: u32) -> FabricError {
    failed(
        format!(
            "{what} ended with '{}' (status {status})",
            status_name(status)
        ),
        std::io::Error::from_raw_os_error(libc::EIO),
    )
}
