//! Reliable connections to other machines, what is read over them, and what they may read here.

use core::ffi::c_void;
use core::ptr::NonNull;

use mitosis_core::wire::fork::{Token, CHUNK_PAGES};
use mitosis_core::wire::resolution::service_port;
use zerocopy::{FromBytes, IntoBytes};

use super::ffi;
use super::memory::{Collected, PageRef};
use crate::cm::Route;
use crate::devices::{Devices, Gid, Port};
use crate::errno::Errno;
use crate::ffi::IbPd;
use crate::lock::{Mutex, Room, Shared};
use crate::memory::Table;
use crate::thread::{now_ns, random, Event};
use crate::verbs::ProtectionDomain;

/// Most pages of one READ: the shim's MITOSIS_READ_PAGES.
pub const READ_PAGES: usize = 16;
/// How long each step of connecting may take.
const CONNECT_TIMEOUT_MS: u32 = 3_000;
/// Queue pairs that are tried where the other machine takes them for those of this one's incarnation before, which it does
/// not know to be gone: more than an incarnation has.
const MAX_STALE: u32 = 16;

struct Raw(NonNull<ffi::Link>);

// SAFETY: the shim's functions on links lock for themselves.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: made by the shim, destroyed only here; whoever waits on it borrows it.
        unsafe { ffi::mitosis_link_destroy(self.0.as_ptr()) }
    }
}

/// A connection to another machine, over which its seeds are read. Fields are dropped in this order: the queue pair before
/// the route, which has its protection domain, and the devices last.
pub struct Link {
    raw: Raw,
    route: Shared<Route>,
    token: u64,
    _devices: Shared<Devices<'static>>,
}

impl Link {
    /// Connects over the route that the machine was found by, with the token that it gave.
    pub fn connect(
        devices: Shared<Devices<'static>>,
        route: Shared<Route>,
        gid: Gid,
        service: u32,
        token: u64,
    ) -> Result<Link, Errno> {
        let service_port = service_port(service).ok_or(Errno::INVALID)?;
        let private_data = Token {
            token: token.into(),
        };
        let mut attempts = 0;
        let raw = loop {
            let mut error = 0;
            // SAFETY: port, domain and GID are valid; the private data is copied during the call; the domain outlives the link.
            let link = unsafe {
                ffi::mitosis_link_connect(
                    &route.port().0,
                    route.pd().as_ptr(),
                    gid.0.as_ptr(),
                    service_port,
                    private_data.as_bytes().as_ptr(),
                    size_of::<Token>() as u32,
                    CONNECT_TIMEOUT_MS,
                    &mut error,
                )
            };
            attempts += 1;
            match NonNull::new(link) {
                Some(link) => break Raw(link),
                // The next attempt's queue pair has another number.
                None if Errno(error) == Errno::STALE && attempts < MAX_STALE => {}
                None => return Err(Errno(error)),
            }
        };
        Ok(Link {
            raw,
            route,
            token,
            _devices: devices,
        })
    }

    /// Whether it can still be used.
    pub fn is_alive(&self) -> bool {
        // SAFETY: the link lives as long as `self`.
        unsafe { ffi::mitosis_link_alive(self.raw.0.as_ptr()) }
    }

    /// What the other machine knows it by.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Ends it; what is being read fails.
    pub fn sever(&self) {
        // SAFETY: the link lives as long as `self`.
        unsafe { ffi::mitosis_link_break(self.raw.0.as_ptr()) }
    }
}

/// A READ that is under way. Its pages are the device's until it is over, which dropping it waits for.
pub struct Read {
    read: NonNull<ffi::Read>,
    posted: bool,
    link: Shared<Link>,
    pages: [Option<PageRef>; READ_PAGES],
}

// SAFETY: a READ may be waited for by any thread.
unsafe impl Send for Read {}

