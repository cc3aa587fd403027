//! Queue pairs, and the address handles that datagrams are sent by.

use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rdma_sys as sys;

use super::device::Port;
use super::failure::{check, errno, failed};
use super::memory::{ProtectionDomain, Region};
use super::queue::{Completion, CompletionQueue, BATCH};
use crate::fabric::FabricError;

/// Bytes of the global routing header that precedes every datagram that is received.
pub(super) const GRH_LEN: usize = 40;

/// The way to a port, for datagrams.
pub(super) struct AddressHandle {
    raw: NonNull<sys::ibv_ah>,
    _pd: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs's objects may be used from any thread, and several at a time.
unsafe impl Send for AddressHandle {}
// SAFETY: as above.
unsafe impl Sync for AddressHandle {}

impl AddressHandle {
    /// The way that the attributes say.
    pub(super) fn new(
        pd: &Arc<ProtectionDomain>,
        mut attributes: sys::ibv_ah_attr,
    ) -> Result<Self, FabricError> {
        // SAFETY: the domain is alive, and the attributes are read during the call.
        let raw = unsafe { sys::ibv_create_ah(pd.as_ptr(), &mut attributes) };
        let raw =
            NonNull::new(raw).ok_or_else(|| failed("cannot create an address handle", errno()))?;
        Ok(Self {
            raw,
            _pd: pd.clone(),
        })
    }

    /// The way back to the sender of a datagram that was received at `port`. May take seconds, while the sender's link-layer
    /// address is looked for.
    pub(super) fn to_sender(
        pd: &Arc<ProtectionDomain>,
        port: &Port,
        completion: &Completion,
        grh: &[u8; GRH_LEN],
    ) -> Result<Self, FabricError> {
        let mut attributes = MaybeUninit::<sys::ibv_ah_attr>::zeroed();
        let mut grh = *grh;
        // SAFETY: the device is open; the completion and the header, which has no alignment in C, are read during the call, which
        // writes the attributes.
        let returned = unsafe {
            sys::ibv_init_ah_from_wc(
                port.context().as_ptr(),
                port.number(),
                completion.as_ptr().cast_mut(),
                grh.as_mut_ptr().cast(),
                attributes.as_mut_ptr(),
            )
        };
        check(returned, || "cannot find the way to a sender".into())?;
        // SAFETY: zeroed, and then written by the call.
        Self::new(pd, unsafe { attributes.assume_init() })
    }
}

impl Drop for AddressHandle {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed only here. Providers copy what they need of it when a send is posted.
        unsafe { sys::ibv_destroy_ah(self.raw.as_ptr()) };
    }
}

/// The size of a queue pair.
#[derive(Clone, Copy)]
pub(super) struct Capacity {
    /// Sends that may be outstanding.
    pub(super) sends: u32,
    /// Receives that may be posted.
    pub(super) receives: u32,
    /// Bytes that a send may carry in its work request, if the device can.
    pub(super) inline: u32,
}

/// A send of one piece of memory.
pub(super) struct Outgoing {
    /// Its number.
    pub(super) wr_id: u64,
    /// Which of the queue pair's regions…
    pub(super) region: usize,
    /// …and which bytes of it.
    pub(super) offset: usize,
    /// How many.
    pub(super) len: usize,
    /// Whether it has a completion of its own.
    pub(super) signaled: bool,
    /// The way to its port.
    pub(super) address: Arc<AddressHandle>,
    /// Its queue pair.
    pub(super) qpn: u32,
    /// The key that its queue pair asks for.
    pub(super) qkey: u32,
}

/// A place for a datagram that comes.
#[derive(Clone, Copy, Default)]
pub(super) struct Receive {
    /// Its number.
    pub(super) wr_id: u64,
    /// Which of the queue pair's regions…
    pub(super) region: usize,
    /// …and which bytes of it.
    pub(super) offset: usize,
    /// How many.
    pub(super) len: usize,
}

