//! The calls on `/dev/mitosis`, but for freezing. `arguments` has looked at what they are given.

use core::ops::Deref;

use mitosis_core::wire::fork::{SeedName, Status};
use zerocopy::{FromZeros, IntoBytes};

use super::clients::Client;
use super::ffi;
use super::image::Image;
use super::lost::PageError;
use super::process::Process;
use super::refusal::Refusal;
use super::seed::{Lease, Origin, Seed, UNCLAIMED_NS};
use super::seeds::Announced;
use super::Fork;
use crate::devices::Gid;
use crate::errno::Errno;
use crate::lock::Shared;
use crate::thread::{now_ns, Event};
use mitosis_core::uapi::{self, OPEN_EAGER, OPEN_PRIVATE, PREPARE_WAIT};

/// How long a parent waits for its child to freeze, unless the child ends before.
const FREEZE_TIMEOUT_NS: u64 = UNCLAIMED_NS;
/// How often it looks whether the child is still there.
const LOOK_NS: u64 = 50_000_000;
const MS_NS: u64 = 1_000_000;
/// Before a machine is asked again for a seed on its way; then twice as long each time, up to `LOOK_NS`.
const FIRST_PAUSE_NS: u64 = MS_NS;

fn is_admin() -> bool {
    // SAFETY: no preconditions.
    unsafe { ffi::mitosis_task_is_admin() }
}

/// `MITOSIS_PREPARE`: gives the seed's name, without waiting for the process to freeze unless that was asked for, or the
/// process has something that is refused, which its parent is to hear.
pub fn prepare(fork: &Fork, client: &Client, call: &mut uapi::Prepare) -> Result<i32, Errno> {
    if call.flags & PREPARE_WAIT == 0 {
        let copy = Process::child_of_caller(call.pid);
        if let Some(copy) = copy.filter(Process::is_plain) {
            return announce(fork, client, call, copy);
        }
    }
    await_frozen(fork, client, call)
}

fn lease(call: &uapi::Prepare) -> Lease {
    match call.lease_ms {
        0 => Lease::NONE,
        ms => Lease {
            until_ns: now_ns().saturating_add(ms.saturating_mul(MS_NS)),
            leased: true,
        },
    }
}

fn announce(
    fork: &Fork,
    client: &Client,
    call: &mut uapi::Prepare,
    copy: Process,
) -> Result<i32, Errno> {
    let mut me = ffi::Identity::EMPTY;
    // SAFETY: `me` is valid during the call.
    unsafe { ffi::mitosis_task_identity(&mut me) };
    let origin = Origin {
        owner: client.number,
        token: call.token,
    };
    match fork.seeds.announce(origin, me.uid, copy, lease(call))? {
        Announced::There(seed) => give(call, &seed),
        Announced::Coming(title, freezing) => {
            // A copy that had failed before it was announced has left why.
            let told = if freezing {
                None
            } else {
                fork.clients.told(client.number, call.token)
            };
            if let Some(refusal) = told {
                fork.seeds.call_off(title.id, title.generation);
                return refuse(call, refusal);
            }
            call.seed = uapi::SeedId {
                id: title.id,
                generation: title.generation,
            };
            call.capability = title.capability;
            call.descriptor_len = 0;
            call.vmas = 0;
            call.chunks = 0;
        }
    }
    Ok(0)
}

fn give(call: &mut uapi::Prepare, seed: &Seed) {
    let (vmas, chunks) = seed.size();
    call.seed = uapi::SeedId {
        id: seed.id,
        generation: seed.generation,
    };
    call.capability = seed.capability;
    call.descriptor_len = seed.descriptor().len() as u64;
    call.vmas = vmas as u32;
    call.chunks = chunks as u32;
}

fn refuse(call: &mut uapi::Prepare, refusal: Refusal) -> Result<i32, Errno> {
    call.refused = refusal.reason;
    call.refused_at = refusal.at;
    Err(match refusal.reason {
        0 => Errno::CANCELED,
        _ => Errno::NOT_SUPPORTED,
    })
}

