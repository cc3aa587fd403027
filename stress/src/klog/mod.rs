//! Kernel logs: followed, shown, read and audited.
//!
//! [`record`] is one record of `/dev/kmsg`, [`lines`] what the modules of this repository print, [`audit`] what must not
//! be in a log at all, [`log`] what one host has said, and [`watch`] follows the logs of all hosts at once and waits for
//! what they say.

pub mod audit;
pub mod lines;
pub mod log;
pub mod record;
pub mod watch;
