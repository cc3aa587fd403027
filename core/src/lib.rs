//! The part of MITOSIS that knows what bytes and events mean, and nothing else.
//!
//! The same code runs inside the kernel modules, in a process and under test, because it never
//! reads a clock, never allocates and never performs I/O. It is told what happened and asked what
//! to do next:
//!
//! - `handle_*(now_ns, …)` takes an event: a datagram that arrived, a time that was reached;
//! - `poll_*` yields work: a datagram to send, a session that ended;
//! - `next_timeout_ns` says by when `handle_timeout` wants to be called again.
//!
//! Read the layers from the bottom up:
//!
//! | module | holds | does not hold |
//! |---|---|---|
//! | [`wire`] | the bytes of a datagram, parsed once and checked completely | what a datagram means for a session |
//! | [`session`] | identities, proofs of membership, the bounded tables of sessions and slots | calls |
//! | [`rpc`] | the two endpoints: handshake, windows of calls, segmentation, retransmission, at-most-once execution | queue pairs, threads, time |
//! | [`descriptor`] | what a process is that is to be forked elsewhere, apart from its pages | pages, and putting any of it into effect |
//! | [`uapi`] | what calls on `/dev/mitosis` hold, for the module and for user space | what the calls do |
//! | [`sync`] | the lock-free structures, the only `unsafe` code here | anything that could live elsewhere |
//! | [`histogram`] | latencies in constant memory | formatting of reports |
//!
//! The specifications of the bytes are `docs/wire.md` and `docs/descriptor.md`; comments cite them
//! as 'wire.md §n' and 'descriptor.md §n'.
//!
//! Nothing that a datagram, a descriptor or a caller can contain makes this crate panic: there is no
//! indexing, no unchecked range and no arithmetic that may overflow, and the fuzz targets look for
//! exceptions to that.

#![no_std]
#![deny(unsafe_code)]

#[cfg(any(test, rdma_loom))]
extern crate std;

pub mod descriptor;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod histogram;
pub mod rpc;
pub mod session;
pub mod sync;
pub mod uapi;
pub mod wire;
