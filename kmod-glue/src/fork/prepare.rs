//! Freezing: the calling process describes itself, becomes a seed and sleeps.

use core::ffi::{c_int, c_void};

use mitosis_core::descriptor::{
    Capability, EncodeError, Encoder, FileKind, Identity, OpenFile, SeedId, SignalAction, Task,
    Vma, VmaFlags, VmaKind, MAX_DESCRIPTOR, SIGNALS,
};

use super::clients::Client;
use super::ffi::{self, vma_flag};
use super::memory::Memory;
use super::recent::Recent;
use super::refusal::Refusal;
use super::seed::{Name, Origin, Seed, Title};
use super::seeds::Reserved;
use super::Fork;
use crate::errno::Errno;
use crate::lock::Shared;
use crate::log::Part;
use crate::memory::Table;
use crate::thread::now_ns;
use mitosis_core::uapi::{self, refused};

/// First try for a descriptor's length: a small program's fits.
const FIRST_LEN: usize = 16 << 10;

/// Why a process did not become a seed.
pub enum Failure {
    /// It has something that cannot be carried.
    Refused(Refusal),
    /// The kernel refused something.
    Kernel(Errno),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Failure {
        Failure::Kernel(errno)
    }
}

/// What `MITOSIS_FREEZE` does: returns when the seed's life is over.
pub fn freeze(fork: &Fork, client: &Client, call: &uapi::Freeze) -> Result<i32, Errno> {
    let mut me = ffi::Identity::EMPTY;
    // SAFETY: `me` is valid during the call.
    unsafe { ffi::mitosis_task_identity(&mut me) };
    let origin = Origin {
        owner: client.number,
        token: call.token,
    };
    let reserved = match fork.seeds.begin(origin, me.uid) {
        Ok(reserved) => reserved,
        Err(Errno::CANCELED) => return over(),
        Err(errno) => {
            fork.clients
                .tell(client.number, call.token, Refusal::default());
            return Err(errno);
        }
    };
    let (refusal, errno) = match make(fork, client, call, &me, &reserved) {
        Ok(()) | Err(Failure::Kernel(Errno::CANCELED)) => return over(),
        Err(Failure::Refused(refusal)) => (refusal, Errno::NOT_SUPPORTED),
        Err(Failure::Kernel(errno)) => (Refusal::default(), errno),
    };
    // While the place is held: whoever announces the seed after that finds what is told.
    fork.clients.tell(client.number, call.token, refusal);
    if reserved.is_announced() {
        complain(fork, &me, reserved.title, refusal, errno);
    }
    Err(errno)
}

/// The seed is over, or nobody wants it. Its process is to end, not to go on as a second parent.
fn over() -> Result<i32, Errno> {
    // SAFETY: no preconditions.
    unsafe { ffi::mitosis_task_kill_self() };
    Err(Errno::CANCELED)
}

/// Says in the log why a seed does not come whose parent has its name already.
fn complain(fork: &Fork, me: &ffi::Identity, title: Title, refusal: Refusal, errno: Errno) {
    let Some(untold) = fork.complaints.turn() else {
        return;
    };
    let (id, generation, pid) = (title.id, title.generation, me.pid);
    let (what, why): (&str, &dyn Part) = match refusal.reason {
        0 => (" could not freeze: ", &errno),
        _ => (" was refused: ", &refusal),
    };
    crate::warning!(
        "seed ",
        id,
        ".",
        generation,
        " will not come, process ",
        pid,
        what,
        *why,
        untold
    );
}

fn make(
    fork: &Fork,
    client: &Client,
    call: &uapi::Freeze,
    me: &ffi::Identity,
    reserved: &Reserved<'_>,
) -> Result<(), Failure> {
    if me.threads != 1 {
        return Err(Failure::Refused(Refusal {
            reason: refused::THREADS,
            at: u64::from(me.threads),
        }));
    }
    let title = reserved.title;
    let strict = call.flags & uapi::FREEZE_STRICT_FILES != 0;
    let mut len = FIRST_LEN;
    let (bytes, used) = loop {
        let mut bytes: Table<u8> = Table::zeroed(len)?;
        match describe(fork, &mut bytes, me, title, strict) {
            Ok(used) => break (bytes, used),
            Err(Outcome::Encode(EncodeError::Full { .. })) if len < MAX_DESCRIPTOR => {
                len = (len * 4).min(MAX_DESCRIPTOR);
            }
            Err(outcome) => return Err(outcome.into()),
        }
    };
    let name = Name {
        title,
        origin: Origin {
            owner: client.number,
            token: call.token,
        },
        pid: me.pid,
        uid: me.uid,
        comm: me.comm,
    };
    let memory = Memory::of_caller(me.pid)?;
    let recent = Recent::of_caller()?;
    let seed = Shared::new(Seed::new(&name, memory, recent, bytes, used)?)?;
    reserved.publish(seed.clone())?;
    fork.counters.prepared.add(1);
    fork.clients.wake(client.number);
    sleep(&seed);
    fork.counters.unprepared.add(1);
    Ok(())
}

