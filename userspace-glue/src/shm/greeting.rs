//! What passes through the socket before there are rings: the client's Hello, the server's Welcome and the segment.
//!
//! Both are packets of 16 bytes: magic, version and status as `u16`, lines as `u32`, all little-endian. Afterwards each
//! packet is a wake-up, whatever is in it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::cmsg_space;
use rustix::io::Errno;
use rustix::net::{
    recv, recvmsg, send, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

/// Of the greeting and the segment's layout together.
pub const VERSION: u16 = 1;

const HELLO: [u8; 8] = *b"MITOSIS?";
const WELCOME: [u8; 8] = *b"MITOSIS!";
const LEN: usize = 16;

/// The server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Status {
    /// The segment comes with it.
    Welcome = 0,
    /// It has as many clients as it takes.
    Full = 1,
    /// It speaks another version.
    Version = 2,
    /// It has no memory or no file for another client.
    Exhausted = 3,
}

fn packet(magic: [u8; 8], status: u16, lines: u32) -> [u8; LEN] {
    let mut bytes = [0; LEN];
    bytes[..8].copy_from_slice(&magic);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10..12].copy_from_slice(&status.to_le_bytes());
    bytes[12..].copy_from_slice(&lines.to_le_bytes());
    bytes
}

/// Version, status and lines.
fn parse(bytes: &[u8], magic: [u8; 8]) -> Option<(u16, u16, u32)> {
    let bytes: &[u8; LEN] = bytes.try_into().ok()?;
    let rest = bytes.strip_prefix(&magic)?;
    let (version, rest) = rest.split_first_chunk()?;
    let (status, rest) = rest.split_first_chunk()?;
    Some((
        u16::from_le_bytes(*version),
        u16::from_le_bytes(*status),
        u32::from_le_bytes(rest.try_into().ok()?),
    ))
}

/// Says Hello.
pub fn send_hello(socket: BorrowedFd<'_>) -> Result<(), Errno> {
    send(socket, &packet(HELLO, 0, 0), SendFlags::NOSIGNAL).map(drop)
}

/// The client's version. `Ok(None)` if it said something else, or has gone.
pub fn receive_hello(socket: BorrowedFd<'_>) -> Result<Option<u16>, Errno> {
    let mut bytes = [0; LEN + 1];
    let (_, len) = recv(socket, &mut bytes, RecvFlags::DONTWAIT)?;
    let hello = bytes.get(..len).and_then(|said| parse(said, HELLO));
    Ok(hello.map(|(version, ..)| version))
}

/// Answers a Hello, with the segment and its number of lines if it is welcome.
pub fn send_welcome(
    socket: BorrowedFd<'_>,
    status: Status,
    segment: Option<(&OwnedFd, usize)>,
) -> Result<(), Errno> {
    let lines = segment.map_or(0, |(_, lines)| lines as u32);
    let bytes = packet(WELCOME, status as u16, lines);
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = segment.map(|(fd, _)| [fd.as_fd()]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, flags).map(drop)
}

/// What a client is answered.
pub enum Answer {
    /// The segment, and how many lines its rings have.
    Welcome(OwnedFd, usize),
    /// Why not.
    Refused(Status),
    /// The server speaks this version.
    Version(u16),
    /// The server has closed the socket.
    Gone,
    /// It is no answer of ours.
    Strange,
}

/// Takes the server's answer.
pub fn receive_welcome(socket: BorrowedFd<'_>) -> Result<Answer, Errno> {
    let mut bytes = [0; LEN + 1];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut passed = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            passed = fds.last();
        }
    }
    if received.bytes == 0 {
        return Ok(Answer::Gone);
    }
    let said = bytes.get(..received.bytes);
    let Some((version, status, lines)) = said.and_then(|said| parse(said, WELCOME)) else {
        return Ok(Answer::Strange);
    };
    let refusals = [Status::Full, Status::Exhausted];
    let refusal = refusals.into_iter().find(|&known| known as u16 == status);
    Ok(match (refusal, passed) {
        _ if version != VERSION || status == Status::Version as u16 => Answer::Version(version),
        (Some(refusal), _) => Answer::Refused(refusal),
        (None, Some(segment)) if status == Status::Welcome as u16 => {
            Answer::Welcome(segment, lines as usize)
        }
        _ => Answer::Strange,
    })
}

/// Wakes the other end. If the socket has no room, the other end has not taken the last wake-up yet; if it is closed, there
/// is nobody to wake.
pub fn wake(socket: BorrowedFd<'_>) {
    let _ = send(socket, &[0], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
}

/// Takes the wake-ups that have come; whether the other end is gone.
pub fn take_wakes(socket: BorrowedFd<'_>) -> bool {
    // An honest end owes one at most; the rest of a dishonest one's is left for the next time.
    for _ in 0..4 {
        let mut bytes = [0; LEN];
        match recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
    false
}
