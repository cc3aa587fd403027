//! The body of the fuzz target `shm_ring`: a peer that writes what it likes into the memory that it shares with us.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use arbitrary::{Arbitrary, Unstructured};
use mitosis_core::sync::line_ring::{Receiver, Sender};
use rustix::io::pwrite;
use rustix::net::{send, socketpair, AddressFamily, SendFlags, SocketFlags, SocketType};

use super::greeting::{self, Answer};
use super::segment::{self, Ring};
use super::{name, ShmClient, ShmServer, ShmServerConfig, DATAGRAM_LEN, DATAGRAM_WORDS};
use crate::address::ShmName;
use crate::fabric::{Fabric, PeerId};

/// Lines of a ring: the fewest.
const LINES: usize = 256;
/// Bytes of a segment: two control blocks, two rings.
const SEGMENT: u64 = 2 * (256 + 64 * LINES as u64);

/// What the hostile peer and its victim do, in turn.
#[derive(Arbitrary, Debug)]
enum Doing {
    /// A word anywhere in the segment.
    Scribble { place: u16, word: u64 },
    /// A stamp of a line near the one that the victim awaits, of any kind.
    Stamp { line: u8, behind: u8, kind: u32 },
    /// A count of consumed lines near the true one, or far from it.
    Consumed { near: i8, far: u16 },
    /// It says that it sleeps, or that it does not.
    Asleep(u64),
    /// Several neighbouring bytes.
    Smear { place: u16, with: u8, len: u8 },
    /// A datagram as the format wants it.
    Push { header: u8, payload: u16, fill: u8 },
    /// It reads what has come, as the format wants it.
    Pop,
    /// Packets through the socket.
    Wake { count: u8, len: u8 },
    /// It dies.
    Close,
    /// The victim receives.
    Receive(u8),
    /// The victim sends.
    Send { header: u8, payload: u16 },
    /// The victim looks whether it may sleep.
    Wait,
}

/// Lets a hostile client loose on a server, or a hostile server on a client: the victim does what it is told to, receives
/// nothing longer than any datagram, and never waits for the other; and a server serves an honest client all the while.
pub fn shm_ring(bytes: &[u8]) {
    let mut input = Unstructured::new(bytes);
    match input.arbitrary() {
        Ok(true) => against_a_server(&mut input),
        Ok(false) => against_a_client(&mut input),
        Err(_) => {}
    }
}

/// The peer that does what it likes.
struct Hostile {
    segment: OwnedFd,
    socket: Option<OwnedFd>,
    /// Its own ends, with which it can also keep to the format.
    sender: Sender<Ring>,
    receiver: Receiver<Ring, DATAGRAM_WORDS>,
    /// Which of the two rings it writes: 0 upwards, 1 downwards.
    written: u64,
    pushed: u64,
}

impl Hostile {
    fn word(&self, at: u64, word: u64) {
        let at = at % (SEGMENT / 8) * 8;
        assert_eq!(pwrite(&self.segment, &word.to_ne_bytes(), at), Ok(8));
    }

    fn does(&mut self, doing: &Doing) {
        // Where the rings' control blocks and lines begin, in words.
        let (control, lines) = (32, 64 + self.written * 8 * LINES as u64);
        match *doing {
            Doing::Scribble { place, word } => self.word(place.into(), word),
            Doing::Stamp { line, behind, kind } => {
                let number = self.pushed + u64::from(line % 32);
                let said = number.wrapping_sub(behind.into());
                let stamp = said.wrapping_add(1) << 18 | u64::from(kind & 0x3_ffff);
                self.word(lines + number % LINES as u64 * 8, stamp);
            }
            Doing::Consumed { near, far } => {
                let count = self.pushed.wrapping_add_signed(near.into());
                let count = count.wrapping_add(u64::from(far) << 48);
                self.word((1 - self.written) * control, count);
            }
            Doing::Asleep(word) => self.word((1 - self.written) * control + 16, word),
            Doing::Smear { place, with, len } => {
                let at = u64::from(place) % (SEGMENT - 255);
                let smear = vec![with; len.into()];
                assert!(pwrite(&self.segment, &smear, at).is_ok());
            }
            Doing::Push {
                header,
                payload,
                fill,
            } => {
                let payload = usize::from(payload) % DATAGRAM_LEN;
                let lines = (usize::from(header) + payload).div_ceil(56).max(1);
                let sent = (vec![fill; header.into()], vec![fill; payload]);
                if self.sender.push(&sent.0, &sent.1).is_ok() {
                    self.pushed += lines as u64;
                }
            }
            // What it makes of its own scribbles is its own matter.
            Doing::Pop => drop(self.receiver.pop()),
            Doing::Wake { count, len } => {
                if let Some(socket) = &self.socket {
                    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
                    for _ in 0..count % 16 {
                        let _ = send(socket, &vec![0; len.into()], flags);
                    }
                }
            }
            Doing::Close => self.socket = None,
            Doing::Receive(_) | Doing::Send { .. } | Doing::Wait => {}
        }
    }
}

