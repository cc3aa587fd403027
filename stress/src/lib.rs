//! Runs the stress tests of `docs/` on a cluster, virtual or real, and passes a verdict.
//!
//! A run is a template (`templates-run/*.toml`): parameters, then passes by role and order. The way of one run, and the
//! module that each step lives in:
//!
//! 1. [`cli`] takes the command line apart; [`settings`] says which cluster, [`template`] what to do there, and
//!    [`parameters`] refuses what makes no sense before anything starts.
//! 2. [`build`] brings the kernel modules up to date for each kernel of the cluster, and what else runs there; [`modules`]
//!    and [`programs`] know their files.
//! 3. [`cluster`] has the hosts: machines of its own, or those of the user's `makefile`. Nothing above it knows which.
//! 4. [`run`] inspects the hosts, loads the modules in the template's order, waits for what they say, and unloads them.
//! 5. [`klog`] follows every host's kernel log meanwhile: it shows the lines, reads the figures out of those that the
//!    modules print, and audits all of them.
//! 6. [`report`] is the outcome: a table for people, `out/<target>/result.json` for programs.
//!
//! [`stage`] sets a cluster up for this and for the other programs: [`bench`] compares with perftest, [`check`] loads,
//! unloads and misuses the modules, [`faults`] spoils the network and ends machines under them, [`interop`] lets processes
//! and modules call each other. [`scene`] has what check and faults do by
//! hand, [`scenario`] what each of theirs leaves behind. [`lean`] is a program of its own, which the
//! runner starts on the hosts.
//!
//! [`here`] runs a template's programs as processes of this machine, without a cluster.
//!
//! Principles: wait for what a host says, never for a while; every wait has a deadline and ends early when something is
//! already known to be wrong; whatever was started is ended, also after Ctrl-C; work that was not verified is not
//! counted.

pub mod attack;
pub mod bench;
pub mod build;
pub mod check;
pub mod cli;
pub mod cluster;
pub mod faults;
pub mod forks;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod here;
pub mod interop;
pub mod interrupt;
pub mod klog;
pub mod lean;
pub mod modules;
pub mod parameters;
pub mod programs;
pub mod progress;
pub mod refusal;
pub mod report;
pub mod run;
pub mod scenario;
pub mod scene;
pub mod settings;
pub mod stage;
pub mod template;
