//! The request slots of all sessions, in memory that the caller owns.

/// The most slots of a session.
pub const MAX_SLOTS: u16 = 64;

/// One request slot. The caller provides an array of them and never looks inside.
#[derive(Clone, Debug, Default)]
pub struct ServerSlot {
    pub(crate) request: u64,
}

impl ServerSlot {
    /// A slot that no session has.
    pub const fn new() -> Self {
        Self { request: 0 }
    }
}
