//! Remote fork for programs, over `/dev/mitosis`. `docs/libmitosis.md` has the rules of what a child
//! keeps.
//!
//! - [`prepare`] forks the calling process; the copy freezes and is the [`Seed`]. It returns a
//!   second time, as [`Prepared::Child`], in every child of the seed. [`freeze`] is the seed's half
//!   of it, for runtimes that have a `fork` of their own.
//! - [`Image::open`] fetches a seed's descriptor from its machine. [`Image::resumption`] checks
//!   whether this process, or a copy of it, can become the seed, and [`Resumption::run`] does it.
//! - [`Device`] is the rest: list, query, connect, ping, statistics.
//!
//! | module | holds |
//! |---|---|
//! | [`uapi`] | `kmod-glue/uapi/mitosis.h`, field by field |
//! | [`device`] | the calls that need nothing but the device |
//! | [`seed`] | the seed's machine: fork, freeze, and what a child does first |
//! | [`image`], [`resume`] | the child's machine |
//! | [`c`] | the same for C, as `include/mitosis_fork.h` declares it |
//!
//! The `unsafe` here is system calls, and the instructions around the one that returns in another
//! process. What a descriptor says is checked by the core before anything here looks at it.

pub mod c;
pub mod cpu;
pub mod device;
mod error;
pub mod gid;
pub mod image;
pub mod resume;
pub mod seed;
mod system;

pub use device::{Device, SeedInfo};
pub use error::{Error, Kernels, Refusal};
pub use image::{Image, OpenOptions};
pub use mitosis_core::descriptor::{Capability, SeedId};
pub use mitosis_core::uapi;
pub use resume::Resumption;
pub use seed::{freeze, prepare, Child, PrepareOptions, Prepared, Seed};
pub use uapi::{Machine, Stats};