fn await_frozen(fork: &Fork, client: &Client, call: &mut uapi::Prepare) -> Result<i32, Errno> {
    let waiter = fork.clients.wait(client.number)?;
    let give_up_ns = now_ns() + FREEZE_TIMEOUT_NS;
    loop {
        let origin = Origin {
            owner: client.number,
            token: call.token,
        };
        if let Some(seed) = fork.seeds.claim(origin, lease(call)) {
            if let Some(copy) = Process::child_of_caller(call.pid) {
                copy.hide_from_wait();
            }
            give(call, &seed);
            return Ok(0);
        }
        if let Some(refusal) = fork.clients.told(client.number, call.token) {
            return refuse(call, refusal);
        }
        // SAFETY: no preconditions.
        if now_ns() >= give_up_ns || !unsafe { ffi::mitosis_task_is_alive(call.pid) } {
            return Err(Errno::NO_PROCESS);
        }
        // SAFETY: the event lives as long as the waiter; a process calls this.
        let killed = unsafe { ffi::mitosis_event_wait_frozen(waiter.event.as_ptr(), LOOK_NS) };
        if killed != 0 {
            return Err(Errno::INTERRUPTED);
        }
    }
}

/// Whose seeds the caller may see and end: those of its user, or as an administrator all.
struct Sight {
    admin: bool,
    uid: u32,
}

impl Sight {
    fn of_caller() -> Sight {
        let mut me = ffi::Identity::EMPTY;
        // SAFETY: `me` is valid during the call.
        unsafe { ffi::mitosis_task_identity(&mut me) };
        Sight {
            admin: is_admin(),
            uid: me.uid,
        }
    }

    fn has(&self, seed: &Seed) -> bool {
        self.has_of(seed.uid)
    }

    fn has_of(&self, uid: u32) -> bool {
        self.admin || uid == self.uid
    }
}

/// `MITOSIS_UNPREPARE`
pub fn unprepare(fork: &Fork, call: &uapi::SeedId) -> Result<i32, Errno> {
    let sight = Sight::of_caller();
    // One on its way becomes a seed, and no seed becomes one on its way.
    if let Some((_, uid)) = fork.seeds.coming(call.id, call.generation) {
        if !sight.has_of(uid) {
            return Err(Errno::NOT_PERMITTED);
        }
        if fork.seeds.call_off(call.id, call.generation) {
            return Ok(0);
        }
    }
    let seed = fork.seeds.find(call.id, call.generation);
    let seed = seed.ok_or(Errno::NO_ENTRY)?;
    if !sight.has(&seed) {
        return Err(Errno::NOT_PERMITTED);
    }
    seed.revoke();
    seed.release();
    Ok(0)
}

fn info(seed: &Seed) -> uapi::SeedInfo {
    let (vmas, chunks) = seed.size();
    let (regions, _) = seed.registered();
    let now_ns = now_ns();
    let until_ns = seed.lease_until_ns.value();
    uapi::SeedInfo {
        seed: uapi::SeedId {
            id: seed.id,
            generation: seed.generation,
        },
        // SAFETY: no preconditions.
        pid: unsafe { ffi::mitosis_task_number_here(seed.pid) },
        uid: seed.uid,
        age_ms: now_ns.saturating_sub(seed.born_ns) / MS_NS,
        lease_left_ms: match until_ns {
            u64::MAX => 0,
            until_ns => (until_ns.saturating_sub(now_ns) / MS_NS).max(1),
        },
        descriptor_len: seed.descriptor().len() as u64,
        vmas: vmas as u32,
        chunks: chunks as u32,
        regions: regions as u32,
        opened: seed.opened.value() as u32,
        comm: seed.comm,
    }
}

/// `MITOSIS_LIST`
pub fn list(fork: &Fork, call: &mut uapi::List) -> Result<i32, Errno> {
    let mut from = 0;
    let mut count = 0u32;
    let sight = Sight::of_caller();
    while let Some((index, seed)) = fork.seeds.next(from, |seed| sight.has(seed)) {
        from = index + 1;
        if count < call.capacity {
            let info = info(&seed);
            let offset = u64::from(count) * size_of::<uapi::SeedInfo>() as u64;
            let to = call.seeds.checked_add(offset).ok_or(Errno::FAULT)?;
            copy_out(to, info.as_bytes())?;
        }
        count += 1;
    }
    call.count = count;
    Ok(0)
}

