//! What the server could not do although it was asked properly, each by its cause: counted, and said at a bearable pace.
//!
//! Each of them fails a run. A client can provoke them as often as it likes, so not each has a line of its own.

use mitosis_core::wire::ErrorCode;

use super::pace::Pace;
use crate::errno::Errno;
use crate::payload::Mismatch;
use crate::{error, warning};

/// Why something failed.
#[derive(Clone, Copy)]
pub enum Cause {
    /// A request's checksum is not that of its payload.
    Damaged,
    /// A slot that the core knows has no buffer here: a defect.
    NoBuffer,
    /// The kernel did not take a send.
    Send(Errno),
}

/// Why a request gets an Error and no reply.
pub enum Unanswered {
    /// It cannot be done, and the client is told why: nothing has failed here.
    Refused(ErrorCode),
    /// Something failed.
    Failed(Cause),
}

impl Unanswered {
    /// What the client is told.
    pub fn code(&self) -> ErrorCode {
        match self {
            Unanswered::Refused(code) => *code,
            Unanswered::Failed(_) => ErrorCode::HandlerFailed,
        }
    }
}

impl From<ErrorCode> for Unanswered {
    fn from(code: ErrorCode) -> Unanswered {
        match code {
            ErrorCode::HandlerFailed => Unanswered::Failed(Cause::NoBuffer),
            code => Unanswered::Refused(code),
        }
    }
}

impl From<Mismatch> for Unanswered {
    fn from(_: Mismatch) -> Unanswered {
        Unanswered::Failed(Cause::Damaged)
    }
}

/// How often each has happened.
#[derive(Default)]
pub struct Failures {
    damaged: Tally,
    no_buffer: Tally,
    send: Tally,
}

#[derive(Default)]
struct Tally {
    count: u64,
    pace: Pace,
}

impl Tally {
    /// Counts one more; how many there are, if that is to be said.
    fn add(&mut self, now_ns: u64) -> Option<u64> {
        self.count = self.count.wrapping_add(1);
        if !self.pace.allows(now_ns) {
            return None;
        }
        self.pace.told(now_ns);
        Some(self.count)
    }
}

impl Failures {
    /// Counts a failure, and says so unless that was said a moment ago.
    #[cold]
    pub fn add(&mut self, now_ns: u64, cause: Cause) {
        match cause {
            Cause::Damaged => {
                if let Some(count) = self.damaged.add(now_ns) {
                    error!("checksum mismatch in a request (", count, " so far)");
                }
            }
            Cause::NoBuffer => {
                if let Some(count) = self.no_buffer.add(now_ns) {
                    error!(
                        "a request's slot has no buffer (",
                        count, " so far): a defect in the module"
                    );
                }
            }
            Cause::Send(errno) => {
                if let Some(count) = self.send.add(now_ns) {
                    warning!(
                        "cannot send: ",
                        errno,
                        " (",
                        count,
                        " so far); the client will ask again"
                    );
                }
            }
        }
    }

    /// All that have happened.
    pub fn total(&self) -> u64 {
        [&self.damaged, &self.no_buffer, &self.send]
            .iter()
            .fold(0, |sum, tally| sum.wrapping_add(tally.count))
    }
}
