//! `mitosis_rpc_flood`: a stranger that sends a server what it must survive, or must refuse, and tells what became of it.
//!
//! What it plays is a parameter: [`noise`] at full speed, or a client that is to be refused ([`refused`]): one of an old
//! version, one that repeats an overheard handshake, one whose requests are damaged.

mod corpus;
mod draw;
mod line;
mod noise;
mod refused;

use mitosis_core::wire::resolution::{Ask, MAX_SERVICE_ID};
use mitosis_core::wire::Kind;

use self::line::{Failure, Line};
use self::noise::Noise;
use self::refused::Overheard;
use crate::cm::{self, Unresolved};
use crate::devices::{Devices, Gid};
use crate::errno::Errno;
use crate::error;
use crate::ffi;
use crate::info;
use crate::module::{Control, Slot};

static SLOT: Slot = Slot::empty();

/// Starts the stranger. Called by insmod.
///
/// # Safety
/// `parameters` is valid during the call, and so are the bytes that it names.
#[no_mangle]
pub unsafe extern "C" fn mitosis_flood_start(parameters: *const ffi::FloodParameters) -> i32 {
    // SAFETY: by this function's contract.
    let parameters = unsafe { *parameters };
    // SAFETY: likewise.
    let (gid, play, connect, confirm) = unsafe {
        (
            parameters.gid.bytes(),
            parameters.play.bytes(),
            parameters.connect.bytes(),
            parameters.confirm.bytes(),
        )
    };
    let stranger = match stranger(&parameters, gid, play, connect, confirm) {
        Ok(stranger) => stranger,
        Err(complaint) => {
            error!(complaint);
            return Errno::INVALID.0;
        }
    };
    match SLOT.load(c"mitosis_flood", move |control: &Control| {
        stranger.run(control)
    }) {
        Ok(()) => 0,
        Err(errno) => {
            error!("cannot start the flood's thread: ", errno);
            errno.0
        }
    }
}

/// Stops the stranger. Called by rmmod.
#[no_mangle]
pub extern "C" fn mitosis_flood_stop() {
    SLOT.unload();
}

/// What the module was asked to do.
struct Stranger {
    gid: Gid,
    service_id: u32,
    server_qd_hint: u32,
    play: Play,
}

/// What the stranger plays.
enum Play {
    Noise(Noise),
    OldVersion,
    Replay(Overheard),
    Damaged { requests: u32, rpc_id: u32 },
}

fn stranger(
    parameters: &ffi::FloodParameters,
    gid: &[u8],
    play: &[u8],
    connect: &[u8],
    confirm: &[u8],
) -> Result<Stranger, &'static str> {
    let gid = Gid::parse(gid)
        .ok_or("gid is not eight groups of four hexadecimal digits with colons between them")?;
    if parameters.server_service_id > MAX_SERVICE_ID {
        return Err("server_service_id is more than 255");
    }
    let play = match play {
        b"noise" => Play::Noise(Noise {
            datagrams: parameters.datagrams,
            seed: parameters.seed,
        }),
        b"old-version" => Play::OldVersion,
        b"replay" => Play::Replay(Overheard {
            connect: refused::overheard(connect, Kind::Connect)
                .ok_or("connect is not a Connect in hexadecimal digits")?,
            confirm: refused::overheard(confirm, Kind::Confirm)
                .ok_or("confirm is not a Confirm in hexadecimal digits")?,
        }),
        b"damaged" => Play::Damaged {
            requests: parameters.datagrams,
            rpc_id: parameters.test_rpc_id,
        },
        _ => return Err("play is none of noise, old-version, replay and damaged"),
    };
    Ok(Stranger {
        gid,
        service_id: parameters.server_service_id,
        server_qd_hint: parameters.server_qd_hint,
        play,
    })
}

impl Stranger {
    fn run(&self, control: &Control) {
        match self.play(control) {
            Ok(()) => {}
            Err(Failure::Unresolved(Unresolved::Stopped)) | Err(Failure::Stopped) => {
                info!("flood stopped before its end")
            }
            Err(Failure::Unresolved(why)) => error!("flood failed: no server: ", why),
            Err(Failure::Kernel(step, errno)) => error!("flood failed: ", step, ": ", errno),
            Err(Failure::Unlike(what)) => error!("flood failed: ", what),
        }
    }

    /// What is declared first is dropped last.
    fn play(&self, control: &Control) -> Result<(), Failure> {
        let devices = Devices::open(&control.event)
            .map_err(|errno| Failure::Kernel("cannot watch RDMA devices", errno))?;
        let ask = Ask {
            server_qd_hint: self.server_qd_hint,
            client_qd_hint: 0,
            client_service_id: 0,
        };
        let route = cm::resolve(
            &devices,
            &control.event,
            &control.stop,
            self.gid,
            self.service_id,
            &ask,
        )
        .map_err(Failure::Unresolved)?;
        if let Play::Noise(noise) = &self.play {
            info!("flooding: gid ", self.gid);
            return noise.send(&route, &devices, control);
        }
        let mut line = Line::open(&route, control)?;
        match &self.play {
            Play::Noise(_) => Ok(()),
            Play::OldVersion => refused::old_version(&mut line),
            Play::Replay(overheard) => refused::replay(&mut line, overheard),
            Play::Damaged { requests, rpc_id } => refused::damaged(&mut line, *requests, *rpc_id),
        }
    }
}
