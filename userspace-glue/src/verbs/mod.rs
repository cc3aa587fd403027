//! The fabric over RDMA devices, and the only `unsafe` code of this crate that calls libibverbs and librdmacm.
//!
//! From the bottom up; what is unsafe is in the modules of the first group, behind safe functions:
//!
//! | module | holds |
//! |---|---|
//! | `device` | devices, their ports and GIDs, and what happens to them |
//! | `memory` | protection domains, and memory that the device reaches |
//! | `queue` | completion queues |
//! | `pair` | queue pairs and address handles: the only place where work is posted |
//! | `channel` | the connection manager's identifiers and events |
//! | `endpoint` | a UD queue pair with its rings of buffers |
//! | `resolve`, `listen` | how client and server find each other (wire.md §10) |
//! | `peers`, `finder` | the way back to a server's clients |
//! | `remote` | memory that others read, over reliable connections |
//! | `carrier` | the [`Fabric`](crate::fabric::Fabric) |
//!
//! Each object holds an `Arc` of those that it was made of, so that none is destroyed too early. Memory that is posted lies in
//! regions that the queue pair holds.

#![allow(unsafe_code)]

mod carrier;
mod channel;
mod device;
mod endpoint;
mod failure;
mod finder;
mod listen;
mod memory;
mod pair;
mod peers;
mod queue;
mod remote;
mod resolve;

pub use carrier::{Options, Verbs};
pub use device::PortChoice;
pub use remote::{Exposed, Location, MemoryServer, RemoteMemory};
