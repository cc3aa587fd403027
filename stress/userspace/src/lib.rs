//! The RPC stress test as ordinary programs: what `rpc-server` and `rpc-client` share.
//!
//! They take the parameters of the kernel modules' test, print its lines and carry its payloads, over whatever fabric the
//! address names. `bench-userspace` is a program of its own.

#![forbid(unsafe_code)]

pub mod arguments;
pub mod log;
pub mod payload;
pub mod stop;