/// `MITOSIS_QUERY`: waits for a seed that is on its way.
pub fn query(fork: &Fork, call: &mut uapi::SeedInfo) -> Result<i32, Errno> {
    let (id, generation) = (call.seed.id, call.seed.generation);
    let sight = Sight::of_caller();
    let give_up_ns = now_ns() + FREEZE_TIMEOUT_NS;
    while let Some((owner, uid)) = fork.seeds.coming(id, generation) {
        if !sight.has_of(uid) {
            return Err(Errno::NOT_PERMITTED);
        }
        let waiter = fork.clients.wait(owner)?;
        // It is not woken for what happened before it was there.
        if fork.seeds.coming(id, generation).is_none() {
            break;
        }
        if now_ns() >= give_up_ns {
            return Err(Errno::IN_PROGRESS);
        }
        // SAFETY: the event lives as long as the waiter; a process calls this.
        let killed = unsafe { ffi::mitosis_event_wait_frozen(waiter.event.as_ptr(), LOOK_NS) };
        if killed != 0 {
            return Err(Errno::INTERRUPTED);
        }
    }
    let seed = fork.seeds.find(id, generation);
    let seed = seed.ok_or(Errno::NO_ENTRY)?;
    if !sight.has(&seed) {
        return Err(Errno::NOT_PERMITTED);
    }
    *call = info(&seed);
    Ok(0)
}

fn copy_out(to: u64, bytes: &[u8]) -> Result<(), Errno> {
    // SAFETY: `bytes` is valid; C checks the destination.
    Errno::check(unsafe { ffi::mitosis_copy_to_user(to, bytes.as_ptr().cast(), bytes.len()) })
}

/// Asks again while the seed's process is still to freeze. Its machine does not tell when it has: it answers.
fn patiently(
    mut open: impl FnMut() -> Result<Shared<Image>, PageError>,
) -> Result<Shared<Image>, PageError> {
    let give_up_ns = now_ns() + FREEZE_TIMEOUT_NS;
    let nothing = Event::new()?;
    let mut pause_ns = FIRST_PAUSE_NS;
    loop {
        match open() {
            Err(PageError::Refused(Status::NotYet)) if now_ns() < give_up_ns => {}
            outcome => return outcome,
        }
        // SAFETY: the event lives during the call; a process calls this.
        let killed = unsafe { ffi::mitosis_event_wait_frozen(nothing.as_ptr(), pause_ns) };
        if killed != 0 {
            return Err(PageError::Refused(Status::NotYet));
        }
        pause_ns = (pause_ns * 2).min(LOOK_NS);
    }
}

/// `MITOSIS_OPEN`
pub fn open(fork: &Fork, call: &mut uapi::Open) -> Result<i32, Errno> {
    let without = call.capability == [0; 16];
    if (without || call.seed.generation == 0) && !is_admin() {
        return Err(Errno::NOT_PERMITTED);
    }
    let name = SeedName {
        id: call.seed.id.into(),
        generation: call.seed.generation.into(),
        capability: call.capability,
        by_id: u32::from(without).into(),
        reserved: 0.into(),
    };
    let gid = Gid(call.machine.gid);
    let machine = fork.machines.at(gid, call.machine.service)?;
    machine.look_again();
    let prefetch = match call.prefetch {
        0 => fork.prefetch,
        prefetch => prefetch,
    };
    let private = call.flags & OPEN_PRIVATE != 0;
    let image = patiently(|| {
        fork.images
            .open(fork, machine.clone(), &name, prefetch, private)
    })
    .map_err(|error| {
        if let Some(untold) = fork.complaints.turn() {
            let id = call.seed.id;
            crate::warning!("cannot open seed ", id, " of ", gid, ": ", error, untold);
        }
        errno_of(&error)
    })?;
    let opened = fill(fork, call, &image);
    if let Err(errno) = opened {
        fork.images.close(fork, image);
        return Err(errno);
    }
    let raw = image.into_raw();
    // SAFETY: the file owns the image's reference from here on, unless it could not be made.
    let fd = unsafe { ffi::mitosis_image_file_create(raw) };
    if fd < 0 {
        // SAFETY: `raw` came from `into_raw` and was not taken.
        if let Some(image) = unsafe { Shared::<Image>::from_raw(raw) } {
            fork.images.close(fork, image);
        }
    }
    Errno::check(fd).map(|()| fd)
}

