//! What the user asked for and cannot have: told before anything starts, with exit code 2.

use std::fmt;

/// One or more requests that make no sense, each with its name and the reason.
#[derive(Debug, PartialEq, Eq)]
pub struct Refusal(pub Vec<String>);

impl Refusal {
    /// A refusal of one thing.
    pub fn of(reason: impl Into<String>) -> Self {
        Refusal(vec![reason.into()])
    }

    /// `Err` with all `reasons`, or `Ok` where there are none.
    pub fn unless_empty(reasons: Vec<String>) -> Result<(), Self> {
        if reasons.is_empty() {
            Ok(())
        } else {
            Err(Refusal(reasons))
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for Refusal {}
