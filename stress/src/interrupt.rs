//! Ctrl-C, SIGTERM and SIGHUP: a flag that every wait looks at, so that a run ends by unloading what it loaded.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use anyhow::Context;
use nix::sys::signal::SigSet;

/// Whether the user asked to stop. Clones share the flag.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// A flag that the process's signals raise. Starts a thread: after [`crate::cluster::vm::enter_namespace`] only.
    pub fn from_signals() -> anyhow::Result<Self> {
        let interrupt = Self::default();
        let raised = interrupt.clone();
        ctrlc::set_handler(move || raised.raise()).context("cannot handle Ctrl-C")?;
        // Whoever started this program may have blocked them until there is a handler, and programs started here would
        // inherit that.
        SigSet::empty()
            .thread_set_mask()
            .context("cannot unblock signals")?;
        Ok(interrupt)
    }

    /// Asks to stop.
    pub fn raise(&self) {
        // Relaxed: the flag publishes nothing but itself.
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether someone asked to stop.
    pub fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// `Err(Interrupted)` once someone asked to stop.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_raised() {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }
}

/// The user asked to stop; exit code 130.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the user stopped the run")
    }
}

impl std::error::Error for Interrupted {}
