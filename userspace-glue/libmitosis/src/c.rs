//! The library for C: `include/mitosis_fork.h` says what each function does.
//!
//! A function that fails returns -1 (or null), sets `errno`, and leaves the reason to
//! `mitosis_error`.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_void, CStr, CString};
use std::ptr;

use mitosis_core::descriptor::Capability;

use crate::device::Device;
use crate::error::Error;
use crate::gid;
use crate::image::{Image, OpenOptions};
use crate::seed::{self, PrepareOptions, Prepared};
use crate::uapi::{self, Machine, SeedId, SeedInfo, Stats};

/// `MITOSIS_RESUME_SKIP_FILES`
const RESUME_SKIP_FILES: u32 = 1;

/// `struct mitosis_prepare_options`
#[repr(C)]
pub struct Options {
    lease_ms: u64,
    flags: u32,
    reserved: u32,
}

/// `struct mitosis_seed`
#[repr(C)]
pub struct Seed {
    id: SeedId,
    capability: [u8; 16],
    descriptor_len: u64,
    vmas: u32,
    chunks: u32,
    pid: i32,
    child: u32,
}

thread_local! {
    /// Why the last call failed. It is put into words when somebody asks, as a copy of a process
    /// must not allocate.
    static LAST: RefCell<Option<Error>> = const { RefCell::new(None) };
    static WORDS: RefCell<CString> = RefCell::default();
}

fn fail(error: Error) -> c_int {
    // SAFETY: the C library gives the address of the thread's own variable.
    unsafe { *libc::__errno_location() = error.errno() };
    LAST.replace(Some(error));
    -1
}

const INVALID: Error = Error::System {
    what: "an argument",
    errno: libc::EINVAL,
};

/// 0, or -1 and `errno`.
fn outcome(result: Result<(), Error>) -> c_int {
    result.map_or_else(fail, |()| 0)
}

/// # Safety
/// `options` is null or valid during the call.
unsafe fn options(options: *const Options) -> Result<PrepareOptions, Error> {
    // SAFETY: by this function's contract.
    match unsafe { options.as_ref() } {
        None => Ok(PrepareOptions::default()),
        Some(options) if options.reserved != 0 => Err(INVALID),
        Some(options) => Ok(PrepareOptions {
            lease_ms: options.lease_ms,
            strict_files: strict(options.flags & !uapi::PREPARE_WAIT)?,
            wait: options.flags & uapi::PREPARE_WAIT != 0,
        }),
    }
}

fn strict(flags: u32) -> Result<bool, Error> {
    match flags {
        0 => Ok(false),
        uapi::FREEZE_STRICT_FILES => Ok(true),
        _ => Err(INVALID),
    }
}

/// # Safety
/// `place` is valid for a seed.
unsafe fn put(place: *mut Seed, seed: &seed::Seed) {
    let seed = Seed {
        id: seed.id,
        capability: seed.capability.0,
        descriptor_len: seed.descriptor_len,
        vmas: seed.vmas,
        chunks: seed.chunks,
        pid: seed.pid,
        child: 0,
    };
    // SAFETY: by this function's contract.
    unsafe { place.write(seed) };
}

/// # Safety
/// `gid` is valid for 16 bytes.
unsafe fn machine(gid: *const u8, service: u32) -> Machine {
    Machine {
        // SAFETY: by this function's contract.
        gid: unsafe { gid.cast::<[u8; 16]>().read() },
        service,
        reserved: 0,
    }
}

/// # Safety
/// As in C: `wanted` is null or valid, `seed` is valid; the process is one that may `fork()`.
#[no_mangle]
pub unsafe extern "C" fn mitosis_prepare(wanted: *const Options, seed: *mut Seed) -> c_int {
    // SAFETY: by this function's contract.
    let prepared = unsafe { options(wanted).and_then(|options| seed::prepare(&options)) };
    match prepared {
        Ok(Prepared::Parent(made)) => {
            // SAFETY: by this function's contract.
            unsafe { put(seed, &made) };
            0
        }
        Ok(Prepared::Child(child)) => {
            // SAFETY: by this function's contract; a child has the seed's memory.
            unsafe {
                seed.write_bytes(0, 1);
                (*seed).child = child.number;
            }
            1
        }
        Err(error) => fail(error),
    }
}

