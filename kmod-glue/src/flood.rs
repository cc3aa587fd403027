//! `mitosis_rpc_flood`: sends a server what it must survive.
//!
//! Half of the datagrams are random bytes of random length; the other half are well-formed messages of every kind, naming
//! sessions and requests that may well exist, in which up to four random bits are flipped. The same seed makes the same
//! datagrams again.

use mitosis_core::session::{RequestId, SessionId};
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::resolution::{Ask, MAX_SERVICE_ID};
use mitosis_core::wire::{Connect, Datagram, Message, HEADER_LEN};
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256StarStar;

use crate::cm::{self, Unresolved};
use crate::devices::{Devices, Gid};
use crate::endpoint::{Endpoint, Ticket};
use crate::errno::Errno;
use crate::ffi;
use crate::memory::Table;
use crate::module::{Control, Slot};
use crate::thread::{give_way, now_ns};
use crate::verbs::{Completion, Direction, MappedPage, BATCH};
use crate::{error, info};

/// Datagrams under way at a time.
const BUFFERS: usize = 32;
/// What the server answers has to go somewhere.
const RECEIVE_BUFFERS: u32 = 64;

static SLOT: Slot = Slot::empty();

/// Starts the flood. Called by insmod.
///
/// # Safety
/// `parameters` is valid during the call, and so are the bytes of its GID.
#[no_mangle]
pub unsafe extern "C" fn mitosis_flood_start(parameters: *const ffi::FloodParameters) -> i32 {
    // SAFETY: by this function's contract.
    let parameters = unsafe { *parameters };
    // SAFETY: likewise.
    let gid = unsafe { core::slice::from_raw_parts(parameters.gid, parameters.gid_len as usize) };
    let Some(gid) = Gid::parse(gid) else {
        error!("gid is not eight groups of four hexadecimal digits with colons between them");
        return Errno::INVALID.0;
    };
    if parameters.server_service_id > MAX_SERVICE_ID {
        error!("server_service_id is more than 255");
        return Errno::INVALID.0;
    }
    let flood = Flood {
        gid,
        service_id: parameters.server_service_id,
        server_qd_hint: parameters.server_qd_hint,
        datagrams: parameters.datagrams,
        seed: parameters.seed,
    };
    match SLOT.load(c"mitosis_flood", move |control: &Control| {
        flood.run(control)
    }) {
        Ok(()) => 0,
        Err(errno) => {
            error!("cannot start the flood's thread: ", errno);
            errno.0
        }
    }
}

/// Stops the flood. Called by rmmod.
#[no_mangle]
pub extern "C" fn mitosis_flood_stop() {
    SLOT.unload();
}

/// What the module was asked to do.
struct Flood {
    gid: Gid,
    service_id: u32,
    server_qd_hint: u32,
    datagrams: u32,
    seed: u32,
}

/// Why the flood ended early.
enum Failure {
    Unresolved(Unresolved),
    Kernel(&'static str, Errno),
}

/// What was sent.
struct Sent {
    all: u32,
    mutated: u32,
}

impl Flood {
    fn run(&self, control: &Control) {
        info!(
            "flooding: gid ",
            self.gid, ", datagrams ", self.datagrams, ", seed ", self.seed
        );
        let start_ns = now_ns();
        match self.send(control) {
            Ok(sent) => info!(
                "flood done: sent ",
                sent.all,
                ", mutated ",
                sent.mutated,
                ", elapsed_us ",
                (now_ns() - start_ns) / 1_000
            ),
            Err(Failure::Unresolved(Unresolved::Stopped)) => {
                info!("flood stopped before its start")
            }
            Err(Failure::Unresolved(why)) => error!("flood failed: no server: ", why),
            Err(Failure::Kernel(step, errno)) => error!("flood failed: ", step, ": ", errno),
        }
    }

