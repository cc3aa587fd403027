//! Where the kernel has noted a program's parts to be (descriptor.md §5).

use super::{check, check_address, Wrong, PAGE};

/// Length of the section in bytes.
pub const LEN: usize = 96;

words! {
    /// What `prctl(PR_SET_MM_MAP)` sets, and where the vdso is.
    Layout {
        /// Begin of the program's code.
        start_code,
        /// End of it.
        end_code,
        /// Begin of its data.
        start_data,
        /// End of it.
        end_data,
        /// Begin of the heap.
        start_brk,
        /// End of the heap: what `brk` moves.
        brk,
        /// Where the stack pointer was when the program started.
        start_stack,
        /// Begin of the arguments.
        arg_start,
        /// End of them.
        arg_end,
        /// Begin of the environment.
        env_start,
        /// End of it.
        env_end,
        /// Begin of the vdso, or 0 without one.
        vdso,
    }
}

const _: () = assert!(size_of::<Fields>() == LEN);

impl Fields {
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let layout = self.record();
        for (what, start, end) in [
            ("code", layout.start_code, layout.end_code),
            ("data", layout.start_data, layout.end_data),
            ("brk", layout.start_brk, layout.brk),
            ("stack", layout.start_stack, layout.start_stack),
            ("arguments", layout.arg_start, layout.arg_end),
            ("environment", layout.env_start, layout.env_end),
            ("vdso", layout.vdso, layout.vdso),
        ] {
            check_address(what, end)?;
            check(start <= end, what, start)?;
        }
        check(layout.vdso % PAGE == 0, "vdso", layout.vdso)
    }
}
