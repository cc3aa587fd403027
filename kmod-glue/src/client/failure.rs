//! Why a test fails, and how a person is told.

use mitosis_core::rpc::client::Event as ClientEvent;
use mitosis_core::wire::ErrorCode;

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
    Refused(ErrorCode),
    /// The server did not answer the handshake.
    ConnectTimedOut,
    /// The server ended the session.
    Closed(ErrorCode),
    /// The server refused a call.
    Failed(ErrorCode),
    /// The server did not answer a call.
    CallTimedOut,
    /// The server was lost and has not been found again.
    Lost(Unresolved),
    /// The core refused to begin a call.
    Misuse,
}

impl CallerFailure {
    /// What an event that is no reply means for the thread.
    pub fn of(event: &ClientEvent) -> CallerFailure {
        match *event {
            ClientEvent::Refused(code) => CallerFailure::Refused(code),
            ClientEvent::ConnectTimedOut => CallerFailure::ConnectTimedOut,
            ClientEvent::Failed { error, .. } => CallerFailure::Failed(error),
            ClientEvent::TimedOut { .. } => CallerFailure::CallTimedOut,
            ClientEvent::Closed(code) => CallerFailure::Closed(code),
            ClientEvent::Connected | ClientEvent::Replied { .. } => CallerFailure::Misuse,
        }
    }

    /// Whether a server that comes back makes it good.
    pub fn is_passing(self) -> bool {
        match self {
            CallerFailure::ConnectTimedOut
            | CallerFailure::CallTimedOut
            | CallerFailure::Closed(_)
            | CallerFailure::Refused(ErrorCode::GoingAway | ErrorCode::Busy)
            | CallerFailure::Failed(ErrorCode::GoingAway) => true,
            CallerFailure::Kernel(..)
            | CallerFailure::Receive(_)
            | CallerFailure::Refused(_)
            | CallerFailure::Failed(_)
            | CallerFailure::Lost(_)
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
            CallerFailure::Refused(code) => {
                "the server refused a session: ".put(line);
                code.text().put(line);
            }
            CallerFailure::ConnectTimedOut => {
                "the server did not answer the handshake in time".put(line);
            }
            CallerFailure::Closed(code) => {
                "the server ended the session: ".put(line);
                code.text().put(line);
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
            CallerFailure::Misuse => "the call could not be begun".put(line),
        }
    }
}