/// A READ of another machine's memory.
#[derive(Clone, Copy)]
pub(super) struct Read {
    /// Its number.
    pub(super) wr_id: u64,
    /// Where the bytes go: which of the queue pair's regions…
    pub(super) region: usize,
    /// …and which bytes of it.
    pub(super) offset: usize,
    /// How many.
    pub(super) len: usize,
    /// Where they are.
    pub(super) remote_address: u64,
    /// The key that lets them be read.
    pub(super) remote_key: u32,
}

/// A queue pair. Whatever is posted to it lies in the regions that it holds, so that the device never reaches memory that
/// is gone.
pub(super) struct QueuePair {
    raw: NonNull<sys::ibv_qp>,
    regions: Vec<Arc<Region>>,
    max_inline: usize,
    send_cq: Arc<CompletionQueue>,
    recv_cq: Arc<CompletionQueue>,
    _pd: Arc<ProtectionDomain>,
}

// SAFETY: libibverbs's objects may be used from any thread, and several at a time.
unsafe impl Send for QueuePair {}
// SAFETY: as above.
unsafe impl Sync for QueuePair {}

impl QueuePair {
    fn create(
        pd: &Arc<ProtectionDomain>,
        queues: [&Arc<CompletionQueue>; 2],
        regions: Vec<Arc<Region>>,
        kind: sys::ibv_qp_type::Type,
        capacity: Capacity,
    ) -> Result<Self, FabricError> {
        let [send_cq, recv_cq] = queues;
        let mut last = None;
        // Devices differ in how much they take inline, and say so only by refusing more.
        for inline in [capacity.inline, capacity.inline / 2, 0] {
            let mut attributes = sys::ibv_qp_init_attr {
                qp_context: ptr::null_mut(),
                send_cq: send_cq.as_ptr(),
                recv_cq: recv_cq.as_ptr(),
                srq: ptr::null_mut(),
                cap: sys::ibv_qp_cap {
                    max_send_wr: capacity.sends,
                    max_recv_wr: capacity.receives.max(1),
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: inline,
                },
                qp_type: kind,
                sq_sig_all: 0,
            };
            // SAFETY: domain and queues are alive and belong to one device; the attributes are read and written during the call.
            let raw = unsafe { sys::ibv_create_qp(pd.as_ptr(), &mut attributes) };
            if let Some(raw) = NonNull::new(raw) {
                return Ok(Self {
                    raw,
                    regions,
                    max_inline: attributes.cap.max_inline_data as usize,
                    send_cq: send_cq.clone(),
                    recv_cq: recv_cq.clone(),
                    _pd: pd.clone(),
                });
            }
            last = Some(errno());
        }
        let error = last.unwrap_or_else(errno);
        Err(failed(
            format!(
                "cannot create a queue pair with room for {} sends and {} receives",
                capacity.sends, capacity.receives
            ),
            error,
        ))
    }

    /// A queue pair for datagrams on `port`, ready to send and receive, whose senders must know `qkey`.
    pub(super) fn datagrams(
        port: &Port,
        pd: &Arc<ProtectionDomain>,
        queues: [&Arc<CompletionQueue>; 2],
        regions: Vec<Arc<Region>>,
        capacity: Capacity,
        qkey: u32,
    ) -> Result<Self, FabricError> {
        use sys::ibv_qp_attr_mask as Mask;
        use sys::ibv_qp_state as State;
        let pair = Self::create(pd, queues, regions, sys::ibv_qp_type::IBV_QPT_UD, capacity)?;
        // SAFETY: integers and nested integers, for which zeros are a value.
        let mut attributes: sys::ibv_qp_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        attributes.port_num = port.number();
        attributes.qkey = qkey;
        for (state, mask) in [
            (
                State::IBV_QPS_INIT,
                Mask::IBV_QP_STATE
                    | Mask::IBV_QP_PKEY_INDEX
                    | Mask::IBV_QP_PORT
                    | Mask::IBV_QP_QKEY,
            ),
            (State::IBV_QPS_RTR, Mask::IBV_QP_STATE),
            (State::IBV_QPS_RTS, Mask::IBV_QP_STATE | Mask::IBV_QP_SQ_PSN),
        ] {
            attributes.qp_state = state;
            pair.modify(&mut attributes, mask.0 as i32)?;
        }
        Ok(pair)
    }