impl Read {
    /// Begins to read `count` pages, at most [`READ_PAGES`], which follow one another at `address`.
    pub fn begin(link: Shared<Link>, count: usize, address: u64, rkey: u32) -> Result<Read, Errno> {
        // SAFETY: the route's device is valid as long as the link.
        let read = unsafe { ffi::mitosis_read_create(link.route.port().0.device) };
        let mut read = Read {
            read: NonNull::new(read).ok_or(Errno::NO_MEMORY)?,
            posted: false,
            link,
            pages: [const { None }; READ_PAGES],
        };
        let mut raw = [core::ptr::null_mut(); READ_PAGES];
        for (place, raw) in read.pages.iter_mut().zip(raw.iter_mut()).take(count) {
            let page = PageRef::new()?;
            *raw = page.as_ptr();
            *place = Some(page);
        }
        // SAFETY: the first `count` pages are held by `read`, which waits for the device before it lets go of them.
        Errno::check(unsafe {
            ffi::mitosis_read_post(
                read.link.raw.0.as_ptr(),
                read.read.as_ptr(),
                raw.as_ptr(),
                count.min(READ_PAGES) as u32,
                address,
                rkey,
            )
        })?;
        read.posted = true;
        Ok(read)
    }

    /// The connection that it goes over.
    pub fn link(&self) -> Shared<Link> {
        self.link.clone()
    }

    /// Waits until it is over and gives the pages.
    pub fn finish(mut self) -> Result<[Option<PageRef>; READ_PAGES], Errno> {
        self.posted = false;
        // SAFETY: it was posted, and is waited for once.
        Errno::check(unsafe { ffi::mitosis_read_wait(self.read.as_ptr()) })?;
        Ok(core::mem::replace(
            &mut self.pages,
            [const { None }; READ_PAGES],
        ))
    }
}

impl Drop for Read {
    fn drop(&mut self) {
        // SAFETY: what was posted is waited for once; then the device has none of it.
        unsafe {
            if self.posted {
                ffi::mitosis_read_wait(self.read.as_ptr());
            }
            ffi::mitosis_read_destroy(self.read.as_ptr());
        }
    }
}

/// Pages that other machines may read.
pub struct Region {
    region: NonNull<ffi::Region>,
    /// The protection domain that it is in.
    domain: *mut IbPd,
    /// How many pages it has.
    pub count: usize,
}

// SAFETY: a region may be destroyed by any thread.
unsafe impl Send for Region {}

impl Region {
    /// Its key.
    pub fn rkey(&self) -> u32 {
        // SAFETY: the region lives as long as `self`.
        unsafe { ffi::mitosis_region_rkey(self.region.as_ptr()) }
    }

    /// Where its first page is read.
    pub fn address(&self) -> u64 {
        // SAFETY: the region lives as long as `self`.
        unsafe { ffi::mitosis_region_iova(self.region.as_ptr()) }
    }

    /// Whether it can be read over connections of the domain.
    pub fn is_in(&self, domain: *mut IbPd) -> bool {
        self.domain == domain
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: made by the shim, destroyed only here. Its holders (`Seed`) drop it before the domain goes.
        unsafe { ffi::mitosis_region_destroy(self.region.as_ptr()) }
    }
}

/// A connection that another machine opened, by which it reads seeds of this one.
pub struct Visitor {
    raw: Raw,
    token: u64,
    /// Whose it is.
    gid: [u8; 16],
    domain: *mut IbPd,
}

// SAFETY: the domain is only compared.
unsafe impl Send for Visitor {}
// SAFETY: as above.
unsafe impl Sync for Visitor {}

impl Visitor {
    /// Which protection domain it is in.
    pub fn domain(&self) -> *mut IbPd {
        self.domain
    }

    /// Makes pages readable.
    pub fn register(&self, pages: &mut Collected) -> Result<Region, Errno> {
        let (pages, count) = pages.take();
        let mut error = 0;
        // SAFETY: `count` pages are given, with their references; the link is alive.
        let region =
            unsafe { ffi::mitosis_region_create(self.raw.0.as_ptr(), pages, count, &mut error) };
        Ok(Region {
            region: NonNull::new(region).ok_or(Errno(error))?,
            domain: self.domain,
            count: (count as usize).min(CHUNK_PAGES),
        })
    }
}

