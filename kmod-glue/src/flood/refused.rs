//! Clients that a server must refuse, and what it answers them.

use mitosis_core::rpc::client::{CallSlot, Client, ClientConfig, Event};
use mitosis_core::session::{RequestId, SessionId};
use mitosis_core::wire::{
    Datagram, ErrorCode, Kind, Message, Part, Reason, Refusal, HEADER_LEN, MAX_CONTROL_LEN, VERSION,
};
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::line::{Failure, Line};
use crate::info;
use crate::thread::{now_ns, random};

/// Where a header has its version.
const VERSION_AT: usize = 2;
/// Where a header names its session.
const SESSION_AT: core::ops::Range<usize> = 4..16;
/// What a damaged request carries, in bytes.
const PAYLOAD_LEN: usize = 64;

/// A datagram that somebody else sent.
pub struct Heard {
    bytes: [u8; MAX_CONTROL_LEN],
    len: usize,
}

/// A member's handshake.
pub struct Overheard {
    /// Its Connect.
    pub connect: Heard,
    /// Its Confirm.
    pub confirm: Heard,
}

impl Heard {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }

    /// The same, of another session.
    fn of_session(&self, session: SessionId) -> Heard {
        let mut bytes = self.bytes;
        let names = [session.index, session.generation, session.epoch];
        let names = names.iter().flat_map(|name| name.to_le_bytes());
        for (to, from) in bytes
            .iter_mut()
            .take(SESSION_AT.end)
            .skip(SESSION_AT.start)
            .zip(names)
        {
            *to = from;
        }
        Heard {
            bytes,
            len: self.len,
        }
    }
}

/// Reads a datagram of this kind off hexadecimal digits.
pub fn overheard(digits: &[u8], kind: Kind) -> Option<Heard> {
    let mut heard = Heard {
        bytes: [0; MAX_CONTROL_LEN],
        len: digits.len() / 2,
    };
    let places = heard.bytes.get_mut(..heard.len)?;
    for (place, pair) in places.iter_mut().zip(digits.chunks_exact(2)) {
        *place = pair.iter().try_fold(0u8, |value, &digit| {
            let digit = char::from(digit).to_digit(16)?;
            Some((value << 4) | digit as u8)
        })?;
    }
    let datagram = Datagram::parse(heard.bytes()).ok()?;
    let fits = matches!(
        (kind, datagram.message),
        (Kind::Connect, Message::Connect(_)) | (Kind::Confirm, Message::Confirm(_))
    );
    fits.then_some(heard)
}

fn config(line: &Line<'_>) -> ClientConfig {
    ClientConfig {
        client_key: random(),
        nonce: random(),
        cluster_key: None,
        datagram_len: line.datagram_len(),
        slots: 1,
        credits: 1,
        max_message_len: PAYLOAD_LEN as u32,
        // The line repeats what is not answered.
        rto_initial_ns: u64::MAX,
        rto_min_ns: u64::MAX,
        rto_max_ns: u64::MAX,
        connect_timeout_ns: u64::MAX,
        call_timeout_ns: u64::MAX,
    }
}

/// A client whose Connect has the version before this one. Version, magic and kind have their places in every version.
pub fn old_version(line: &mut Line<'_>) -> Result<(), Failure> {
    let mut slots = [CallSlot::new()];
    let mut client = Client::new(config(line), &mut slots);
    client.connect(now_ns());
    let mut connect = [0; MAX_CONTROL_LEN];
    let len = client
        .poll_transmit(now_ns(), &mut connect)
        .map_or(0, |transmit| transmit.header_len);
    if let Some(version) = connect.get_mut(VERSION_AT) {
        *version = VERSION - 1;
    }
    let event = line.ask(connect.get(..len).unwrap_or(&[]), |datagram| {
        client.handle_datagram(now_ns(), datagram).ok().flatten()
    })?;
    match event {
        Event::Refused(refusal) if refusal.code == ErrorCode::BadVersion => {
            info!("old version: the server refused a session: ", refusal);
            Ok(())
        }
        _ => Err(Failure::Unlike("an old version was not refused as one")),
    }
}