/// # Safety
/// `token` is valid.
#[no_mangle]
pub unsafe extern "C" fn mitosis_token(token: *mut u64) -> c_int {
    outcome(seed::token().map(|drawn| {
        // SAFETY: by this function's contract.
        unsafe { token.write(drawn) };
    }))
}

/// # Safety
/// As [`seed::freeze`]; `child` is valid.
#[no_mangle]
pub unsafe extern "C" fn mitosis_freeze(token: u64, flags: u32, child: *mut u32) -> c_int {
    // SAFETY: by this function's contract.
    match strict(flags).and_then(|strict| unsafe { seed::freeze(token, strict) }) {
        Ok(who) => {
            // SAFETY: by this function's contract.
            unsafe { child.write(who.number) };
            1
        }
        Err(error) => fail(error),
    }
}

/// # Safety
/// `wanted` is null or valid, `seed` is valid.
#[no_mangle]
pub unsafe extern "C" fn mitosis_await_frozen(
    token: u64,
    pid: i32,
    wanted: *const Options,
    seed: *mut Seed,
) -> c_int {
    // SAFETY: by this function's contract.
    let options = unsafe { options(wanted) };
    let made =
        options.and_then(|options| seed::await_frozen(Device::open()?, token, pid, &options));
    outcome(made.map(|made| {
        // SAFETY: by this function's contract.
        unsafe { put(seed, &made) };
    }))
}

/// # Safety
/// `seed` is valid.
#[no_mangle]
pub unsafe extern "C" fn mitosis_unprepare(seed: *const Seed) -> c_int {
    // SAFETY: by this function's contract.
    let seed = unsafe { &*seed };
    if seed.pid == 0 {
        return outcome(Device::open().and_then(|device| device.unprepare(seed.id)));
    }
    let mine = seed::Seed {
        id: seed.id,
        capability: Capability(seed.capability),
        pid: seed.pid,
        descriptor_len: seed.descriptor_len,
        vmas: seed.vmas,
        chunks: seed.chunks,
    };
    outcome(mine.unprepare())
}

/// # Safety
/// `seeds` is valid for `capacity` of them.
#[no_mangle]
pub unsafe extern "C" fn mitosis_list(seeds: *mut SeedInfo, capacity: u32) -> c_int {
    match Device::open().and_then(|device| device.list()) {
        Ok(found) => {
            for (index, info) in found.iter().take(capacity as usize).enumerate() {
                // SAFETY: by this function's contract, as `index` is below `capacity`.
                unsafe { seeds.add(index).write(*info) };
            }
            c_int::try_from(found.len()).unwrap_or(c_int::MAX)
        }
        Err(error) => fail(error),
    }
}

/// # Safety
/// `info` is valid, and names the seed.
#[no_mangle]
pub unsafe extern "C" fn mitosis_query(info: *mut SeedInfo) -> c_int {
    // SAFETY: by this function's contract.
    let info = unsafe { &mut *info };
    let found = Device::open().and_then(|device| device.query(info.seed));
    outcome(found.map(|found| *info = found))
}

/// # Safety
/// `gid` is valid for 16 bytes; `capability` is null or valid for 16 bytes.
#[no_mangle]
pub unsafe extern "C" fn mitosis_open(
    gid: *const u8,
    service: u32,
    seed: SeedId,
    capability: *const [u8; 16],
    flags: u32,
    prefetch: u32,
) -> *mut Image {
    if flags & !(uapi::OPEN_EAGER | uapi::OPEN_PRIVATE) != 0 {
        fail(INVALID);
        return ptr::null_mut();
    }
    let options = OpenOptions {
        eager: flags & uapi::OPEN_EAGER != 0,
        private: flags & uapi::OPEN_PRIVATE != 0,
        prefetch,
    };
    // SAFETY: by this function's contract.
    let (machine, capability) = unsafe { (machine(gid, service), capability.as_ref()) };
    match Image::open(machine, seed, capability.copied().map(Capability), &options) {
        Ok(image) => Box::into_raw(Box::new(image)),
        Err(error) => {
            fail(error);
            ptr::null_mut()
        }
    }
}

/// # Safety
/// `image` is what `mitosis_open` returned, and not closed; `len` is valid.
#[no_mangle]
pub unsafe extern "C" fn mitosis_image_descriptor(
    image: *const Image,
    len: *mut usize,
) -> *const c_void {
    // SAFETY: by this function's contract.
    let bytes = unsafe { (*image).bytes() };
    // SAFETY: by this function's contract.
    unsafe { len.write(bytes.len()) };
    bytes.as_ptr().cast()
}