/// Most connections that other machines may have open here.
const MAX_VISITORS: usize = 256;
/// Most tokens that have not been used yet; a further one takes the oldest one's place.
const MAX_TOKENS: usize = 64;
/// How long a token can be used.
const TOKEN_LIFE_NS: u64 = 30_000_000_000;

#[derive(Clone, Copy, Default)]
struct Pass {
    token: u64,
    until_ns: u64,
}

struct Book {
    visitors: Table<Option<Shared<Visitor>>>,
    passes: [Pass; MAX_TOKENS],
    next: usize,
}

/// The connections that others opened, and the tokens for those that will be.
pub struct Visitors {
    book: Mutex<Book>,
}

impl Visitors {
    /// Nobody is here.
    pub fn new() -> Result<Visitors, Errno> {
        Ok(Visitors {
            book: Mutex::new(Book {
                visitors: Table::try_new(MAX_VISITORS, |_| Ok(None))?,
                passes: [Pass::default(); MAX_TOKENS],
                next: 0,
            })?,
        })
    }

    /// A token for one connection.
    pub fn issue(&self) -> u64 {
        let mut book = self.book.lock();
        let token = random() | 1;
        let place = book.next % MAX_TOKENS;
        book.next = book.next.wrapping_add(1);
        if let Some(pass) = book.passes.get_mut(place) {
            *pass = Pass {
                token,
                until_ns: now_ns() + TOKEN_LIFE_NS,
            };
        }
        token
    }

    /// Whether a token was issued; it can be used once.
    fn redeem(&self, token: u64) -> bool {
        let mut book = self.book.lock();
        let now_ns = now_ns();
        let pass = book
            .passes
            .iter_mut()
            .find(|pass| token != 0 && pass.token == token && now_ns < pass.until_ns);
        match pass {
            Some(pass) => {
                *pass = Pass::default();
                true
            }
            None => false,
        }
    }

    /// A machine has one connection here: what is left of an earlier one is that of an incarnation which ended without
    /// saying so, and nothing else would ever tell.
    fn enter(&self, visitor: Shared<Visitor>) {
        let mut book = self.book.lock();
        for earlier in book.visitors.iter().flatten() {
            if earlier.gid == visitor.gid {
                // SAFETY: the link lives as long as the visitor. It is destroyed by `sweep`: not in a callback.
                unsafe { ffi::mitosis_link_give_up(earlier.raw.0.as_ptr()) }
            }
        }
        if let Some(place) = book.visitors.iter_mut().find(|place| place.is_none()) {
            *place = Some(visitor);
        }
    }

    /// The connection that has the token.
    pub fn find(&self, token: u64) -> Option<Shared<Visitor>> {
        let book = self.book.lock();
        let found = book
            .visitors
            .iter()
            .flatten()
            .find(|visitor| visitor.token == token);
        found.cloned()
    }

    /// Whether one more connection has a place.
    fn has_room(&self) -> bool {
        self.count() < MAX_VISITORS
    }

    /// How many connections there are.
    pub fn count(&self) -> usize {
        self.book.lock().visitors.iter().flatten().count()
    }

    /// Drops connections that have ended, or all.
    pub fn sweep(&self, all: bool) {
        for index in 0..MAX_VISITORS {
            let mut book = self.book.lock();
            let Some(place) = book.visitors.get_mut(index) else {
                return;
            };
            let over = place.as_ref().is_some_and(|visitor| {
                // SAFETY: the link lives as long as the visitor.
                all || !unsafe { ffi::mitosis_link_alive(visitor.raw.0.as_ptr()) }
            });
            let visitor = if over { place.take() } else { None };
            drop(book);
            // Destroying a connection waits for its callbacks, which may want the book.
            drop(visitor);
        }
    }
}

