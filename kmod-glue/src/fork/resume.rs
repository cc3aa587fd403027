//! Resuming: the calling process becomes a continuation of a seed.

use core::ptr::NonNull;

use mitosis_core::descriptor::{Descriptor, VmaKind, USER_END};

use super::ffi;
use super::image::Image;
use super::Fork;
use crate::errno::Errno;
use crate::warning;

/// What `MITOSIS_RESUME` does. In the child it returns 1 with the child's number in rdx; an error before anything was
/// changed; and once the caller's memory is gone, an error that nobody sees, as the caller is killed.
///
/// # Safety
/// `file` is the image's.
pub unsafe fn resume(
    fork: &Fork,
    image: &Image,
    file: *mut ffi::ImageFile,
    child: u64,
) -> Result<i32, Errno> {
    let descriptor = image.descriptor()?;
    let keep = check(fork, &descriptor)?;
    // SAFETY: by this function's contract.
    match unsafe { replace(&descriptor, file, child, keep) } {
        Ok(()) => {
            fork.counters.children.add(1);
            Ok(1)
        }
        Err(errno) => {
            warning!(
                "resume failed too late to go on, and ended the process: ",
                errno
            );
            // SAFETY: no preconditions.
            unsafe { ffi::mitosis_task_kill_self() };
            Err(Errno::OWNER_DEAD)
        }
    }
}

/// Whether the caller can become the seed. Returns what stays of its memory: its own vdso and what belongs to it, which
/// must already be where the seed had them.
fn check(fork: &Fork, descriptor: &Descriptor<'_>) -> Result<(u64, u64), Errno> {
    let mut me = ffi::Identity::EMPTY;
    // SAFETY: `me` is valid during the call.
    unsafe { ffi::mitosis_task_identity(&mut me) };
    if me.threads != 1 {
        return Err(Errno::BUSY);
    }
    let identity = descriptor.identity();
    let here =
        |bytes: &[u8], there: &[u8]| bytes.split(|&byte| byte == 0).next().unwrap_or(&[]) == there;
    if !here(&me.release, identity.kernel_release) || !here(&me.version, identity.kernel_version) {
        return Err(Errno::EXEC_FORMAT);
    }
    if fork.cpu.lacks(&identity.cpu_features).is_some() {
        return Err(Errno::NOT_SUPPORTED);
    }
    let special = descriptor.vmas().filter(|vma| vma.kind == VmaKind::Special);
    let (start, end) = special.fold((u64::MAX, 0), |(start, end), vma| {
        (vma.start.min(start), vma.end.max(end))
    });
    let layout = descriptor.layout();
    // SAFETY: no preconditions.
    let vdso = unsafe { ffi::mitosis_child_vdso() };
    if vdso != layout.vdso {
        return Err(Errno::INVALID);
    }
    if start >= end {
        return Ok((0, 0));
    }
    // Nothing of the seed's lies in between: what does would be the caller's.
    let between = descriptor
        .vmas()
        .any(|vma| vma.kind != VmaKind::Special && vma.start < end && vma.end > start);
    if between || end > USER_END {
        return Err(Errno::INVALID);
    }
    Ok((start, end))
}

/// What keeps note of the memory that the child gives up; its mappings keep it from then on.
struct Noted(NonNull<ffi::Child>);

impl Noted {
    fn begin() -> Result<Noted, Errno> {
        // SAFETY: a process calls this.
        let child = unsafe { ffi::mitosis_child_begin() };
        NonNull::new(child).map(Noted).ok_or(Errno::NO_MEMORY)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        // SAFETY: begun in `begin`, and this reference ends once.
        unsafe { ffi::mitosis_child_end(self.0.as_ptr()) }
    }
}

/// # Safety
/// `file` is the image's.
unsafe fn replace(
    descriptor: &Descriptor<'_>,
    file: *mut ffi::ImageFile,
    child: u64,
    (keep_start, keep_end): (u64, u64),
) -> Result<(), Errno> {
    // SAFETY: the caller is a process with one thread, and nothing in its memory is needed any more.
    Errno::check(unsafe { ffi::mitosis_child_clear(keep_start, keep_end) })?;
    let noted = Noted::begin()?;
    for (index, vma) in descriptor.vmas().enumerate() {
        if vma.kind == VmaKind::Special {
            continue;
        }
        let of_file = match vma.kind {
            VmaKind::File => ffi::vma_flag::FILE,
            _ => 0,
        };
        // SAFETY: `file` is the image's, by this function's contract; the descriptor's ranges are in user space.
        Errno::check(unsafe {
            ffi::mitosis_child_map(
                file,
                noted.0.as_ptr(),
                vma.start,
                vma.end - vma.start,
                index as u32,
                vma.flags.0 | of_file,
            )
        })?;
    }
    let task = descriptor.task();
    let task = ffi::Task {
        blocked: task.blocked,
        rseq: task.rseq,
        rseq_len: task.rseq_len,
        rseq_signature: task.rseq_signature,
        robust_list: task.robust_list,
        robust_list_len: task.robust_list_len,
        clear_child_tid: task.clear_child_tid,
        altstack_sp: task.altstack,
        altstack_size: task.altstack_len,
        altstack_flags: task.altstack_flags,
        personality: task.personality,
    };
    let mut registers = descriptor.registers();
    registers.rdx = child;
    // SAFETY: the structures are valid during the calls, which check what they take over.
    unsafe {
        Errno::check(ffi::mitosis_task_set_layout(&descriptor.layout()))?;
        ffi::mitosis_task_set_state(&task);
        ffi::mitosis_task_set_registers(&registers);
    }
    Ok(())
}
