//! What the shim calls: the module's life, the files of `/dev/mitosis` and of images, and page faults.

use core::ffi::c_void;

use super::arguments::{Call, Refused};
use super::clients::Client;
use super::ffi;
use super::image::{Image, AROUND};
use super::lost::PageError;
use super::memory::PageRef;
use super::{calls, fork, prepare, resume};
use crate::errno::Errno;
use crate::lock::Shared;
use crate::memory::{Owned, PAGE_LEN};
use crate::thread::{now_ns, Event};

/// # Safety
/// Called by the shim with what it made.
#[no_mangle]
pub extern "C" fn mitosis_client_opened(tgid: i32) -> *mut c_void {
    let Some(fork) = fork() else {
        return core::ptr::null_mut();
    };
    let client = Owned::new(Client {
        number: fork.clients.admit(),
        tgid,
    });
    client.map_or(core::ptr::null_mut(), |client| client.into_raw().cast())
}

/// # Safety
/// `client` is what `mitosis_client_opened` gave, and not closed.
#[no_mangle]
pub unsafe extern "C" fn mitosis_client_flushed(client: *mut c_void, tgid: i32) {
    // SAFETY: by this function's contract.
    let client = unsafe { &*client.cast::<Client>() };
    if client.tgid != tgid {
        return;
    }
    if let Some(fork) = fork() {
        fork.release_of(client.number);
    }
}

/// # Safety
/// As `mitosis_client_flushed`; the client is not used again.
#[no_mangle]
pub unsafe extern "C" fn mitosis_client_closed(client: *mut c_void) {
    // SAFETY: by this function's contract.
    if let Some(client) = unsafe { Owned::<Client>::from_raw(client.cast()) } {
        if let Some(fork) = fork() {
            fork.release_of(client.number);
            fork.seeds.forget_coming(client.number);
        }
    }
}

/// # Safety
/// As `mitosis_client_flushed`; `argument` is valid for `argument_len` bytes and aligned to 8.
#[no_mangle]
pub unsafe extern "C" fn mitosis_client_call(
    client: *mut c_void,
    number: u32,
    argument: *mut c_void,
    argument_len: u32,
) -> isize {
    // SAFETY: by this function's contract.
    let (client, bytes) = unsafe {
        (
            &*client.cast::<Client>(),
            core::slice::from_raw_parts_mut(argument.cast::<u8>(), argument_len as usize),
        )
    };
    let Some(fork) = fork() else {
        return Errno::NO_DEVICE.0 as isize;
    };
    let outcome = match Call::of(number, bytes) {
        Ok(Call::Freeze(call)) => prepare::freeze(fork, client, call),
        Ok(Call::Prepare(call)) => calls::prepare(fork, client, call),
        Ok(Call::Unprepare(call)) => calls::unprepare(fork, call),
        Ok(Call::List(call)) => calls::list(fork, call),
        Ok(Call::Query(call)) => calls::query(fork, call),
        Ok(Call::Open(call)) => calls::open(fork, call),
        Ok(Call::Connect(call)) => calls::connect(fork, call),
        Ok(Call::Disconnect(call)) => calls::disconnect(fork, call),
        Ok(Call::Ping(call)) => calls::ping(fork, call),
        Ok(Call::Stats(call)) => calls::stats(fork, call),
        Err(Refused::Invalid) => Err(Errno::INVALID),
        Err(Refused::NoSuchCall) => Err(Errno::NO_SUCH_CALL),
    };
    match outcome {
        Ok(value) => value as isize,
        Err(errno) => errno.0 as isize,
    }
}

/// # Safety
/// `image` is the file's, `file` is the shim's.
#[no_mangle]
pub unsafe extern "C" fn mitosis_image_resume(
    image: *mut c_void,
    file: *mut ffi::ImageFile,
    child: u64,
) -> isize {
    // SAFETY: the file has a reference until it is closed.
    let image = unsafe { Shared::<Image>::peek(image) };
    let outcome = match (fork(), image) {
        // SAFETY: by this function's contract.
        (Some(fork), Some(image)) => unsafe { resume::resume(fork, image, file, child) },
        _ => Err(Errno::NO_DEVICE),
    };
    match outcome {
        Ok(value) => value as isize,
        Err(errno) => errno.0 as isize,
    }
}

/// How long a fault waits for the seed's machine before the try that is then under way is its last. A READ fails 4 s after
/// the machine's last answer, and looking for the machine takes some 11 s (`cm::resolve`): one look, whichever of the two is
/// a little shorter.
const PATIENCE_NS: u64 = 10_000_000_000;
/// Between two tries.
const TRY_AGAIN_NS: u64 = 200_000_000;

/// Tries for a page again while its machine cannot be reached: a link may be down for a moment.
fn patiently(mut page: impl FnMut() -> Result<PageRef, PageError>) -> Result<PageRef, PageError> {
    let give_up_ns = now_ns() + PATIENCE_NS;
    let mut error = match page() {
        Err(error) if error.may_pass() => error,
        outcome => return outcome,
    };
    let nothing = Event::new()?;
    loop {
        // SAFETY: the event lives during the call; a process calls this.
        let killed = unsafe { ffi::mitosis_event_wait_frozen(nothing.as_ptr(), TRY_AGAIN_NS) };
        if killed != 0 || now_ns() >= give_up_ns {
            return Err(error);
        }
        match page() {
            Err(latest) if latest.may_pass() => error = latest,
            outcome => return outcome,
        }
    }
}

/// # Safety
/// `image` is the file's; `page` is valid during the call.
#[no_mangle]
pub unsafe extern "C" fn mitosis_image_fault(
    image: *mut c_void,
    vma: u32,
    number: u64,
    dropped: bool,
    page: *mut *mut ffi::Page,
) -> i32 {
    // SAFETY: the file has a reference until it is closed.
    let image = unsafe { Shared::<Image>::peek(image) };
    let (Some(fork), Some(image)) = (fork(), image) else {
        return Errno::NO_DEVICE.0;
    };
    fork.counters.faults.add(1);
    match patiently(|| image.page(fork, vma, number, dropped)) {
        Ok(found) => {
            // SAFETY: by this function's contract.
            unsafe { page.write(found.into_raw()) };
            0
        }
        Err(error) => {
            fork.counters.faults_failed.add(1);
            image.complain(fork, number.saturating_mul(PAGE_LEN as u64), &error);
            match error {
                PageError::NoMemory => Errno::NO_MEMORY.0,
                _ => Errno::IO.0,
            }
        }
    }
}

/// Pages that are here around one that has been touched, with a reference on each.
///
/// # Safety
/// As `mitosis_image_fault`; there is room for [`AROUND`] pages.
#[no_mangle]
pub unsafe extern "C" fn mitosis_image_around(
    image: *mut c_void,
    vma: u32,
    number: u64,
    pages: *mut [*mut ffi::Page; AROUND],
    from: *mut u64,
) {
    // SAFETY: by this function's contract.
    let (image, pages, from) = unsafe { (Shared::<Image>::peek(image), &mut *pages, &mut *from) };
    if let (Some(fork), Some(image)) = (fork(), image) {
        *from = image.around(fork, vma, number, pages);
    }
}

/// # Safety
/// `image` is the file's, and not used again.
#[no_mangle]
pub unsafe extern "C" fn mitosis_image_closed(image: *mut c_void) {
    // SAFETY: by this function's contract.
    let image = unsafe { Shared::<Image>::from_raw(image) };
    if let (Some(fork), Some(image)) = (fork(), image) {
        fork.images.close(fork, image);
    }
}
