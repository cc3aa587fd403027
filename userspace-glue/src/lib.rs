//! The RPC of MITOSIS in a process.
//!
//! The core says what a datagram means; this crate carries datagrams, keeps the buffers and the time, and runs handlers.
//! What carries them is a [`fabric::Fabric`], chosen by the [`address::Address`]:
//!
//! - `shm://name`: shared memory between the processes of one machine. Needs nothing.
//! - `rdma://[gid]/service/hint`: an RDMA device, over unreliable datagrams. The same wire as the kernel modules'.
//!
//! [`Server`] and [`Client`] are all that most programs need:
//!
//! ```
//! use mitosis::{Client, Server};
//!
//! # let name = format!("shm://doc-{}", std::process::id());
//! # let address = name.as_str();
//! // In one process: let address = "shm://greeter";
//! let mut server = Server::bind(address)?;
//! server.register(1, |request, reply| {
//!     reply.extend_from_slice(b"hello, ");
//!     reply.extend_from_slice(request);
//!     Ok(())
//! });
//! let running = server.spawn();
//!
//! // In another one:
//! let mut client = Client::connect(address)?;
//! assert_eq!(client.call(1, b"world")?, b"hello, world");
//! # Ok::<(), mitosis::Error>(())
//! ```
//!
//! From the bottom up:
//!
//! | module | holds | does not hold |
//! |---|---|---|
//! | [`fabric`] | what the layers above ask of a carrier of datagrams, and its errors | a carrier |
//! | [`shm`] | the fabric in shared memory, with this crate's `unsafe` for it in one file | what a datagram means |
//! | `verbs` (a feature) | the fabric over RDMA devices, with this crate's `unsafe` for it; memory that others read | what a datagram means |
//! | `clock`, `patience` | time, read seldom; how long to spin before sleeping | |
//! | [`server`], [`client`] | the core's endpoints driven over a fabric, their buffers, handlers and threads | system calls |
//! | [`address`], [`Error`] | how a server is named, and what can go wrong | |

#![deny(unsafe_code)]

pub mod address;
pub mod client;
mod clock;
mod error;
pub mod fabric;
mod patience;
pub mod server;
pub mod shm;
#[cfg(feature = "verbs")]
pub mod verbs;

pub use address::Address;
pub use client::{CallId, Client, ClientOptions, SharedClient};
pub use error::Error;
pub use mitosis_core::session::ClusterKey;
pub use server::{HandlerFailed, Server, ServerOptions};
