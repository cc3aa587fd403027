//! A UD queue pair with its receive ring: datagrams in, datagrams out.
//!
//! Ownership of buffers, the rule that the rest relies on:
//! - A receive buffer is the device's from [`Endpoint::give_back`] until its completion, then the caller's until it is
//!   given back. It is given back exactly once, whatever the datagram was: a bad datagram costs no buffer.
//! - A payload that is sent is the caller's. [`Endpoint::send`] returns a ticket; until [`Outbox::is_sent`] of it, the
//!   payload is not to be written. Headers lie in a ring of the endpoint's own.
//!
//! Sends complete in order, so only every [`SIGNAL_INTERVAL`]th asks for a completion, and those whose payload is to be
//! written again soon.

use core::ops::Range;

use mitosis_core::wire::resolution::QKEY;
use mitosis_core::wire::{MAX_CONTROL_LEN, MAX_DATAGRAM};

use crate::buffer::PagedBuffer;
use crate::devices::{Gid, Port};
use crate::errno::Errno;
use crate::memory::{Table, PAGE_LEN};
use crate::thread::{give_way, now_ns, Event};
use crate::verbs::{
    Completion, CompletionQueue, Destination, Direction, MappedPage, Pieces, ProtectionDomain,
    QueuePair, QueuePairConfig, QueuedSend, Receive, BATCH, GRH_LEN, SENDS,
};

/// How many sends share one completion.
const SIGNAL_INTERVAL: u64 = 16;

/// Sends that may be outstanding: enough for several completions to be on their way.
pub const SEND_DEPTH: u32 = 128;

/// How long a send may take that the device has. It needs microseconds, unless it is broken.
const SEND_PATIENCE_NS: u64 = 2_000_000_000;

/// Distance of two GRHs in their page.
const GRH_STRIDE: usize = 64;
/// GRHs that a page holds.
const GRHS_A_PAGE: usize = PAGE_LEN / GRH_STRIDE;

/// Distance of two headers in their page.
const HEADER_STRIDE: usize = 128;
/// Headers that a page holds.
const HEADERS_A_PAGE: usize = PAGE_LEN / HEADER_STRIDE;

const _: () = assert!(MAX_DATAGRAM <= PAGE_LEN && GRH_LEN <= GRH_STRIDE);
const _: () = assert!(MAX_CONTROL_LEN <= HEADER_STRIDE);
const _: () = assert!((SEND_DEPTH as usize).is_multiple_of(HEADERS_A_PAGE));

/// Names a send.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A queue pair and its two halves. The queue pair is dropped first, so that nothing posted refers to what follows.
pub struct Endpoint<'a> {
    qp: QueuePair<'a>,
    outbox: Outbox<'a>,
    inbox: Inbox<'a>,
    queued: Queued,
}

/// Datagrams to one destination that are posted together: see [`Endpoint::burst`].
pub struct Burst<'e, 'a> {
    endpoint: &'e mut Endpoint<'a>,
    to: &'e Destination<'e>,
}

/// Sends that a burst has not posted yet; none while there is no burst.
struct Queued {
    sends: [QueuedSend; SENDS],
    len: usize,
}

/// The receiving half.
pub struct Inbox<'a> {
    cq: CompletionQueue<'a>,
    buffers: Table<MappedPage>,
    grhs: Table<MappedPage>,
    datagram_len: u32,
    given_back: [Receive; BATCH],
    given_back_len: usize,
    /// Receives that have completed and whose buffers have not been given back.
    held: usize,
}

/// The sending half.
pub struct Outbox<'a> {
    cq: CompletionQueue<'a>,
    /// One for each send that may be outstanding, by ticket.
    headers: Table<MappedPage>,
    posted: u64,
    completed: u64,
}

/// What a completed receive holds.
pub struct Received<'e> {
    /// Its global routing header.
    pub grh: &'e [u8; GRH_LEN],
    /// The datagram.
    pub datagram: &'e [u8],
}

/// Longest datagram of an endpoint on `port`, in bytes.
pub fn datagram_len(port: &Port) -> u16 {
    port.mtu_bytes().min(MAX_DATAGRAM as u32) as u16
}

