//! A UD queue pair with its receive ring: datagrams in, datagrams out.
//!
//! Ownership of buffers, the rule that the rest relies on:
//! - A receive buffer is the device's from [`Endpoint::give_back`] until its completion, then the caller's until it is
//!   given back. It is given back exactly once, whatever the datagram was: a bad datagram costs no buffer.
//! - A send buffer is the caller's. [`Endpoint::send`] returns a ticket; until [`Endpoint::is_sent`] of it, the
//!   buffer is not to be written.
//!
//! Sends complete in order, so only every [`SIGNAL_INTERVAL`]th asks for a completion, and those whose buffer is to be
//! written again soon.

use mitosis_core::wire::resolution::QKEY;
use mitosis_core::wire::MAX_DATAGRAM;

use crate::devices::{Gid, Port};
use crate::errno::Errno;
use crate::memory::{Table, PAGE_LEN};
use crate::thread::{give_way, Event};
use crate::verbs::{
    Completion, CompletionQueue, Destination, Direction, MappedPage, ProtectionDomain, QueuePair,
    QueuePairConfig, Receive, BATCH, GRH_LEN,
};

/// How many sends share one completion.
const SIGNAL_INTERVAL: u64 = 16;

/// Sends that may be outstanding: enough for several completions to be on their way.
pub const SEND_DEPTH: u32 = 128;

/// Distance of two GRHs in their page.
const GRH_STRIDE: usize = 64;
/// GRHs that a page holds.
const GRHS_A_PAGE: usize = PAGE_LEN / GRH_STRIDE;

const _: () = assert!(MAX_DATAGRAM <= PAGE_LEN && GRH_LEN <= GRH_STRIDE);

/// Ticket of a send.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A queue pair, its completion queues and its receive ring. Fields are dropped in this order: the queue pair goes
/// first, so that nothing posted refers to what follows.
pub struct Endpoint<'a> {
    qp: QueuePair<'a>,
    recv_cq: CompletionQueue<'a>,
    send_cq: CompletionQueue<'a>,
    buffers: Table<MappedPage>,
    grhs: Table<MappedPage>,
    datagram_len: u32,
    given_back: [Receive; BATCH],
    given_back_len: usize,
    /// Receives that have completed and whose buffers have not been given back.
    held: usize,
    sends: u64,
    sends_completed: u64,
}

