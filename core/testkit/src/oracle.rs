//! What callers and handlers may see, and a judgement of what they saw.
//!
//! The model is small. A call that is begun ends once, as one of [`Outcome`]. It is executed at
//! most once, whatever becomes of it, even after a restart of the server; a call that ended in a
//! reply or in the handler's failure was executed before, by the handler that it asked for. A reply
//! is its own request's. While nobody crashes and patience lasts, every call ends in its answer;
//! that is for [`Oracle::settle`] to ask.

use mitosis_core::wire::ErrorCode;

use crate::call::{CallId, Work};

/// How a call may end for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With its reply.
    Replied,
    /// With an error that the server sent.
    Failed(ErrorCode),
    /// With the end of the caller's patience. It may have been executed.
    TimedOut,
    /// With the end of the session. It may have been executed.
    Closed,
}

/// What must not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A handler was given a call for the second time.
    ExecutedTwice(CallId),
    /// A handler was given what nobody asked for.
    ExecutedUnasked(CallId),
    /// A handler was given a request that is not as its caller wrote it.
    DamagedRequest,
    /// A caller was given what is not the reply to its request.
    Mismatched(CallId),
    /// A caller was told of the end of a call for the second time.
    EndedTwice(CallId),
    /// A caller was told of the end of a call that it did not make.
    EndedUnasked {
        /// What the client called it.
        request: u64,
    },
    /// A caller was told of an answer although no handler ran.
    AnsweredUnexecuted(CallId),
    /// A caller was told of another end than its handler makes.
    WrongOutcome(CallId, Outcome),
    /// A client did not accept a call that it has room for.
    Unaccepted(CallId),
    /// An endpoint sent a datagram that is longer than the path takes.
    Oversized {
        /// Its length in bytes.
        len: usize,
    },
    /// Calls did not end in time.
    Lost {
        /// How many.
        calls: u64,
    },
    /// Calls ended without their answer although nothing excuses that.
    Unanswered {
        /// How many.
        calls: u64,
    },
    /// Sessions were refused or never opened although nothing excuses that.
    Unserved {
        /// How many.
        sessions: u64,
    },
    /// The clock does not move any more, as endpoints go round in circles.
    Standstill {
        /// Since this time.
        at_ns: u64,
    },
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::ExecutedTwice(id) => write!(f, "{id} was executed twice"),
            Self::ExecutedUnasked(id) => write!(f, "{id} was executed and never made"),
            Self::DamagedRequest => f.write_str("a handler was given a damaged request"),
            Self::Mismatched(id) => write!(f, "{id} was given a reply that is not its own"),
            Self::EndedTwice(id) => write!(f, "{id} ended twice"),
            Self::EndedUnasked { request } => {
                write!(f, "request {request} ended, which is not outstanding")
            }
            Self::AnsweredUnexecuted(id) => write!(f, "{id} was answered and not executed"),
            Self::WrongOutcome(id, outcome) => write!(f, "{id} ended in {outcome:?}"),
            Self::Unaccepted(id) => write!(f, "{id} was not accepted by its client"),
            Self::Oversized { len } => write!(f, "a datagram of {len} bytes was sent"),
            Self::Lost { calls } => write!(f, "{calls} calls never ended"),
            Self::Unanswered { calls } => write!(f, "{calls} calls ended without their answer"),
            Self::Unserved { sessions } => write!(f, "{sessions} sessions were not served"),
            Self::Standstill { at_ns } => write!(f, "the clock stands still at {at_ns} ns"),
        }
    }
}

impl std::error::Error for Violation {}

/// What was seen, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Calls that clients were told to make.
    pub ordered: u64,
    /// Calls that were begun.
    pub begun: u64,
    /// Calls that ended in their reply.
    pub replied: u64,
    /// Calls that ended in the failure of their handler, as they were to.
    pub handler_failed: u64,
    /// Calls that the server refused.
    pub refused: u64,
    /// Calls that ended with the caller's patience.
    pub timed_out: u64,
    /// Calls that ended with their session.
    pub closed: u64,
    /// Calls whose caller crashed.
    pub abandoned: u64,
    /// Executions.
    pub executed: u64,
    /// Executions of what had been executed.
    pub executed_twice: u64,
    /// Replies that were not their request's.
    pub mismatched: u64,
    /// Damaged requests that came to a handler, requests that came under a damaged number once
    /// more, and damaged replies; only where damaged datagrams arrive.
    pub damaged: u64,
    /// Sessions that clients opened.
    pub sessions: u64,
    /// Handshakes that were refused or timed out.
    pub unopened: u64,
}

impl Tally {
    /// Calls that are over.
    pub fn ended(&self) -> u64 {
        self.replied
            + self.handler_failed
            + self.refused
            + self.timed_out
            + self.closed
            + self.abandoned
    }

    /// Calls that ended in what their handler said.
    pub fn answered(&self) -> u64 {
        self.replied + self.handler_failed
    }

    /// Adds what another run counted.
    pub fn add(&mut self, other: &Self) {
        self.ordered += other.ordered;
        self.begun += other.begun;
        self.replied += other.replied;
        self.handler_failed += other.handler_failed;
        self.refused += other.refused;
        self.timed_out += other.timed_out;
        self.closed += other.closed;
        self.abandoned += other.abandoned;
        self.executed += other.executed;
        self.executed_twice += other.executed_twice;
        self.mismatched += other.mismatched;
        self.damaged += other.damaged;
        self.sessions += other.sessions;
        self.unopened += other.unopened;
    }
}