/// Gives the caller the descriptor, and the image all its pages if that was asked for.
fn fill(fork: &Fork, call: &mut uapi::Open, image: &Image) -> Result<(), Errno> {
    let bytes = image.bytes();
    call.descriptor_len = bytes.len() as u32;
    if bytes.len() > call.descriptor_room as usize {
        return Err(Errno::NO_BUFFER);
    }
    copy_out(call.descriptor, bytes)?;
    if call.flags & OPEN_EAGER != 0 {
        image.read_all(fork).map_err(|error| errno_of(&error))?;
    }
    Ok(())
}

fn errno_of(error: &PageError) -> Errno {
    match error {
        PageError::NoMemory => Errno::NO_MEMORY,
        PageError::Beyond => Errno::FAULT,
        PageError::Refused(Status::NoSuchSeed) => Errno::NO_ENTRY,
        PageError::Refused(Status::NotEntitled) => Errno::NO_ACCESS,
        PageError::Refused(Status::Exhausted) => Errno::NO_BUFFER,
        PageError::Refused(Status::NotYet) => Errno::IN_PROGRESS,
        PageError::Refused(_) => Errno::PROTOCOL,
        PageError::Unreachable(error) => error.errno(),
        PageError::Read(errno) => *errno,
    }
}

/// `MITOSIS_CONNECT`
pub fn connect(fork: &Fork, call: &uapi::Machine) -> Result<i32, Errno> {
    let gid = Gid(call.gid);
    let machine = fork.machines.at(gid, call.service)?;
    machine.look_again();
    match machine.link(fork) {
        Ok(_) => Ok(0),
        Err(error) => {
            if let Some(untold) = fork.complaints.turn() {
                let service = call.service;
                crate::warning!(
                    "cannot connect to ",
                    gid,
                    ", service ",
                    service,
                    ": ",
                    error,
                    untold
                );
            }
            Err(error.errno())
        }
    }
}

/// `MITOSIS_DISCONNECT`
pub fn disconnect(fork: &Fork, call: &uapi::Machine) -> Result<i32, Errno> {
    if !is_admin() {
        return Err(Errno::NOT_PERMITTED);
    }
    fork.machines
        .forget(Gid(call.gid), call.service)
        .map(|()| 0)
}

/// `MITOSIS_PING`
pub fn ping(fork: &Fork, call: &mut uapi::Ping) -> Result<i32, Errno> {
    let (gid, service) = (Gid(call.machine.gid), call.machine.service);
    call.rtt_ns = fork.machines.ping(fork, gid, service)?;
    Ok(0)
}

/// `MITOSIS_STATS`
pub fn stats(fork: &Fork, call: &mut uapi::Stats) -> Result<i32, Errno> {
    let counters = &fork.counters;
    *call = uapi::Stats::new_zeroed();
    let mut from = 0;
    while let Some((index, seed)) = fork.seeds.next(from, |_| true) {
        from = index + 1;
        let (regions, pages) = seed.deref().registered();
        call.regions += regions as u64;
        call.seed_pages += pages as u64;
        call.seeds += 1;
    }
    call.prepared = counters.prepared.value();
    call.unprepared = counters.unprepared.value();
    call.images = fork.images.count() as u64;
    call.children = counters.children.value();
    call.cached_pages = counters.cached_pages.value();
    call.faults = counters.faults.value();
    call.faults_zero = counters.faults_zero.value();
    call.faults_cached = counters.faults_cached.value();
    call.faults_read = counters.faults_read.value();
    call.faults_rpc = counters.faults_rpc.value();
    call.faults_failed = counters.faults_failed.value();
    call.pages_read = counters.pages_read.value();
    call.connections = (fork.visitors.count() + fork.machines.connected()) as u64;
    Ok(0)
}
