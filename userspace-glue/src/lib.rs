//! The RPC of MITOSIS in a process.
//!
//! The core says what a datagram means; this crate carries datagrams, keeps the buffers and the time, and runs handlers.
//! What carries them is a [`fabric::Fabric`], chosen by the [`address::Address`]:
//!
//! - `shm://name`: shared memory between the processes of one machine. Needs nothing.
//! - `rdma://[gid]/service/hint`: an RDMA device, over unreliable datagrams. The same wire as the kernel modules'.
//!
//! From the bottom up:
//!
//! | module | holds | does not hold |
//! |---|---|---|
//! | [`fabric`] | what the layers above ask of a carrier of datagrams, and its errors | a carrier |
//! | [`address`] | the two forms of address | what they lead to |

#![deny(unsafe_code)]

pub mod address;
pub mod fabric;
