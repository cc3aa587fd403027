//! What a server counts, for its log and for the tests.

/// What became of the datagrams, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions opened.
    pub connects: u64,
    /// Connects that found their session open already.
    pub repeated_connects: u64,
    /// Connects refused because no slot was free, or the key's hash chain was full.
    pub refused_busy: u64,
    /// Connects refused for their version.
    pub refused_version: u64,
    /// Connects and requests refused because the server is going away.
    pub refused_going_away: u64,
    /// Requests handed to a handler.
    pub requests: u64,
    /// Requests answered again from the saved reply.
    pub replays: u64,
    /// Requests longer than their session carries.
    pub too_large: u64,
    /// Malformed datagrams that were answered with an Error.
    pub bad_requests: u64,
    /// Datagrams that named no session of their sender.
    pub no_such_session: u64,
    /// Pings answered.
    pub pings: u64,
    /// Sessions ended by their client.
    pub disconnects: u64,
    /// Sessions ended because nothing was heard of them.
    pub expired: u64,
    /// Malformed datagrams that were ignored.
    pub ignored_malformed: u64,
    /// Ignored datagrams of kinds that only a server sends.
    pub ignored_unexpected: u64,
    /// Ignored requests that were over.
    pub ignored_stale: u64,
    /// Ignored requests that came while one of their session was being executed.
    pub ignored_executing: u64,
    /// Answers that did not fit the buffer that the caller gave.
    pub no_room: u64,
}

/// Counts one more; comes round rather than fails.
#[inline]
pub(super) fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}