    /// A queue pair for a reliable connection, which is still to be made.
    pub(super) fn reliable(
        pd: &Arc<ProtectionDomain>,
        queue: &Arc<CompletionQueue>,
        regions: Vec<Arc<Region>>,
        sends: u32,
    ) -> Result<Self, FabricError> {
        let capacity = Capacity {
            sends,
            receives: 1,
            inline: 0,
        };
        let kind = sys::ibv_qp_type::IBV_QPT_RC;
        Self::create(pd, [queue, queue], regions, kind, capacity)
    }

    /// Takes the pair into another state.
    pub(super) fn modify(
        &self,
        attributes: &mut sys::ibv_qp_attr,
        mask: i32,
    ) -> Result<(), FabricError> {
        // SAFETY: the pair lives as long as `self`, and the attributes are read during the call.
        let returned = unsafe { sys::ibv_modify_qp(self.raw.as_ptr(), attributes, mask) };
        check(returned, || "cannot modify a queue pair".into())
    }

    /// Its number.
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the pair lives as long as `self`.
        unsafe { (*self.raw.as_ptr()).qp_num }
    }

    /// The queue of its sends.
    pub(super) fn send_cq(&self) -> &Arc<CompletionQueue> {
        &self.send_cq
    }

    /// The queue of its receives.
    pub(super) fn recv_cq(&self) -> &Arc<CompletionQueue> {
        &self.recv_cq
    }

    /// The region of this number.
    pub(super) fn region(&self, index: usize) -> Option<&Arc<Region>> {
        self.regions.get(index)
    }

    fn piece(&self, region: usize, offset: usize, len: usize) -> Result<sys::ibv_sge, FabricError> {
        self.regions
            .get(region)
            .and_then(|region| region.piece(offset, len))
            .ok_or_else(|| failed("no such memory", std::io::ErrorKind::InvalidInput.into()))
    }

    /// Posts up to [`BATCH`] sends at once, in order; how many of them the device took. It takes fewer where its queue is full.
    pub(super) fn post_sends(&self, sends: &[Outgoing]) -> Result<usize, FabricError> {
        let mut pieces = [EMPTY_PIECE; BATCH];
        let mut requests: [MaybeUninit<sys::ibv_send_wr>; BATCH] =
            [const { MaybeUninit::uninit() }; BATCH];
        let sends = sends.get(..BATCH).unwrap_or(sends);
        for ((send, piece), request) in sends.iter().zip(&mut pieces).zip(&mut requests) {
            *piece = self.piece(send.region, send.offset, send.len)?;
            let mut flags = 0;
            if send.signaled {
                flags |= sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
            }
            if send.len <= self.max_inline {
                flags |= sys::ibv_send_flags::IBV_SEND_INLINE.0;
            }
            let request = request.write(empty_request());
            request.wr_id = send.wr_id;
            request.sg_list = piece;
            request.num_sge = 1;
            request.opcode = sys::ibv_wr_opcode::IBV_WR_SEND;
            request.send_flags = flags;
            request.wr.ud = sys::ud_t {
                ah: send.address.raw.as_ptr(),
                remote_qpn: send.qpn,
                remote_qkey: send.qkey,
            };
        }
        self.post_requests(requests.get_mut(..sends.len()).unwrap_or_default())
    }

    /// Posts up to [`BATCH`] READs at once, each with a completion; how many of them the device took.
    pub(super) fn post_reads(&self, reads: &[Read]) -> Result<usize, FabricError> {
        self.post_remote(reads, sys::ibv_wr_opcode::IBV_WR_RDMA_READ)
    }

    /// Posts WRITEs of what READs would fetch: for tests of who may write.
    pub(super) fn post_writes(&self, writes: &[Read]) -> Result<usize, FabricError> {
        self.post_remote(writes, sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE)
    }

    fn post_remote(
        &self,
        reads: &[Read],
        opcode: sys::ibv_wr_opcode::Type,
    ) -> Result<usize, FabricError> {
        let mut pieces = [EMPTY_PIECE; BATCH];
        let mut requests: [MaybeUninit<sys::ibv_send_wr>; BATCH] =
            [const { MaybeUninit::uninit() }; BATCH];
        let reads = reads.get(..BATCH).unwrap_or(reads);
        for ((read, piece), request) in reads.iter().zip(&mut pieces).zip(&mut requests) {
            *piece = self.piece(read.region, read.offset, read.len)?;
            let request = request.write(empty_request());
            request.wr_id = read.wr_id;
            request.sg_list = piece;
            request.num_sge = 1;
            request.opcode = opcode;
            request.send_flags = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
            request.wr.rdma = sys::rdma_t {
                remote_addr: read.remote_address,
                rkey: read.remote_key,
            };
        }
        self.post_requests(requests.get_mut(..reads.len()).unwrap_or_default())
    }

    /// Chains requests that were all written, and posts them.
    fn post_requests(
        &self,
        requests: &mut [MaybeUninit<sys::ibv_send_wr>],
    ) -> Result<usize, FabricError> {
        let count = requests.len();
        if count == 0 {
            return Ok(0);
        }
        let first = requests.as_mut_ptr().cast::<sys::ibv_send_wr>();
        for index in 1..count {
            // SAFETY: both are among the `count` requests, all of which the caller has written.
            unsafe { (*first.add(index - 1)).next = first.add(index) };
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the chain and the pieces that it names live on the callers' stacks during the call. The memory that the
        // pieces name lies in a region of this pair's, which lives until the pair is destroyed. The address handles are
        // alive, and providers copy what they need of them.
        let returned = unsafe { sys::ibv_post_send(self.raw.as_ptr(), first, &mut bad) };
        if returned == 0 {
            return Ok(count);
        }
        let taken = (0..count)
            // SAFETY: within the array of requests.
            .position(|index| unsafe { first.add(index) } == bad)
            .unwrap_or(0);
        match returned.abs() {
            libc::ENOMEM | libc::EAGAIN => Ok(taken),
            _ => check(returned, || "cannot post a send".into()).map(|()| taken),
        }
    }

    /// Posts up to [`BATCH`] receives at once.
    pub(super) fn post_receives(&self, receives: &[Receive]) -> Result<(), FabricError> {
        let mut pieces = [EMPTY_PIECE; BATCH];
        let mut requests = [sys::ibv_recv_wr {
            wr_id: 0,
            next: ptr::null_mut(),
            sg_list: ptr::null_mut(),
            num_sge: 1,
        }; BATCH];
        let receives = receives.get(..BATCH).unwrap_or(receives);
        let Some(last) = receives.len().checked_sub(1) else {
            return Ok(());
        };
        let first = requests.as_mut_ptr();
        for (index, (receive, piece)) in receives.iter().zip(&mut pieces).enumerate() {
            *piece = self.piece(receive.region, receive.offset, receive.len)?;
            // SAFETY: `index` and, where it is not the last, the next are within the array.
            unsafe {
                let request = first.add(index);
                (*request).wr_id = receive.wr_id;
                (*request).sg_list = piece;
                if index < last {
                    (*request).next = first.add(index + 1);
                }
            }
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the chain and its pieces live on the stack during the call; the memory that they name lies in a region of this
        // pair's, which lives until the pair is destroyed.
        let returned = unsafe { sys::ibv_post_recv(self.raw.as_ptr(), first, &mut bad) };
        check(returned, || "cannot post a receive".into())
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed only here; afterwards the device reaches none of the regions.
        unsafe { sys::ibv_destroy_qp(self.raw.as_ptr()) };
    }
}

const EMPTY_PIECE: sys::ibv_sge = sys::ibv_sge {
    addr: 0,
    length: 0,
    lkey: 0,
};

#[inline]
fn empty_request() -> sys::ibv_send_wr {
    // SAFETY: integers and pointers, for which zeros are a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}