/// Sleeps until the seed is released, its lease is over, or it is killed.
fn sleep(seed: &Seed) {
    loop {
        let now_ns = now_ns();
        let until_ns = seed.lease_until_ns.value();
        if seed.released.wanted() || now_ns >= until_ns {
            return;
        }
        let left_ns = match until_ns {
            u64::MAX => u64::MAX,
            until_ns => until_ns - now_ns,
        };
        // SAFETY: the event lives as long as the seed; a process calls this.
        let killed = unsafe { ffi::mitosis_event_wait_frozen(seed.wake.as_ptr(), left_ns) };
        if killed != 0 {
            return;
        }
    }
}

/// What one walk over the process came to.
enum Outcome {
    Encode(EncodeError),
    Refused(Refusal),
    Kernel(Errno),
}

impl From<EncodeError> for Outcome {
    fn from(error: EncodeError) -> Outcome {
        Outcome::Encode(error)
    }
}

impl From<Outcome> for Failure {
    fn from(outcome: Outcome) -> Failure {
        match outcome {
            Outcome::Refused(refusal) => Failure::Refused(refusal),
            Outcome::Kernel(errno) => Failure::Kernel(errno),
            Outcome::Encode(EncodeError::TooMany { limit, .. }) => Failure::Refused(Refusal {
                reason: refused::TOO_MANY_VMAS,
                at: limit as u64,
            }),
            Outcome::Encode(EncodeError::Full { need, .. }) => Failure::Refused(Refusal {
                reason: refused::TOO_LARGE,
                at: need as u64,
            }),
            Outcome::Encode(EncodeError::Field { found, .. }) => Failure::Refused(Refusal {
                reason: refused::STATE,
                at: found,
            }),
            Outcome::Encode(EncodeError::Order { .. }) => Failure::Kernel(Errno::INVALID),
        }
    }
}

/// An encoder, and what went wrong in a callback.
struct Walk<'w, 'b> {
    encoder: &'w mut Encoder<'b>,
    strict: bool,
    wrong: Option<Outcome>,
}

impl Walk<'_, '_> {
    /// Keeps an error for later, and stops the walk by it.
    fn keep(&mut self, result: Result<(), Outcome>) -> c_int {
        match result {
            Ok(()) => 0,
            Err(outcome) => {
                self.wrong = Some(outcome);
                1
            }
        }
    }
}

/// Lets `each` hand what it finds to callbacks that know a [`Walk`], and gives what went wrong there.
fn walk(
    encoder: &mut Encoder<'_>,
    strict: bool,
    each: impl FnOnce(*mut c_void) -> c_int,
) -> Result<(), Outcome> {
    let mut walk = Walk {
        encoder,
        strict,
        wrong: None,
    };
    let ret = each(core::ptr::from_mut(&mut walk).cast());
    match walk.wrong {
        Some(outcome) => Err(outcome),
        None => Errno::check(ret).map_err(Outcome::Kernel),
    }
}

/// Describes the calling process. Returns the descriptor's length.
fn describe(
    fork: &Fork,
    bytes: &mut [u8],
    me: &ffi::Identity,
    title: Title,
    strict: bool,
) -> Result<usize, Outcome> {
    let mut encoder = Encoder::new(bytes);
    encoder.identity(&Identity {
        seed: SeedId {
            id: title.id,
            generation: title.generation,
        },
        capability: Capability(title.capability),
        server_epoch: fork.epoch,
        owner_uid: me.uid,
        comm: text(&me.comm),
        kernel_release: text(&me.release),
        kernel_version: text(&me.version),
        cpu_features: fork.cpu,
    })?;
    let mut registers = ffi::Registers::default();
    let mut layout = ffi::Layout::default();
    let mut task = ffi::Task::default();
    // SAFETY: the structures are valid during the calls.
    unsafe {
        ffi::mitosis_task_registers(&mut registers);
        ffi::mitosis_task_layout(&mut layout);
        ffi::mitosis_task_state(&mut task);
    }
    encoder.registers(&registers)?;
    encoder.layout(&layout)?;
    encoder.task(&Task {
        blocked: task.blocked,
        rseq: task.rseq,
        rseq_len: task.rseq_len,
        rseq_signature: task.rseq_signature,
        robust_list: task.robust_list,
        robust_list_len: match task.robust_list {
            0 => 0,
            _ => task.robust_list_len,
        },
        clear_child_tid: task.clear_child_tid,
        altstack: task.altstack_sp,
        altstack_len: task.altstack_size,
        altstack_flags: task.altstack_flags,
        personality: task.personality,
    })?;
    // SAFETY: each callback fits a `Walk`, which lives during the call.
    unsafe {
        walk(&mut encoder, strict, |context| {
            ffi::mitosis_each_vma(take_vma, context)
        })?;
        walk(&mut encoder, strict, |context| {
            ffi::mitosis_each_chunk(take_chunk, context)
        })?;
        walk(&mut encoder, strict, |context| {
            ffi::mitosis_each_file(take_file, context)
        })?;
    }
    for signal in 1..=SIGNALS as u32 {
        let mut action = SignalAction::default();
        // SAFETY: `action` is valid during the call.
        unsafe { ffi::mitosis_task_action(signal, &mut action) };
        encoder.action(&action)?;
    }
    Ok(encoder.finish()?)
}