/// Whoever overheard a member's handshake and sends it again from a queue pair of its own: first as it was, then with the
/// Confirm made to fit the session that the Connect opened, and with a request in it before.
pub fn replay(line: &mut Line<'_>, overheard: &Overheard) -> Result<(), Failure> {
    let session = line.ask(overheard.connect.bytes(), |datagram| {
        let datagram = Datagram::parse(datagram).ok()?;
        matches!(datagram.message, Message::Accept(_)).then_some(datagram.session)
    })?;
    info!("replay: the Connect's tag is right: a half-open session");

    let refusal = line.ask(overheard.confirm.bytes(), |datagram| {
        let datagram = Datagram::parse(datagram).ok()?;
        refusal_of(&datagram).filter(|_| datagram.session != session)
    })?;
    info!("replay: the Confirm as it was: refused: ", refusal);
    if refusal.code != ErrorCode::NoSuchSession {
        return Err(Failure::Unlike(
            "a Confirm of another's session was not refused as such",
        ));
    }

    let request = Datagram {
        session,
        request: RequestId(1),
        slot: 0,
        message: Message::Request {
            rpc_id: 0,
            part: Part::whole(&[]),
        },
    };
    let mut bytes = [0; MAX_CONTROL_LEN];
    let len = request.emit(&mut bytes).unwrap_or(0);
    line.say(bytes.get(..len).unwrap_or(&[]))?;
    // What the server says to the request, if it says anything, comes before what it says to the Confirm.
    let confirm = overheard.confirm.of_session(session);
    let answer = line.ask(confirm.bytes(), |datagram| {
        let datagram = Datagram::parse(datagram).ok()?;
        let in_session = datagram.session == session;
        let accept = matches!(datagram.message, Message::Accept(_));
        (in_session && !accept).then(|| refusal_of(&datagram))
    })?;
    match answer {
        Some(refusal) if refusal.reason == Some(Reason::Replayed) => {
            info!("replay: the Confirm made to fit: refused: ", refusal);
            Ok(())
        }
        _ => Err(Failure::Unlike("a replayed Confirm was not refused as one")),
    }
}

/// The refusal that a datagram is.
fn refusal_of(datagram: &Datagram<'_>) -> Option<Refusal> {
    match datagram.message {
        Message::Error(refusal) => Some(refusal),
        _ => None,
    }
}

/// A client with a session, whose requests' checksums are wrong.
pub fn damaged(line: &mut Line<'_>, requests: u32, rpc_id: u32) -> Result<(), Failure> {
    let mut slots = [CallSlot::new()];
    let mut client = Client::new(config(line), &mut slots);
    let mut bytes = [0; HEADER_LEN + PAYLOAD_LEN];
    let mut header = [0; MAX_CONTROL_LEN];
    client.connect(now_ns());
    let len = client
        .poll_transmit(now_ns(), &mut header)
        .map_or(0, |transmit| transmit.header_len);
    let event = line.ask(header.get(..len).unwrap_or(&[]), |datagram| {
        client.handle_datagram(now_ns(), datagram).ok().flatten()
    })?;
    if event != Event::Connected {
        return Err(Failure::Unlike("the server did not grant a session"));
    }

    let mut chance = Xoshiro256PlusPlus::seed_from_u64(random());
    let mut failed = 0u32;
    for _ in 0..requests {
        if client
            .call(now_ns(), 0, rpc_id, PAYLOAD_LEN as u32)
            .is_err()
        {
            return Err(Failure::Unlike("the session is over"));
        }
        // The Confirm, before the first.
        while let Some(transmit) = client.poll_transmit(now_ns(), &mut header) {
            let (head, payload) = bytes.split_at_mut(HEADER_LEN);
            for (to, from) in head.iter_mut().zip(&header) {
                *to = *from;
            }
            if transmit.payload.is_none() {
                line.say(header.get(..transmit.header_len).unwrap_or(&[]))?;
                continue;
            }
            chance.fill_bytes(payload);
        }
        let event = line.ask(&bytes, |datagram| {
            client.handle_datagram(now_ns(), datagram).ok().flatten()
        })?;
        match event {
            Event::Failed {
                error: ErrorCode::HandlerFailed,
                ..
            } => failed += 1,
            _ => return Err(Failure::Unlike("a damaged request was not refused as one")),
        }
    }
    info!("damaged requests: sent ", requests, ", failed ", failed);
    Ok(())
}
