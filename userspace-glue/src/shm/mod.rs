//! Datagrams through shared memory, between the processes of one machine and one user.
//!
//! A server listens on a Unix socket in the user's runtime directory ([`name`]). To each client that greets it there, it
//! passes a segment of shared memory of that client's own, which has a ring for each direction ([`segment`]). The socket
//! stays open for as long as both live:
//! - a byte through it wakes an end that sleeps;
//! - when a process dies, however it dies, the kernel closes it, and that wakes the other end at once.
//!
//! So there is nothing that two clients share, hence nothing that one can spoil for another or take with it when it dies;
//! no cell is reserved and then filled; and a wake-up that the dead still owed comes from the kernel.
//!
//! Only the process that serves may write the directory's names, and a name is held by a lock on a file, which ends with
//! its process: what a killed server has left is found out and taken over. The segment has no name at all: it goes when the
//! last of both processes goes.
//!
//! A process that forks without executing another program keeps the sockets open on behalf of its child, and its death is
//! not noticed before the child's.

mod client;
mod first_look;
#[cfg(feature = "fuzzing")]
mod fuzzing;
mod greeting;
mod name;
mod segment;
mod server;
mod strangers;

pub use client::ShmClient;
#[cfg(feature = "fuzzing")]
pub use fuzzing::shm_ring;
pub use name::runtime_dir;
pub use server::{ShmServer, ShmServerConfig};

use mitosis_core::sync::line_ring::lines_of;
use mitosis_core::wire::MAX_DATAGRAM;

/// The longest datagram in bytes: nothing but the core's format limits it.
const DATAGRAM_LEN: usize = MAX_DATAGRAM;

/// How many datagrams leave together at most. More, and neither end has anything to do while the other writes.
const MOST_IN_GROUP: u64 = 16;

/// How many datagrams of this length a ring of so many lines holds.
fn ring_holds(lines: usize, datagram_len: usize) -> u16 {
    let each = lines_of(datagram_len.min(DATAGRAM_LEN));
    u16::try_from(lines / each).unwrap_or(u16::MAX).max(1)
}

/// Its words.
const DATAGRAM_WORDS: usize = DATAGRAM_LEN / size_of::<u64>();