/// What comes before the first NUL.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or(&[])
}

/// A path of C's, if there is one that can be opened again.
///
/// # Safety
/// `path` is null, or valid for `len` bytes during `'p`.
unsafe fn path<'p>(path: *const u8, len: u32) -> Option<&'p [u8]> {
    if path.is_null() || len == 0 {
        return None;
    }
    // SAFETY: by this function's contract.
    let path = unsafe { core::slice::from_raw_parts(path, len as usize) };
    (path.first() == Some(&b'/') && !path.ends_with(b" (deleted)")).then_some(path)
}

/// # Safety
/// `context` is a `Walk`; `found` is valid during the call.
unsafe extern "C" fn take_vma(context: *mut c_void, found: *const ffi::Vma) -> c_int {
    // SAFETY: by this function's contract.
    let (walk, found) = unsafe { (&mut *context.cast::<Walk<'_, '_>>(), &*found) };
    let refuse = |reason| {
        Err(Outcome::Refused(Refusal {
            reason,
            at: found.start,
        }))
    };
    let has = |flag| found.flags & flag != 0;
    let kind = if has(vma_flag::SPECIAL) {
        VmaKind::Special
    } else if has(vma_flag::FILE) {
        VmaKind::File
    } else {
        VmaKind::Anonymous
    };
    let result = if has(vma_flag::DEVICE) {
        refuse(refused::DEVICE_MEMORY)
    } else if has(vma_flag::HUGETLB) {
        refuse(refused::HUGETLB)
    } else if has(vma_flag::MAY_WRITE) {
        refuse(refused::SHARED_MEMORY)
    } else {
        let file = kind == VmaKind::File;
        // SAFETY: C's path is valid during the call.
        let path = unsafe { path(found.path, found.path_len) };
        walk.encoder
            .vma(&Vma {
                start: found.start,
                end: found.end,
                flags: VmaFlags(found.flags & 0xff),
                kind,
                page_offset: if file { found.pgoff } else { 0 },
                path: path.filter(|_| file),
            })
            .map_err(Outcome::Encode)
    };
    walk.keep(result)
}

/// # Safety
/// `context` is a `Walk`.
unsafe extern "C" fn take_chunk(context: *mut c_void, chunk: u64) -> c_int {
    // SAFETY: by this function's contract.
    let walk = unsafe { &mut *context.cast::<Walk<'_, '_>>() };
    let result = walk.encoder.chunk(chunk).map_err(Outcome::Encode);
    walk.keep(result)
}

/// # Safety
/// `context` is a `Walk`; `found` is valid during the call.
unsafe extern "C" fn take_file(context: *mut c_void, found: *const ffi::OpenFile) -> c_int {
    // SAFETY: by this function's contract.
    let (walk, found) = unsafe { (&mut *context.cast::<Walk<'_, '_>>(), &*found) };
    let kind = match found.mode & 0o170_000 {
        0o100_000 => FileKind::Regular,
        0o040_000 => FileKind::Directory,
        0o020_000 => FileKind::CharDevice,
        0o010_000 => FileKind::Pipe,
        0o140_000 => FileKind::Socket,
        _ => FileKind::Other,
    };
    // SAFETY: C's path is valid during the call.
    let path = unsafe { path(found.path, found.path_len) };
    let carried = match kind {
        FileKind::Regular | FileKind::Directory => path.is_some(),
        FileKind::CharDevice => true,
        _ => false,
    };
    let result = if walk.strict && !carried && found.fd > 2 {
        Err(Outcome::Refused(Refusal {
            reason: refused::FILE,
            at: u64::from(found.fd),
        }))
    } else {
        walk.encoder
            .file(&OpenFile {
                fd: found.fd,
                kind,
                status_flags: found.status_flags,
                close_on_exec: found.close_on_exec != 0,
                position: found.position,
                path: path.filter(|_| carried),
            })
            .map_err(Outcome::Encode)
    };
    walk.keep(result)
}
