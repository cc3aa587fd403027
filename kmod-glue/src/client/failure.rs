//! Why a test fails, and how a person is told.

use mitosis_core::rpc::client::Event as ClientEvent;
use mitosis_core::wire::{ErrorCode, Refusal};

use crate::cm::Unresolved;
use crate::errno::Errno;
use crate::log::{Line, Part};

/// Why a test failed.
#[derive(Clone, Copy)]
pub enum Failure {
    /// rmmod came first: nobody's fault.
    Unloaded,
    /// The device is going away.
    DeviceRemoved,
    /// The server was not found at the start.
    Unresolved(Unresolved),
    /// The kernel refused something.
    Kernel(&'static str, Errno),
    /// One of the threads failed.
    Caller {
        /// Which.
        thread: u32,
        /// Why.
        failure: CallerFailure,
    },
}

impl Failure {
    /// For `map_err`.
    pub fn kernel(step: &'static str) -> impl FnOnce(Errno) -> Failure {
        move |errno| Failure::Kernel(step, errno)
    }
}

/// Why one of the threads failed.
#[derive(Clone, Copy)]
pub enum CallerFailure {
    /// The kernel refused something.
    Kernel(&'static str, Errno),
    /// A receive ended with this completion status.
    Receive(u32),
    /// The server refused a session.
    Refused(Refusal),
    /// The server did not answer the handshake.
    ConnectTimedOut,
    /// The server ended the session.
    Closed(Refusal),
    /// The server refused a call.
    Failed(ErrorCode),
    /// The server did not answer a call.
    CallTimedOut,
    /// The server was lost and has not been found again.
    Lost(Unresolved),
    /// A reply is not what the server sent, or not what was asked for.
    Damaged,
    /// The session does not carry messages of this length.
    TooLarge {
        /// In bytes.
        message_len: u32,
        /// In bytes.
        limit: u32,
    },
    /// The core refused to begin a call.
    Misuse,
}

impl CallerFailure {
    /// What an event that is no reply means for the thread.
    pub fn of(event: &ClientEvent) -> CallerFailure {
        match *event {
            ClientEvent::Refused(refusal) => CallerFailure::Refused(refusal),
            ClientEvent::ConnectTimedOut => CallerFailure::ConnectTimedOut,
            ClientEvent::Failed { error, .. } => CallerFailure::Failed(error),
            ClientEvent::TimedOut { .. } => CallerFailure::CallTimedOut,
            ClientEvent::Closed { error, .. } => CallerFailure::Closed(error),
            ClientEvent::Connected | ClientEvent::Reply { .. } => CallerFailure::Misuse,
        }
    }

    /// Whether a server that comes back makes it good.
    pub fn is_passing(self) -> bool {
        match self {
            CallerFailure::ConnectTimedOut
            | CallerFailure::CallTimedOut
            | CallerFailure::Closed(_)
            | CallerFailure::Failed(ErrorCode::GoingAway) => true,
            CallerFailure::Refused(refusal) => {
                matches!(refusal.code, ErrorCode::GoingAway | ErrorCode::Busy)
            }
            CallerFailure::Kernel(..)
            | CallerFailure::Receive(_)
            | CallerFailure::Failed(_)
            | CallerFailure::Lost(_)
            | CallerFailure::Damaged
            | CallerFailure::TooLarge { .. }
            | CallerFailure::Misuse => false,
        }
    }
}

impl Part for CallerFailure {
    fn put(&self, line: &mut Line) {
        match *self {
            CallerFailure::Kernel(step, errno) => {
                step.put(line);
                ": ".put(line);
                errno.put(line);
            }
            CallerFailure::Receive(status) => {
                "a receive ended with completion status ".put(line);
                status.put(line);
            }
            CallerFailure::Refused(refusal) => {
                "the server refused a session: ".put(line);
                refusal.put(line);
            }
            CallerFailure::ConnectTimedOut => {
                "the server did not answer the handshake in time".put(line);
            }
            CallerFailure::Closed(refusal) => {
                "the server ended the session: ".put(line);
                refusal.put(line);
            }
            CallerFailure::Failed(code) => {
                "the call failed: ".put(line);
                code.text().put(line);
            }
            CallerFailure::CallTimedOut => {
                "the server did not answer a call in time; has it stopped?".put(line);
            }
            CallerFailure::Lost(why) => {
                "the server was lost and has not come back: ".put(line);
                why.put(line);
            }
            CallerFailure::Damaged => "checksum mismatch in a reply".put(line),
            CallerFailure::TooLarge { message_len, limit } => {
                "messages of ".put(line);
                message_len.put(line);
                " bytes, and the server takes ".put(line);
                limit.put(line);
                " (payload_size)".put(line);
            }
            CallerFailure::Misuse => "the call could not be begun".put(line),
        }
    }
}
