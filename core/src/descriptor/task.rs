//! What the kernel keeps for a thread in user space's name (descriptor.md §6).

use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{check, check_address, Wrong, USER_END};

/// Length of the section in bytes.
pub const LEN: usize = 72;

/// The least length of a restartable-sequences area in bytes, and its alignment.
const RSEQ_LEN: u64 = 32;

/// `SS_ONSTACK` never, as it follows from the stack pointer; `SS_DISABLE` and `SS_AUTODISARM`.
const ALTSTACK_FLAGS: u32 = 2 | 1 << 31;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Fields {
    blocked: U64,
    rseq: U64,
    rseq_len_bytes: U32,
    rseq_signature: U32,
    robust_list: U64,
    robust_list_len_bytes: U64,
    clear_child_tid: U64,
    altstack: U64,
    altstack_len_bytes: U64,
    altstack_flags: U32,
    personality: U32,
}

const _: () = assert!(size_of::<Fields>() == LEN);

/// What the kernel keeps for a thread in user space's name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Task {
    /// The signals that are blocked: bit n is signal n + 1.
    pub blocked: u64,
    /// Address of the restartable-sequences area, or 0.
    pub rseq: u64,
    /// Its length in bytes, or 0.
    pub rseq_len: u32,
    /// What stands before each abort handler, or 0.
    pub rseq_signature: u32,
    /// Address of the list of robust futexes, or 0.
    pub robust_list: u64,
    /// Length of its head in bytes: 24, or 0 without one.
    pub robust_list_len: u64,
    /// Where the kernel writes 0 when the thread ends, or 0.
    pub clear_child_tid: u64,
    /// The signal stack, or 0.
    pub altstack: u64,
    /// Its length in bytes, or 0.
    pub altstack_len: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`.
    pub altstack_flags: u32,
    /// As `personality(2)` has it.
    pub personality: u32,
}

impl Fields {
    pub(super) fn of(task: &Task) -> Self {
        Self {
            blocked: U64::new(task.blocked),
            rseq: U64::new(task.rseq),
            rseq_len_bytes: U32::new(task.rseq_len),
            rseq_signature: U32::new(task.rseq_signature),
            robust_list: U64::new(task.robust_list),
            robust_list_len_bytes: U64::new(task.robust_list_len),
            clear_child_tid: U64::new(task.clear_child_tid),
            altstack: U64::new(task.altstack),
            altstack_len_bytes: U64::new(task.altstack_len),
            altstack_flags: U32::new(task.altstack_flags),
            personality: U32::new(task.personality),
        }
    }

    pub(super) fn check(&self) -> Result<(), Wrong> {
        let task = self.record();
        if task.rseq == 0 {
            check(task.rseq_len == 0, "rseq length", u64::from(task.rseq_len))?;
            let signature = task.rseq_signature;
            check(signature == 0, "rseq signature", u64::from(signature))?;
        } else {
            let len = u64::from(task.rseq_len);
            check(task.rseq % RSEQ_LEN == 0, "rseq", task.rseq)?;
            check(len >= RSEQ_LEN, "rseq length", len)?;
            check_range("rseq", task.rseq, len)?;
        }
        let head = if task.robust_list == 0 { 0 } else { 24 };
        let len = task.robust_list_len;
        check(len == head, "robust list length", len)?;
        check_range("robust list", task.robust_list, len)?;
        check_range("clear_child_tid", task.clear_child_tid, 4)?;
        check_range("signal stack", task.altstack, task.altstack_len)?;
        let flags = task.altstack_flags;
        check(
            flags & !ALTSTACK_FLAGS == 0,
            "signal stack flags",
            u64::from(flags),
        )
    }

    pub(super) fn record(&self) -> Task {
        Task {
            blocked: self.blocked.get(),
            rseq: self.rseq.get(),
            rseq_len: self.rseq_len_bytes.get(),
            rseq_signature: self.rseq_signature.get(),
            robust_list: self.robust_list.get(),
            robust_list_len: self.robust_list_len_bytes.get(),
            clear_child_tid: self.clear_child_tid.get(),
            altstack: self.altstack.get(),
            altstack_len: self.altstack_len_bytes.get(),
            altstack_flags: self.altstack_flags.get(),
            personality: self.personality.get(),
        }
    }
}

/// Bytes that lie in user space.
fn check_range(what: &'static str, start: u64, len: u64) -> Result<(), Wrong> {
    check_address(what, start)?;
    let end = start.checked_add(len);
    check(end.is_some_and(|end| end <= USER_END), what, start)
}
