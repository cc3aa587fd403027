//! The numbers by which sessions and requests are named on the wire.

use core::fmt;

/// Names one session of one incarnation of one server (wire.md §7.1). The server chooses it, so two
/// cannot collide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// The slot in the server's table.
    pub index: u32,
    /// Which of the slot's successive sessions; never 0 in a session that exists.
    pub generation: u32,
    /// Which incarnation of the server.
    pub epoch: u32,
}

impl SessionId {
    /// Names no session: what a Connect carries.
    pub const NONE: Self = Self {
        index: 0,
        generation: 0,
        epoch: 0,
    };
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{:08x}", self.index, self.generation, self.epoch)
    }
}

/// Numbers the requests of a session, from 1 upwards (wire.md §8). 0 stands for no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// Names a peer's address: an index that the glue chose for an address handle, opaque here.
pub type PeerId = u32;