/// What the connection manager's callbacks look at.
pub struct Door<'a> {
    /// Who is here.
    pub visitors: &'a Visitors,
    /// The ports that are served, each with the domain that its connections go into.
    pub ports: &'a [(Port, ProtectionDomain)],
}

impl Door<'_> {
    fn domain(&self, request: &ffi::LinkRequest) -> Option<*mut IbPd> {
        self.ports
            .iter()
            .find(|(port, _)| port.is(request.device, request.port_num))
            .map(|(_, pd)| pd.as_ptr())
    }
}

fn token_of(request: &ffi::LinkRequest) -> Option<u64> {
    if request.private_data.is_null() {
        return None;
    }
    // SAFETY: the connection manager's copy of the private data, of this length, valid during the callback.
    let bytes = unsafe {
        core::slice::from_raw_parts(request.private_data, request.private_data_len as usize)
    };
    let (token, _) = Token::read_from_prefix(bytes).ok()?;
    Some(token.token.get())
}

/// # Safety
/// `context` is the `Door` given to `mitosis_link_listen`; `request` is valid during the call.
unsafe extern "C" fn admit(context: *mut c_void, request: *const ffi::LinkRequest) -> *mut IbPd {
    // SAFETY: by this function's contract.
    let (door, request) = unsafe { (&*context.cast::<Door<'_>>(), &*request) };
    // A connection that there is no place for could not be ended in the callback that brings it.
    let admitted = token_of(request)
        .filter(|&token| door.visitors.has_room() && door.visitors.redeem(token))
        .and_then(|_| door.domain(request));
    admitted.unwrap_or(core::ptr::null_mut())
}

/// Whether the visitor has been taken in. Where not, the shim ends the connection: to drop a link here would wait for the
/// very callback that this is.
///
/// # Safety
/// As `admit`; `link` is the callee's from now on if it returns true.
unsafe extern "C" fn established(
    context: *mut c_void,
    request: *const ffi::LinkRequest,
    link: *mut ffi::Link,
) -> bool {
    // SAFETY: by this function's contract.
    let (door, request) = unsafe { (&*context.cast::<Door<'_>>(), &*request) };
    let (Some(link), Some(token), Ok(room)) = (NonNull::new(link), token_of(request), Room::new())
    else {
        return false;
    };
    door.visitors.enter(room.fill(Visitor {
        raw: Raw(link),
        token,
        gid: request.gid,
        domain: door.domain(request).unwrap_or(core::ptr::null_mut()),
    }));
    true
}

/// Lets other machines connect, until dropped.
pub struct LinkListener<'a> {
    listener: NonNull<ffi::LinkListener>,
    _door: &'a Door<'a>,
}

impl<'a> LinkListener<'a> {
    /// Listens at `service` on every port of one kind of link; `event` is signalled when a connection ends.
    pub fn open(
        service: u32,
        infiniband: bool,
        event: &'a Event,
        door: &'a Door<'a>,
    ) -> Result<LinkListener<'a>, Errno> {
        let service_port = service_port(service).ok_or(Errno::INVALID)?;
        let mut error = 0;
        // SAFETY: `door` and `event` outlive the listener, and with it every callback.
        let listener = unsafe {
            ffi::mitosis_link_listen(
                service_port,
                infiniband,
                event.as_ptr(),
                admit,
                established,
                core::ptr::from_ref(door).cast_mut().cast(),
                &mut error,
            )
        };
        Ok(LinkListener {
            listener: NonNull::new(listener).ok_or(Errno(error))?,
            _door: door,
        })
    }
}

impl Drop for LinkListener<'_> {
    fn drop(&mut self) {
        // SAFETY: opened in `open`, closed only here; afterwards no callback runs.
        unsafe { ffi::mitosis_link_unlisten(self.listener.as_ptr()) }
    }
}
