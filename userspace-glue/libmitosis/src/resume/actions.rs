//! Signals, by the system calls themselves: the C library refuses some, and knows other restorers.

use mitosis_core::descriptor::{SignalAction, SIGNALS};

use crate::error::Error;
use crate::system::checked;

/// Length of the kernel's signal sets in bytes.
const SET_LEN: usize = 8;

/// Blocks every signal, and returns which were.
pub(super) fn block_all() -> u64 {
    set_mask(u64::MAX)
}

/// Blocks these and no others.
pub(super) fn restore(blocked: u64) {
    set_mask(blocked);
}

fn set_mask(blocked: u64) -> u64 {
    let mut before = 0u64;
    // SAFETY: both sets are valid for the length that is given.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const blocked,
            &raw mut before,
            SET_LEN,
        );
    }
    before
}

/// Sets the actions of all signals. None may arrive any more: the handlers are not there yet.
pub(super) fn set(actions: &[SignalAction; SIGNALS]) -> Result<(), Error> {
    for (signal, action) in (1..).zip(actions) {
        if [libc::SIGKILL, libc::SIGSTOP].contains(&signal) {
            continue;
        }
        // As the kernel has it.
        let action = [action.handler, action.flags, action.restorer, action.mask];
        // SAFETY: `action` is valid during the call.
        let set = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                action.as_ptr(),
                std::ptr::null_mut::<u64>(),
                SET_LEN,
            )
        };
        checked("rt_sigaction", set)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::special::tests::in_a_child;

    #[test]
    fn actions_are_set_as_given() {
        in_a_child(|| {
            let mut actions = [SignalAction::default(); SIGNALS];
            actions[libc::SIGUSR1 as usize - 1].handler = 1;
            actions[33].handler = 1;
            block_all();
            if set(&actions).is_err() {
                return false;
            }
            restore(0);
            // Both are ignored, and the second is one that glibc does not let programs set.
            // SAFETY: sends signals to this process.
            unsafe {
                libc::raise(libc::SIGUSR1);
                libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), 34);
            }
            true
        });
    }
}
