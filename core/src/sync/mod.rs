//! The lock-free structures, and the only `unsafe` code of the crate.
//!
//! Each takes its atomics from `primitive`, so that `loom-tests` can compile the same source
//! against loom's and try every interleaving. Each ordering says what it pairs with.

pub mod count;
pub mod gauge;
mod primitive;
pub mod spsc;
pub mod stop;
