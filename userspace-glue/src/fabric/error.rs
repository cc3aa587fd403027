//! Why a fabric cannot be opened, or has come to its end.

use std::borrow::Cow;
use std::{error, fmt, io};

/// What is wrong, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FabricErrorKind {
    /// There is no such device, port, name or server.
    NotFound,
    /// The process lacks a right or a limit is too low: a file's mode, memlock, a capability.
    Denied,
    /// Another process has the name or the service.
    InUse,
    /// There is no more of something: memory, queue pairs, places for peers.
    Exhausted,
    /// The other end is gone, or was never of this protocol.
    PeerGone,
    /// The port has gone down.
    PortDown,
    /// The device has been removed, or is broken.
    DeviceGone,
    /// This build or this kernel cannot do it.
    Unsupported,
    /// The caller's misuse: a datagram too long, a setting out of range.
    Misuse,
    /// A system call failed in a way that has no name above.
    System,
}

/// Why a fabric cannot be opened or has come to its end: which thing, what is wrong with it, and what can be done.
#[derive(Debug)]
pub struct FabricError {
    kind: FabricErrorKind,
    what: Cow<'static, str>,
    advice: Cow<'static, str>,
    source: Option<io::Error>,
}

impl FabricError {
    /// `what` names the thing and says what is wrong with it; `advice` says what to do, as a clause of its own.
    pub fn new(
        kind: FabricErrorKind,
        what: impl Into<Cow<'static, str>>,
        advice: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            kind,
            what: what.into(),
            advice: advice.into(),
            source: None,
        }
    }

    /// The same, with what the system said.
    #[must_use]
    pub fn because(mut self, source: impl Into<io::Error>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What is wrong, for programs.
    pub fn kind(&self) -> FabricErrorKind {
        self.kind
    }

    /// What to do about it; empty if nothing is known.
    pub fn advice(&self) -> &str {
        &self.advice
    }
}

impl fmt::Display for FabricError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        if !self.advice.is_empty() {
            write!(f, "; {}", self.advice)?;
        }
        Ok(())
    }
}

impl error::Error for FabricError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.source
            .as_ref()
            .map(|source| source as &(dyn error::Error + 'static))
    }
}