impl<'a> Endpoint<'a> {
    /// An endpoint on `port` with `recv_depth` receive buffers posted, whose arrivals signal `event`.
    pub fn open(
        port: &Port,
        pd: &'a ProtectionDomain,
        event: &'a Event,
        recv_depth: u32,
    ) -> Result<Endpoint<'a>, Errno> {
        let recv_depth = recv_depth.min(port.max_qp_wr()).max(BATCH as u32);
        let receives = recv_depth as usize;
        let inbox = Inbox {
            cq: CompletionQueue::new(port, recv_depth, event)?,
            buffers: pages(pd, receives, Direction::FromDevice)?,
            grhs: pages(pd, receives.div_ceil(GRHS_A_PAGE), Direction::FromDevice)?,
            datagram_len: datagram_len(port).into(),
            given_back: [Receive::default(); BATCH],
            given_back_len: 0,
            held: receives,
        };
        let headers = SEND_DEPTH as usize / HEADERS_A_PAGE;
        let outbox = Outbox {
            cq: CompletionQueue::new(port, SEND_DEPTH, event)?,
            headers: pages(pd, headers, Direction::ToDevice)?,
            posted: 0,
            completed: 0,
        };
        let config = QueuePairConfig {
            send_depth: SEND_DEPTH,
            recv_depth,
            qkey: QKEY,
        };
        // SAFETY: the queues, the ring and the headers stand after `qp` in the struct and are dropped after it; payloads
        // are held by owners that drop the endpoint first (`Connection`, `PortLine`, the flood).
        let qp = unsafe { QueuePair::new(port, pd, &outbox.cq, &inbox.cq, &config)? };
        let queued = Queued {
            sends: [QueuedSend::EMPTY; SENDS],
            len: 0,
        };
        let mut endpoint = Endpoint {
            qp,
            outbox,
            inbox,
            queued,
        };
        for index in 0..u64::from(recv_depth) {
            endpoint.give_back(index)?;
        }
        endpoint.flush()?;
        Ok(endpoint)
    }

    /// The queue pair's number.
    pub fn qpn(&self) -> u32 {
        self.qp.number()
    }

    /// Longest datagram in bytes.
    pub fn datagram_len(&self) -> u16 {
        self.inbox.datagram_len as u16
    }

    /// How many receive buffers there are.
    pub fn receive_buffers(&self) -> usize {
        self.inbox.buffers.len()
    }

    /// How many of them the device does not have.
    pub fn held(&self) -> usize {
        self.inbox.held
    }

    /// Both halves, for those who answer while they look at what they received.
    pub fn halves(&mut self) -> (&Inbox<'a>, &mut Outbox<'a>) {
        (&self.inbox, &mut self.outbox)
    }

    /// The sending half.
    pub fn outbox(&mut self) -> &mut Outbox<'a> {
        &mut self.outbox
    }

    /// What the completion brought: see [`Inbox::received`].
    pub fn received(&self, completion: &Completion) -> Option<Received<'_>> {
        self.inbox.received(completion)
    }

    /// The receives that have completed, at most [`BATCH`].
    pub fn poll<'c>(&mut self, completions: &'c mut [Completion; BATCH]) -> &'c [Completion] {
        let completed = self.inbox.cq.poll(completions);
        self.inbox.held += completed.len();
        completed
    }

    /// Asks for a signal of the event at the next arrival. True when something may have arrived already.
    pub fn arm(&mut self) -> bool {
        self.inbox.cq.arm()
    }

    /// Gives the receive buffer of a completion back to the device, together with others: see [`Endpoint::flush`].
    pub fn give_back(&mut self, wr_id: u64) -> Result<(), Errno> {
        let inbox = &mut self.inbox;
        let index = wr_id as usize;
        let grhs = inbox.grhs.get(index / GRHS_A_PAGE);
        let (Some(buffer), Some(grhs)) = (inbox.buffers.get(index), grhs) else {
            return Err(Errno::INVALID);
        };
        let receive = Receive {
            wr_id,
            grh_dma: grhs.dma + (index % GRHS_A_PAGE * GRH_STRIDE) as u64,
            data_dma: buffer.dma,
            data_len: inbox.datagram_len,
        };
        if let Some(place) = inbox.given_back.get_mut(inbox.given_back_len) {
            *place = receive;
            inbox.given_back_len += 1;
            inbox.held = inbox.held.saturating_sub(1);
        }
        if inbox.given_back_len == BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Posts the buffers that were given back: one doorbell for up to [`BATCH`].
    pub fn flush(&mut self) -> Result<(), Errno> {
        match self.inbox.given_back.get(..self.inbox.given_back_len) {
            Some(receives) if !receives.is_empty() => self.qp.post_receives(receives)?,
            _ => {}
        }
        self.inbox.given_back_len = 0;
        Ok(())
    }

    /// Datagrams to `to` that are posted together.
    #[inline]
    pub fn burst<'e>(&'e mut self, to: &'e Destination<'e>) -> Burst<'e, 'a> {
        Burst { endpoint: self, to }
    }

    /// Sends one datagram: see [`Burst::send`].
    pub fn send(
        &mut self,
        to: &Destination<'_>,
        header_len: usize,
        payload: Option<(&PagedBuffer, Range<u32>)>,
        signaled: bool,
    ) -> Result<Ticket, Errno> {
        let mut burst = self.burst(to);
        let ticket = burst.send(header_len, payload, signaled)?;
        burst.ring()?;
        Ok(ticket)
    }

    /// Sends the first `len` bytes of a page of the caller's own; asks for a completion.
    pub fn send_page(
        &mut self,
        to: &Destination<'_>,
        page: &MappedPage,
        len: usize,
    ) -> Result<Ticket, Errno> {
        let mut burst = self.burst(to);
        let ticket = burst.send_page(page, len, true)?;
        burst.ring()?;
        Ok(ticket)
    }
}

