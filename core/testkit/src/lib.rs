//! The network in a test tube: MITOSIS' endpoints under a virtual clock and under every fault.
//!
//! The core reads no clock and does no I/O, so a whole cluster of it fits into one thread, runs far
//! faster than time, and runs the same every time: **everything follows from one `u64`**, which
//! every failure prints together with the command that repeats it.
//!
//! ```
//! use mitosis_testkit::endpoint::Settings;
//! use mitosis_testkit::call::Work;
//! use mitosis_testkit::network::{Faults, Reception};
//! use mitosis_testkit::random::Chance;
//! use mitosis_testkit::scenario::{Script, Step};
//! use mitosis_testkit::world::Order;
//!
//! let script = Script {
//!     seed: 42,
//!     clients: 2,
//!     settings: Settings::PATIENT,
//!     reception: Reception::INSTANT,
//!     steps: vec![
//!         Step::Wires(Faults { loss: Chance::percent(30.0), ..Faults::NONE }),
//!         Step::Calls(0, Order::of(10, Work::Immediate, 64, 64)),
//!         Step::Calls(1, Order::of(10, Work::Late, 100, 5000)),
//!         Step::Milliseconds(1),
//!         Step::CrashServer,
//!     ],
//! };
//! let report = script.play(false).unwrap();
//! assert_eq!(report.tally.ended(), 20);
//! ```
//!
//! Read from the bottom up:
//!
//! | module | holds | does not hold |
//! |---|---|---|
//! | [`random`] | the one generator, whose values never change between versions | distributions of others |
//! | [`queue`] | the virtual clock, and what happens by it | what the things mean |
//! | [`network`] | loss, duplication, reordering, corruption, delay, bandwidth, cuts, receive rings | what a datagram means |
//! | [`world`] | endpoints, their wake-ups, crash and restart | what endpoints do |
//! | [`call`] | the contents of requests and replies, made so that both ends can check them | bytes of the protocol |
//! | [`oracle`] | the model: what callers and handlers may see | how it comes about |
//! | [`endpoint`] | the core's client and server as endpoints: **all that knows the core's interface** | judgement |
//! | [`scenario`] | loads, scripts, reports, failures | |
//!
//! The program `simulate` runs loads over many seeds (`make simulate`), and the tests of this
//! package play scripts that `proptest` makes up and shortens.
//!
//! # What a run asserts
//!
//! - A call ends exactly once, and in finite virtual time.
//! - A call is executed at most once, over restarts of the server and whatever the network does.
//! - A reply is the reply to its own request, whole and unchanged.
//! - A call that ended in an answer was executed.
//! - If nothing crashed and nothing was cut off, every call ends in its answer.
//!
//! Damaged datagrams are dropped by the network, as a NIC does whose ICRC does not match. In the
//! mode in which they arrive, only what does not depend on contents is asserted: the format has no
//! checksum of its own.

pub mod call;
pub mod endpoint;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod network;
pub mod oracle;
pub mod queue;
pub mod random;
pub mod scenario;
pub mod world;
