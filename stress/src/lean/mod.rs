//! Lean containers: as much of a container as a fork needs, made beforehand, and one fork after another in them.
//!
//! A container begins as a [`stub`]: a process that is born into its own namespaces and control group, arranges its
//! mounts over the common [`root`] and waits. [`pool`] keeps some of these in stock. A [`container`] is then told to become
//! a child, by whatever [`begin`] says: a seed's continuation or, to compare with, a program. Only a child that gives the
//! right [`proof`] counts; [`figures`] has the lines that tell how many did. [`program`] is the program, `mitosis-lean`.
//!
//! Nothing stays behind. Mounts are in namespaces that end with their processes; stubs and children end with the thread
//! that made them, so with the program, also when it is killed; what then is left of its [`cgroup`]s, the next run
//! removes.

pub mod begin;
pub mod cgroup;
pub mod container;
pub mod figures;
pub mod pool;
pub mod program;
pub mod proof;
pub mod root;
pub mod stub;