/// What the victim is told.
fn told(victim: &mut impl Fabric, to: PeerId, doing: &Doing) {
    match *doing {
        Doing::Receive(times) => {
            for _ in 0..times % 32 {
                if received(victim).is_none() {
                    break;
                }
            }
        }
        Doing::Send { header, payload } => {
            let payload = vec![7; usize::from(payload) % (DATAGRAM_LEN - 255)];
            let sent = victim.send(to, &vec![7; header.into()], &payload);
            assert!(sent.is_ok() && victim.flush().is_ok());
        }
        Doing::Wait => assert!(victim.wait(Some(Duration::ZERO)).is_ok()),
        _ => {}
    }
    while victim.poll_gone().is_some() {}
}

/// Who has sent what, if anything has come.
fn received(victim: &mut impl Fabric) -> Option<(PeerId, Vec<u8>)> {
    let arrival = victim
        .receive()
        .expect("nothing that a peer does ends it")?;
    assert!(arrival.datagram.len() <= DATAGRAM_LEN);
    Some((arrival.from, arrival.datagram.to_vec()))
}

fn against_a_server(input: &mut Unstructured<'_>) {
    let name = ShmName::new(&format!("fuzz-{}", std::process::id())).expect("a name");
    let config = ShmServerConfig {
        peers: 4,
        ring_lines: LINES,
        dir: directory(),
    };
    let mut server = ShmServer::bind(&name, &config).expect("no other has the name");
    let mut welcomed = || {
        let socket = name::reach(&config.dir, &name, Duration::from_secs(1)).expect("it listens");
        greeting::send_hello(socket.as_fd()).expect("it listens");
        // It is accepted at one look, and greeted at another.
        for _ in 0..2 {
            server.wait(Some(Duration::ZERO)).expect("it looks");
        }
        let Ok(Answer::Welcome(segment, lines)) = greeting::receive_welcome(socket.as_fd()) else {
            panic!("the server has room")
        };
        let Ok(rings) = segment::open(segment.as_fd(), lines) else {
            panic!("the server's segment is one")
        };
        (socket, segment, rings)
    };
    let (socket, _, rings) = welcomed();
    let mut honest = ShmClient::over(socket, rings, LINES).expect("a waker");
    let (socket, segment, rings) = welcomed();
    let mut hostile = Hostile {
        segment,
        socket: Some(socket),
        sender: Sender::new(rings.upward),
        receiver: Receiver::new(rings.downward),
        written: 0,
        pushed: 0,
    };
    while !input.is_empty() {
        let Ok(doing) = Doing::arbitrary(input) else {
            break;
        };
        hostile.does(&doing);
        told(&mut server, 1, &doing);
    }
    // Whatever the hostile one still has to say, the honest one has its turn.
    let honest_said = b"honest";
    assert!(honest.send(0, honest_said, &[]).is_ok() && honest.flush().is_ok());
    let mut heard = false;
    for _ in 0..4 * LINES {
        let Some((from, datagram)) = received(&mut server) else {
            break;
        };
        heard |= from == 0 && datagram == honest_said;
        assert!(from <= 1);
    }
    assert!(heard, "the honest client is not heard");
    assert!(server.send(0, honest_said, &[]).is_ok() && server.flush().is_ok());
    assert_eq!(received(&mut honest), Some((0, honest_said.to_vec())));
}

fn against_a_client(input: &mut Unstructured<'_>) {
    let kind = SocketType::SEQPACKET;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, flags, None).expect("sockets");
    let (segment, rings) = segment::create(LINES).expect("memory");
    let Ok(mapped) = segment::open(segment.as_fd(), LINES) else {
        panic!("a segment is one")
    };
    let mut client = ShmClient::over(ours, mapped, LINES).expect("a waker");
    let mut hostile = Hostile {
        segment,
        socket: Some(theirs),
        sender: Sender::new(rings.downward),
        receiver: Receiver::new(rings.upward),
        written: 1,
        pushed: 0,
    };
    while !input.is_empty() {
        let Ok(doing) = Doing::arbitrary(input) else {
            break;
        };
        hostile.does(&doing);
        told(&mut client, 0, &doing);
    }
}

/// For the names, each of which is a process's.
fn directory() -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let make = || {
        let path = std::env::temp_dir().join("mitosis-fuzz");
        std::fs::create_dir_all(&path).expect("a place for the server's name");
        path
    };
    DIRECTORY.get_or_init(make).clone()
}