/// What a completed receive holds.
pub struct Received<'e> {
    /// Its global routing header.
    pub grh: &'e [u8; GRH_LEN],
    /// The datagram.
    pub datagram: &'e [u8],
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
        let send_depth = SEND_DEPTH.min(port.max_qp_wr());
        let send_cq = CompletionQueue::new(port, send_depth, event)?;
        let recv_cq = CompletionQueue::new(port, recv_depth, event)?;
        let config = QueuePairConfig {
            send_depth,
            recv_depth,
            qkey: QKEY,
        };
        let buffer = |_| MappedPage::new(pd, Direction::FromDevice);
        let buffers = Table::try_new(recv_depth as usize, buffer)?;
        let grhs = Table::try_new((recv_depth as usize).div_ceil(GRHS_A_PAGE), buffer)?;
        // SAFETY: the queues and the receive ring stand after `qp` in the struct and are dropped after it; senders'
        // buffers are held by owners that the borrow checker keeps no shorter (`Sender`s in `client` and `server`).
        let qp = unsafe { QueuePair::new(port, pd, &send_cq, &recv_cq, &config)? };
        let mut endpoint = Endpoint {
            qp,
            recv_cq,
            send_cq,
            buffers,
            grhs,
            datagram_len: port.mtu_bytes().min(MAX_DATAGRAM as u32),
            given_back: [Receive::default(); BATCH],
            given_back_len: 0,
            held: recv_depth as usize,
            sends: 0,
            sends_completed: 0,
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
        self.datagram_len as u16
    }

    /// How many receive buffers there are.
    pub fn receive_buffers(&self) -> usize {
        self.buffers.len()
    }

    /// How many of them the device does not have.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The receives that have completed, at most [`BATCH`].
    pub fn poll<'c>(&mut self, completions: &'c mut [Completion; BATCH]) -> &'c [Completion] {
        let completed = self.recv_cq.poll(completions);
        self.held += completed.len();
        completed
    }

    /// Asks for a signal of the event at the next arrival. True when something may have arrived already.
    pub fn arm(&mut self) -> bool {
        self.recv_cq.arm()
    }

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

    /// Gives the receive buffer of a completion back to the device, together with others: see [`Endpoint::flush`].
    pub fn give_back(&mut self, wr_id: u64) -> Result<(), Errno> {
        let index = wr_id as usize;
        let (Some(buffer), Some(grhs)) =
            (self.buffers.get(index), self.grhs.get(index / GRHS_A_PAGE))
        else {
            return Err(Errno::INVALID);
        };
        let receive = Receive {
            wr_id,
            grh_dma: grhs.dma + (index % GRHS_A_PAGE * GRH_STRIDE) as u64,
            data_dma: buffer.dma,
            data_len: self.datagram_len,
        };
        if let Some(place) = self.given_back.get_mut(self.given_back_len) {
            *place = receive;
            self.given_back_len += 1;
            self.held = self.held.saturating_sub(1);
        }
        if self.given_back_len == BATCH {
            self.flush()?;
        }
        Ok(())
    }

    /// Posts the buffers that were given back: one doorbell for up to [`BATCH`].
    pub fn flush(&mut self) -> Result<(), Errno> {
        match self.given_back.get(..self.given_back_len) {
            Some(receives) if !receives.is_empty() => self.qp.post_receives(receives)?,
            _ => {}
        }
        self.given_back_len = 0;
        Ok(())
    }

    /// Sends the first `len` bytes of `buffer`. `reused_soon` asks for a completion of its own.
    pub fn send(
        &mut self,
        to: &Destination<'_>,
        buffer: &MappedPage,
        len: usize,
        reused_soon: bool,
    ) -> Result<Ticket, Errno> {
        if self.sends - self.sends_completed >= u64::from(SEND_DEPTH) / 2 {
            self.reap();
        }
        if self.sends - self.sends_completed >= u64::from(SEND_DEPTH) - 1 {
            self.wait_sent(Ticket(self.sends_completed + SIGNAL_INTERVAL))?;
        }
        let ticket = self.sends + 1;
        let signaled = reused_soon || ticket.is_multiple_of(SIGNAL_INTERVAL);
        self.qp.post_send(to, buffer, len, ticket, signaled)?;
        self.sends = ticket;
        Ok(Ticket(ticket))
    }

    /// Whether a send that asked for a completion has completed, so that its buffer may be written.
    pub fn is_sent(&mut self, ticket: Ticket) -> bool {
        if ticket.0 > self.sends_completed {
            self.reap();
        }
        ticket.0 <= self.sends_completed
    }

    /// Waits for [`Endpoint::is_sent`]. The device needs microseconds for it, unless it is broken.
    pub fn wait_sent(&mut self, ticket: Ticket) -> Result<(), Errno> {
        const PATIENCE_NS: u64 = 2_000_000_000;
        let start_ns = crate::thread::now_ns();
        while !self.is_sent(ticket) {
            if crate::thread::now_ns().saturating_sub(start_ns) > PATIENCE_NS {
                return Err(Errno::TIMED_OUT);
            }
            give_way();
        }
        Ok(())
    }

    /// Waits for all sends that asked for a completion of their own.
    pub fn flush_sends(&mut self) -> Result<(), Errno> {
        self.wait_sent(Ticket(self.sends / SIGNAL_INTERVAL * SIGNAL_INTERVAL))
    }

    fn reap(&mut self) {
        let mut completions = [Completion::default(); BATCH];
        loop {
            let completed = self.send_cq.poll(&mut completions);
            // Also those with an error: their buffers are free, and the receiver's silence is what counts.
            if let Some(last) = completed.last() {
                self.sends_completed = self.sends_completed.max(last.wr_id);
            }
            if completed.len() < BATCH {
                return;
            }
        }
    }
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