/// # Safety
/// `image` is what `mitosis_open` returned, and not closed.
#[no_mangle]
pub unsafe extern "C" fn mitosis_image_fd(image: *const Image) -> c_int {
    // SAFETY: by this function's contract.
    unsafe { (*image).fd() }
}

/// # Safety
/// `image` is null or what `mitosis_open` returned, and is not used again.
#[no_mangle]
pub unsafe extern "C" fn mitosis_image_close(image: *mut Image) {
    if !image.is_null() {
        // SAFETY: by this function's contract it is the box that `mitosis_open` made.
        drop(unsafe { Box::from_raw(image) });
    }
}

/// # Safety
/// `image` is what `mitosis_open` returned, and not closed; the process has one thread.
#[no_mangle]
pub unsafe extern "C" fn mitosis_resume(image: *const Image, child: u32, flags: u32) -> c_int {
    if flags & !RESUME_SKIP_FILES != 0 {
        return fail(INVALID);
    }
    // SAFETY: by this function's contract.
    let image = unsafe { &*image };
    let mut resumption = match image.resumption() {
        Ok(resumption) => resumption,
        Err(error) => return fail(error),
    };
    if flags & RESUME_SKIP_FILES != 0 {
        resumption.skip_files();
    }
    // SAFETY: by this function's contract.
    fail(unsafe { resumption.run(image.fd(), child) })
}

/// # Safety
/// `gid` is valid for 16 bytes.
#[no_mangle]
pub unsafe extern "C" fn mitosis_connect(gid: *const u8, service: u32) -> c_int {
    // SAFETY: by this function's contract.
    let machine = unsafe { machine(gid, service) };
    outcome(Device::open().and_then(|device| device.connect(machine)))
}

/// # Safety
/// `gid` is valid for 16 bytes.
#[no_mangle]
pub unsafe extern "C" fn mitosis_disconnect(gid: *const u8, service: u32) -> c_int {
    // SAFETY: by this function's contract.
    let machine = unsafe { machine(gid, service) };
    outcome(Device::open().and_then(|device| device.disconnect(machine)))
}

/// # Safety
/// `gid` is valid for 16 bytes, `rtt_ns` is valid.
#[no_mangle]
pub unsafe extern "C" fn mitosis_ping(gid: *const u8, service: u32, rtt_ns: *mut u64) -> c_int {
    // SAFETY: by this function's contract.
    let machine = unsafe { machine(gid, service) };
    let took = Device::open().and_then(|device| device.ping(machine));
    outcome(took.map(|took| {
        // SAFETY: by this function's contract.
        unsafe { rtt_ns.write(took) };
    }))
}

/// # Safety
/// `stats` is valid.
#[no_mangle]
pub unsafe extern "C" fn mitosis_stats(stats: *mut Stats) -> c_int {
    let found = Device::open().and_then(|device| device.stats());
    outcome(found.map(|found| {
        // SAFETY: by this function's contract.
        unsafe { stats.write(found) };
    }))
}

/// # Safety
/// `text` is a C string, `gid` valid for 16 bytes.
#[no_mangle]
pub unsafe extern "C" fn mitosis_gid(text: *const c_char, gid: *mut [u8; 16]) -> c_int {
    // SAFETY: by this function's contract.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str().ok().and_then(gid::parse) {
        Some(found) => {
            // SAFETY: by this function's contract.
            unsafe { gid.write(found) };
            0
        }
        None => fail(INVALID),
    }
}

/// What the last call of this thread that failed has to say; "" if there is none. Valid until the next
/// call of this function.
#[no_mangle]
pub extern "C" fn mitosis_error() -> *const c_char {
    WORDS.with_borrow_mut(|words| {
        let text = LAST.with_borrow(|last| last.as_ref().map(ToString::to_string));
        *words = CString::new(text.unwrap_or_default()).unwrap_or_default();
        words.as_ptr()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_leaves_its_reason() {
        let mut stats = Stats::default();
        // SAFETY: `stats` is valid.
        if unsafe { mitosis_stats(&mut stats) } == 0 {
            return;
        }
        // SAFETY: the text is a C string until the next call.
        let text = unsafe { CStr::from_ptr(mitosis_error()) };
        assert!(text.to_str().unwrap().contains("/dev/mitosis"));
    }
}
