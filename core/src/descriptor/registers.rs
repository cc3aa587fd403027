//! The registers of x86-64 with which a child begins (descriptor.md §4).

use super::{check, check_address, Wrong};

/// Length of the section in bytes.
pub const LEN: usize = 184;

/// The only code segment that a child may have: that of 64-bit programs, `__USER_CS`.
pub const USER_CS: u64 = 0x33;

/// The only stack segment that a child may have: `__USER_DS`.
pub const USER_SS: u64 = 0x2b;

/// What programs may change of the flags: CF, PF, AF, ZF, SF, TF, DF, OF, RF, AC and ID, those that
/// the kernel takes from a signal's frame too.
const FREE_FLAGS: u64 = 0x0025_0dd5;

/// What is always set in user mode: the bit that is always 1, and IF.
const FIXED_FLAGS: u64 = 0x0000_0202;

words! {
    /// The registers, in the order of the kernel's `pt_regs`, and the bases of FS and GS. Vector
    /// and floating-point registers are not carried: a seed is in a system call, which leaves none
    /// to be kept but the control words, and those are its own affair.
    Registers {
        /// r15
        r15,
        /// r14
        r14,
        /// r13
        r13,
        /// r12
        r12,
        /// rbp
        rbp,
        /// rbx
        rbx,
        /// r11
        r11,
        /// r10
        r10,
        /// r9
        r9,
        /// r8
        r8,
        /// rax
        rax,
        /// rcx
        rcx,
        /// rdx
        rdx,
        /// rsi
        rsi,
        /// rdi
        rdi,
        /// Number of the system call that is under way, or -1.
        orig_rax,
        /// Instruction pointer.
        rip,
        /// Code segment: [`USER_CS`].
        cs,
        /// Flags.
        eflags,
        /// Stack pointer.
        rsp,
        /// Stack segment: [`USER_SS`].
        ss,
        /// Base of FS: thread-local storage.
        fs_base,
        /// Base of GS.
        gs_base,
    }
}

const _: () = assert!(size_of::<Fields>() == LEN);

impl Fields {
    /// A kernel that returns to user mode with these registers arrives in user mode, with nothing
    /// that a program could not have set itself.
    pub(super) fn check(&self) -> Result<(), Wrong> {
        let registers = self.record();
        check(registers.cs == USER_CS, "cs", registers.cs)?;
        check(registers.ss == USER_SS, "ss", registers.ss)?;
        check_address("rip", registers.rip)?;
        check_address("rsp", registers.rsp)?;
        check_address("fs_base", registers.fs_base)?;
        check_address("gs_base", registers.gs_base)?;
        let fixed = registers.eflags & !FREE_FLAGS;
        check(fixed == FIXED_FLAGS, "eflags", registers.eflags)
    }
}