impl<'a> Burst<'_, 'a> {
    /// Sends the first `header_len` bytes of what [`Outbox::header`] gave, and after them `range` of `payload`, with the
    /// next [`Burst::ring`] at the latest. `signaled` asks for a completion of its own, without which the ticket is not
    /// known to be over for long.
    #[inline]
    pub fn send(
        &mut self,
        header_len: usize,
        payload: Option<(&PagedBuffer, Range<u32>)>,
        signaled: bool,
    ) -> Result<Ticket, Errno> {
        let outbox = &self.endpoint.outbox;
        let (page, offset) = header_place(outbox.posted + 1);
        let page = outbox.headers.get(page).ok_or(Errno::INVALID)?;
        let mut pieces = Pieces::default();
        pieces.push(page, offset, header_len.min(HEADER_STRIDE));
        if let Some((buffer, range)) = payload {
            buffer.gather(range, &mut pieces);
        }
        self.queue(&pieces, signaled)
    }

    /// Sends the first `len` bytes of a page of the caller's own, as [`Burst::send`] does.
    pub fn send_page(
        &mut self,
        page: &MappedPage,
        len: usize,
        signaled: bool,
    ) -> Result<Ticket, Errno> {
        let mut pieces = Pieces::default();
        pieces.push(page, 0, len);
        self.queue(&pieces, signaled)
    }

    /// The sending half, for the next header.
    #[inline]
    pub fn outbox(&mut self) -> &mut Outbox<'a> {
        &mut self.endpoint.outbox
    }

    #[inline]
    fn queue(&mut self, pieces: &Pieces, signaled: bool) -> Result<Ticket, Errno> {
        let Endpoint { outbox, queued, .. } = &mut *self.endpoint;
        let ticket = outbox.posted + 1;
        let signaled = signaled || ticket.is_multiple_of(SIGNAL_INTERVAL);
        let send = QueuedSend::new(self.to, pieces, ticket, signaled);
        *queued.sends.get_mut(queued.len).ok_or(Errno::INVALID)? = send;
        queued.len += 1;
        outbox.posted = ticket;
        if queued.len == queued.sends.len() {
            self.ring()?;
        }
        Ok(Ticket(ticket))
    }

    /// Posts what is queued: one doorbell. What cannot be posted is as if it had never been sent.
    #[inline]
    pub fn ring(&mut self) -> Result<(), Errno> {
        let Endpoint {
            qp, outbox, queued, ..
        } = &mut *self.endpoint;
        let len = core::mem::take(&mut queued.len);
        match queued.sends.get(..len) {
            Some(sends) if !sends.is_empty() => {
                // SAFETY: all were queued by this burst, as it rings before it ends; their address handle is that of
                // `self.to`, which it borrows.
                let posted = unsafe { qp.post_sends(sends) };
                posted.map_err(|(posted, errno)| {
                    outbox.posted -= (len - posted.min(len)) as u64;
                    errno
                })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Burst<'_, '_> {
    fn drop(&mut self) {
        // Only what an error left: who cares for it has rung.
        let _ = self.ring();
    }
}

impl Inbox<'_> {
    /// What the completion brought. `None` if it brought less than a GRH, or names no buffer.
    pub fn received(&self, completion: &Completion) -> Option<Received<'_>> {
        let index = usize::try_from(completion.wr_id).ok()?;
        let len = (completion.byte_len as usize).checked_sub(GRH_LEN)?;
        let grh_at = index % GRHS_A_PAGE * GRH_STRIDE;
        let grhs = self.grhs.get(index / GRHS_A_PAGE)?;
        let buffer = self.buffers.get(index)?;
        grhs.sync_for_cpu(grh_at, GRH_LEN);
        buffer.sync_for_cpu(0, len);
        Some(Received {
            grh: grhs.page.bytes().get(grh_at..)?.first_chunk()?,
            datagram: buffer.page.bytes().get(..len)?,
        })
    }
}

impl Outbox<'_> {
    /// The place for the header of the next send. Waits until one more send can be outstanding: tickets whose headers share
    /// a place are SEND_DEPTH apart, so that the place is free then.
    #[inline]
    pub fn header(&mut self) -> Result<&mut [u8; MAX_CONTROL_LEN], Errno> {
        let outstanding = self.posted - self.completed;
        if outstanding >= u64::from(SEND_DEPTH) / 2 {
            self.reap();
        }
        if self.posted - self.completed >= u64::from(SEND_DEPTH) - 1 {
            self.wait_sent(Ticket(self.completed + SIGNAL_INTERVAL))?;
        }
        let (page, offset) = header_place(self.posted + 1);
        let page = self.headers.get_mut(page).ok_or(Errno::INVALID)?;
        let place = page.page.bytes_mut().get_mut(offset..);
        place
            .and_then(<[u8]>::first_chunk_mut)
            .ok_or(Errno::INVALID)
    }

    /// Whether a send that asked for a completion has completed, so that its payload may be written.
    pub fn is_sent(&mut self, ticket: Ticket) -> bool {
        if ticket.0 > self.completed {
            self.reap();
        }
        ticket.0 <= self.completed
    }

    /// Waits for [`Outbox::is_sent`].
    pub fn wait_sent(&mut self, ticket: Ticket) -> Result<(), Errno> {
        if self.is_sent(ticket) {
            return Ok(());
        }
        let start_ns = now_ns();
        loop {
            // The clock before the look: a machine that stood still in between is looked at once more.
            let passed_ns = now_ns().saturating_sub(start_ns);
            if self.is_sent(ticket) {
                return Ok(());
            }
            if passed_ns > SEND_PATIENCE_NS {
                return Err(Errno::TIMED_OUT);
            }
            give_way();
        }
    }

    /// Sleeps until something is sent, at most about `timeout_ns`, which leaves the processor to a device that is software.
    /// Takes signals of the endpoint's event: for a thread that looks at everything else before it waits again.
    pub fn sleep(&mut self, timeout_ns: u64) {
        if !self.cq.arm() {
            self.cq.event().wait(timeout_ns);
        }
    }

    fn reap(&mut self) {
        let mut completions = [Completion::default(); BATCH];
        loop {
            let completed = self.cq.poll(&mut completions);
            // Also those with an error: their buffers are free, and the receiver's silence is what counts.
            if let Some(last) = completed.last() {
                self.completed = self.completed.max(last.wr_id);
            }
            if completed.len() < BATCH {
                return;
            }
        }
    }
}

