//! What a server counts, for its log and for the tests.

/// What became of the datagrams, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sessions opened.
    pub connects: u64,
    /// Connects that found their session open already.
    pub repeated_connects: u64,
    /// Connects refused because no session, slot or credit was free, too many of the peer's
    /// sessions were half-open, or the key's hash chain was full.
    pub refused_busy: u64,
    /// Connects refused because the server requires a cluster key and they bore none.
    pub refused_key_required: u64,
    /// Connects refused because their cluster key is another.
    pub refused_wrong_key: u64,
    /// Connects refused because they bore a cluster key and the server has none.
    pub refused_no_key_here: u64,
    /// Confirms refused because they do not belong to their session's Accept.
    pub refused_replayed: u64,
    /// Connects refused for their version.
    pub refused_version: u64,
    /// Connects and requests refused because the server is going away.
    pub refused_going_away: u64,
    /// Requests handed to a handler.
    pub requests: u64,
    /// Requests answered again from the saved reply.
    pub replays: u64,
    /// Parts of requests taken in, those that completed a request not included.
    pub segments: u64,
    /// Parts of replies sent at the client's wish, the first not included.
    pub fetches: u64,
    /// Requests and results longer than their session carries.
    pub too_large: u64,
    /// Malformed datagrams that were answered with an Error.
    pub bad_requests: u64,
    /// Datagrams that named no session of their sender.
    pub no_such_session: u64,
    /// Pings answered.
    pub pings: u64,
    /// Sessions ended by their client.
    pub disconnects: u64,
    /// Sessions ended because their client opened a new one.
    pub superseded: u64,
    /// Sessions ended because nothing was heard of them.
    pub expired: u64,
    /// Malformed datagrams that were ignored.
    pub ignored_malformed: u64,
    /// Ignored datagrams of kinds that only a server sends.
    pub ignored_unexpected: u64,
    /// Ignored requests that were over.
    pub ignored_stale: u64,
    /// Ignored requests that came while one of their slot was being executed.
    pub ignored_executing: u64,
    /// Ignored parts of requests, of which an earlier part is missing.
    pub ignored_out_of_order: u64,
    /// Ignored datagrams of sessions that await a valid Confirm.
    pub ignored_unconfirmed: u64,
    /// Answers that did not fit the buffer that the caller gave.
    pub no_room: u64,
}

/// Counts one more; comes round rather than fails.
#[inline]
pub(super) fn count(counter: &mut u64) {
    *counter = counter.wrapping_add(1);
}
