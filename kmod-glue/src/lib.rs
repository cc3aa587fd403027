//! MITOSIS in the kernel: the core over in-kernel verbs, as two modules of one code base.
//!
//! From the top:
//! - [`server`] and [`client`] are the modules `mitosis_rpc_server` and `mitosis_rpc_client`, [`flood`] is one that sends
//!   the server what it must survive, and [`module`] what their lives have in common. `shim/*_module.c` give them their
//!   parameters.
//!   The server's `peers` and `resolver` keep its clients' addresses; [`cm`] leads a client to its server.
//! - [`endpoint`] is a UD queue pair with its receive ring, and says who owns which buffer when.
//! - [`verbs`], [`devices`], [`thread`], [`memory`] and [`log`] are the kernel's objects, each owned and destroyed by a Rust
//!   value. All calls into C are there; [`ffi`] mirrors `shim/shim.h`.
//!
//! What datagrams and sessions mean is not here but in `mitosis-core`; what a kernel is, is not there but here.
//!
//! Nothing that a packet or a module parameter can contain panics, and `core::fmt` is not linked. Allocations fail
//! with an error. The order of destruction is the order of fields and of locals, and is said where it matters.

#![no_std]

pub mod buffer;
pub mod client;
pub mod cm;
pub mod devices;
pub mod endpoint;
pub mod errno;
#[allow(missing_docs)]
pub mod ffi;
pub mod flood;
pub mod fork;
pub mod key;
pub mod lock;
pub mod log;
pub mod memory;
pub mod module;
pub mod payload;
pub mod server;
pub mod thread;
pub mod verbs;

/// Never reached: what the modules link refers to no panic. Should that change, the thread stays here for good, its
/// buffers untouched, and the log says so.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    error!("panic: a defect in the module; this thread is parked");
    loop {
        thread::park();
    }
}