fn pages(
    pd: &ProtectionDomain,
    count: usize,
    direction: Direction,
) -> Result<Table<MappedPage>, Errno> {
    Table::try_new(count, |_| MappedPage::new(pd, direction))
}

/// Page and offset of a ticket's header.
fn header_place(ticket: u64) -> (usize, usize) {
    let place = ticket as usize % SEND_DEPTH as usize;
    (
        place / HEADERS_A_PAGE,
        place % HEADERS_A_PAGE * HEADER_STRIDE,
    )
}

/// Where a datagram came from, as far as its receiver can tell.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The sender's GID; over InfiniBand without a GRH, its LID in the last bytes.
    pub gid: Gid,
    /// The sender's queue pair.
    pub qpn: u32,
    /// Which of this machine's ports it came to.
    pub port: usize,
}

impl Source {
    /// Reads the source off a completion and its GRH.
    pub fn of(completion: &Completion, grh: &[u8; GRH_LEN], port: usize) -> Source {
        let field = if completion.is_ipv4 != 0 {
            // An IPv4 header lies in the last 20 bytes, its source address 12 bytes in.
            grh.get(32..36)
        } else if completion.has_grh != 0 {
            grh.get(8..24)
        } else {
            None
        };
        let lid = completion.slid.to_be_bytes();
        let field = field.unwrap_or(&lid);
        let mut gid = [0; 16];
        for (place, byte) in gid.iter_mut().rev().zip(field.iter().rev()) {
            *place = *byte;
        }
        Source {
            gid: Gid(gid),
            qpn: completion.src_qp,
            port,
        }
    }
}
