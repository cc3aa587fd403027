//! What a seed does about signals (descriptor.md §10).

use super::{check, check_address, Wrong};

/// Length of a record in bytes.
pub const LEN: usize = 32;

/// How many signals there are. The first record is that of signal 1.
pub const SIGNALS: usize = 64;

/// `SIG_DFL`.
const DEFAULT: u64 = 0;

/// `SIGKILL` and `SIGSTOP`, which nobody handles.
const UNHANDLED: [usize; 2] = [9, 19];

/// `SA_NOCLDSTOP`, `SA_NOCLDWAIT`, `SA_SIGINFO`, `SA_EXPOSE_TAGBITS`, `SA_RESTORER`, `SA_ONSTACK`,
/// `SA_RESTART`, `SA_NODEFER`, `SA_RESETHAND`: what the kernel keeps of what it is given.
const FLAGS: u64 =
    1 | 2 | 4 | 0x800 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x4000_0000 | 0x8000_0000;

words! {
    /// What is done about a signal, as the system call `rt_sigaction` has it.
    SignalAction {
        /// Address of the handler, 0 for the default, 1 to ignore it.
        handler,
        /// The `SA_*` flags.
        flags,
        /// Where the handler returns to.
        restorer,
        /// The signals that are blocked meanwhile: bit n is signal n + 1.
        mask,
    }
}

const _: () = assert!(size_of::<Fields>() == LEN);

impl Fields {
    /// Checks the record of a signal.
    pub(super) fn check(&self, signal: usize) -> Result<(), Wrong> {
        let action = self.record();
        check_address("signal handler", action.handler)?;
        check(
            action.handler == DEFAULT || !UNHANDLED.contains(&signal),
            "handler of SIGKILL or SIGSTOP",
            action.handler,
        )?;
        check(action.flags & !FLAGS == 0, "signal flags", action.flags)?;
        check_address("signal restorer", action.restorer)
    }
}