    /// What is declared first is dropped last.
    fn send(&self, control: &Control) -> Result<Sent, Failure> {
        let kernel = |step| move |errno| Failure::Kernel(step, errno);
        let devices = Devices::open(&control.event).map_err(kernel("cannot watch RDMA devices"))?;
        let ask = Ask {
            server_qd_hint: self.server_qd_hint,
            client_qd_hint: 0,
            client_service_id: 0,
        };
        let stop: &Stop = &control.stop;
        let route = cm::resolve(
            &devices,
            &control.event,
            stop,
            self.gid,
            self.service_id,
            &ask,
        )
        .map_err(Failure::Unresolved)?;
        let mut buffers = Table::try_new(BUFFERS, |_| {
            Ok((
                MappedPage::new(route.pd(), Direction::ToDevice)?,
                Ticket::default(),
            ))
        })
        .map_err(kernel("cannot allocate send buffers"))?;
        let mut endpoint =
            Endpoint::open(route.port(), route.pd(), &control.event, RECEIVE_BUFFERS)
                .map_err(kernel("cannot create a queue pair"))?;
        let mut random = Xoshiro256StarStar::seed_from_u64(u64::from(self.seed));
        let mut sent = Sent { all: 0, mutated: 0 };
        while sent.all < self.datagrams && !stop.wanted() && !devices.removed() {
            let Some((buffer, ticket)) = buffers.get_mut(sent.all as usize % BUFFERS) else {
                break;
            };
            endpoint
                .wait_sent(*ticket)
                .map_err(kernel("a send does not complete"))?;
            let room = usize::from(endpoint.datagram_len());
            let bytes = buffer.page.bytes_mut();
            let bytes = bytes.get_mut(..room).unwrap_or(&mut []);
            let mutated = random.next_u32() & 1 == 1;
            let len = if mutated {
                mutate(&mut random, bytes)
            } else {
                noise(&mut random, bytes)
            };
            *ticket = endpoint
                .send(&route.destination(), buffer, len, true)
                .map_err(kernel("cannot send"))?;
            sent.all += 1;
            sent.mutated += u32::from(mutated);
            discard(&mut endpoint).map_err(kernel("cannot post receives"))?;
            give_way();
        }
        endpoint
            .flush_sends()
            .map_err(kernel("a send does not complete"))?;
        Ok(sent)
    }
}

/// Random bytes of random length, often about as long as a header.
fn noise(random: &mut Xoshiro256StarStar, bytes: &mut [u8]) -> usize {
    let most = match random.next_u32() % 4 {
        0 => bytes.len(),
        1 => HEADER_LEN,
        _ => HEADER_LEN * 2,
    };
    let len = (random.next_u32() as usize % (most + 1)).min(bytes.len());
    if let Some(bytes) = bytes.get_mut(..len) {
        random.fill_bytes(bytes);
    }
    len
}

/// A well-formed message with up to four bits flipped.
fn mutate(random: &mut Xoshiro256StarStar, bytes: &mut [u8]) -> usize {
    let session = SessionId {
        index: random.next_u32() % 1_100,
        generation: 1 + random.next_u32() % 4,
        epoch: random.next_u32(),
    };
    let request = RequestId(u64::from(random.next_u32() % 100_000));
    let (session, request, message) = match random.next_u32() % 6 {
        0 => {
            let connect = Connect {
                client_key: random.next_u64(),
                // Too short to be granted, so that the flood takes no sessions: that is another test.
                datagram_len: (random.next_u32() % 256) as u16,
            };
            (SessionId::NONE, RequestId(0), Message::Connect(connect))
        }
        1 => (session, RequestId(0), Message::Confirm),
        2 => (session, RequestId(0), Message::Disconnect),
        3 => (session, RequestId(0), Message::Ping),
        _ => (
            session,
            request,
            Message::Request {
                rpc_id: random.next_u32(),
                payload: &[],
            },
        ),
    };
    let datagram = Datagram {
        session,
        request,
        message,
    };
    let len = datagram.emit(bytes).unwrap_or(0);
    for _ in 0..random.next_u32() % 5 {
        let bit = random.next_u32() as usize % (len * 8).max(1);
        if let Some(byte) = bytes.get_mut(bit / 8) {
            *byte ^= 1 << (bit % 8);
        }
    }
    len
}

/// Takes in the server's answers and looks at none.
fn discard(endpoint: &mut Endpoint<'_>) -> Result<(), Errno> {
    let mut completions = [Completion::default(); BATCH];
    for completion in endpoint.poll(&mut completions) {
        endpoint.give_back(completion.wr_id)?;
    }
    endpoint.flush()
}