/// A set of call numbers.
#[derive(Clone, Debug, Default)]
struct Numbers(Vec<u64>);

impl Numbers {
    /// Whether it was not yet in the set.
    fn insert(&mut self, number: u32) -> bool {
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn contains(&self, number: u32) -> bool {
        let word = self.0.get(number as usize / 64);
        word.is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

/// One life of a client.
#[derive(Clone, Debug, Default)]
struct Life {
    begun: u32,
    executed: Numbers,
    ended: Numbers,
}

/// Keeps the books of a run: two bits for each call.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// The numbers.
    pub tally: Tally,
    /// Set where damaged datagrams arrive: what a payload contains then proves nothing.
    pub contents_may_be_damaged: bool,
    lives: Vec<Life>,
    violation: Option<Violation>,
}

impl Oracle {
    /// The first thing that was wrong.
    pub fn verdict(&self) -> Result<(), Violation> {
        self.violation.map_or(Ok(()), Err)
    }

    /// Something is wrong.
    pub fn violated(&mut self, violation: Violation) {
        self.violation.get_or_insert(violation);
    }

    /// A client was told to make calls.
    pub fn ordered(&mut self, count: u32) {
        self.tally.ordered += u64::from(count);
    }

    /// Whether all calls that were ordered have ended.
    pub fn calls_are_over(&self) -> bool {
        self.tally.ended() >= self.tally.ordered
    }

    /// A client begins a life.
    pub fn born(&mut self) -> u32 {
        self.lives.push(Life::default());
        (self.lives.len() - 1) as u32
    }

    /// Which of its calls the client makes next.
    pub fn begin(&mut self, incarnation: u32) -> CallId {
        let life = &mut self.lives[incarnation as usize];
        let number = life.begun;
        life.begun += 1;
        self.tally.begun += 1;
        CallId {
            incarnation,
            number,
        }
    }

    /// A handler runs.
    pub fn executed(&mut self, id: CallId) {
        self.tally.executed += 1;
        let life = self.lives.get_mut(id.incarnation as usize);
        let Some(life) = life.filter(|life| id.number < life.begun) else {
            return self.violated(Violation::ExecutedUnasked(id));
        };
        if !life.executed.insert(id.number) {
            // That a request comes once more under a damaged number is beyond what its payload's own
            // digest can tell.
            if self.contents_may_be_damaged {
                self.tally.damaged += 1;
            } else {
                self.tally.executed_twice += 1;
                self.violated(Violation::ExecutedTwice(id));
            }
        }
    }

    /// A handler was given what no caller wrote.
    pub fn executed_damaged(&mut self) {
        self.tally.executed += 1;
        self.tally.damaged += 1;
        if !self.contents_may_be_damaged {
            self.violated(Violation::DamagedRequest);
        }
    }

    /// A caller is told of a call's end. `genuine` is whether a reply is its request's.
    pub fn ended(&mut self, id: CallId, work: Work, outcome: Outcome, genuine: bool) {
        let life = &mut self.lives[id.incarnation as usize];
        let executed = life.executed.contains(id.number);
        if !life.ended.insert(id.number) {
            return self.violated(Violation::EndedTwice(id));
        }
        let lenient = self.contents_may_be_damaged;
        let answered = match outcome {
            Outcome::Replied => {
                self.tally.replied += 1;
                if !genuine && lenient {
                    self.tally.damaged += 1;
                } else if !genuine {
                    self.tally.mismatched += 1;
                    self.violated(Violation::Mismatched(id));
                }
                Some(work != Work::Failing)
            }
            Outcome::Failed(ErrorCode::HandlerFailed) => {
                self.tally.handler_failed += 1;
                Some(work == Work::Failing)
            }
            Outcome::Failed(_) => {
                self.tally.refused += 1;
                None
            }
            Outcome::TimedOut => {
                self.tally.timed_out += 1;
                None
            }
            Outcome::Closed => {
                self.tally.closed += 1;
                None
            }
        };
        match answered {
            _ if lenient => {}
            Some(false) => self.violated(Violation::WrongOutcome(id, outcome)),
            Some(true) if !executed => self.violated(Violation::AnsweredUnexecuted(id)),
            _ => {}
        }
    }

    /// A caller crashed before its call ended.
    pub fn abandoned(&mut self, id: CallId) {
        if self.lives[id.incarnation as usize].ended.insert(id.number) {
            self.tally.abandoned += 1;
        } else {
            self.violated(Violation::EndedTwice(id));
        }
    }

    /// The final judgement: everything ended, and, if `all_answered`, in its answer.
    pub fn settle(&self, all_answered: bool) -> Result<(), Violation> {
        self.verdict()?;
        let lost = self.tally.ordered.saturating_sub(self.tally.ended());
        if lost > 0 {
            return Err(Violation::Lost { calls: lost });
        }
        let unanswered = self.tally.ended() - self.tally.answered();
        if all_answered && unanswered > 0 {
            return Err(Violation::Unanswered { calls: unanswered });
        }
        Ok(())
    }
}
