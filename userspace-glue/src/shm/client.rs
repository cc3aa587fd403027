//! The calling end: one server, two rings.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use mitosis_core::sync::line_ring::{NoRoom, Receiver, Sender};
use mitosis_core::wire::Words;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::first_look::{pause, FirstLook, CLIENT_SHRINKS};
use super::greeting::{self, Answer, Status};
use super::name;
use super::segment::{self, NotASegment, Ring, Rings};
use super::{ring_holds, DATAGRAM_LEN, DATAGRAM_WORDS, MOST_IN_GROUP};
use crate::address::ShmName;
use crate::fabric::{Arrival, Fabric, FabricError, FabricErrorKind as Kind, PeerId, Waker};

/// The server's number.
const SERVER: PeerId = 0;

/// How often an idle ring is looked at before the caller has something else to look at.
const POLLS: u32 = 32;

/// After how many polls that found nothing the socket is looked at: a system call among many.
const POLLS_A_LOOK: u32 = 1024;

/// The calling end of shared memory. Its only peer is the server, number 0.
pub struct ShmClient {
    socket: OwnedFd,
    waker: Waker,
    sender: Sender<Ring>,
    receiver: Receiver<Ring, DATAGRAM_WORDS>,
    ring_lines: usize,
    /// How many bytes the last datagram has.
    len: usize,
    sent: bool,
    /// How often the ring is to be looked at.
    looks: u32,
    first_look: FirstLook,
    polls: u32,
    /// The server has closed its end; what it had sent is still received.
    closing: bool,
    /// That has been received.
    drained: bool,
    told: bool,
    dropped: u64,
}

impl ShmClient {
    /// Connects to the server of this name, which lies in `dir`. Waits for its answer for `timeout` at most.
    pub fn connect(dir: &Path, name: &ShmName, timeout: Duration) -> Result<Self, FabricError> {
        let socket = name::reach(dir, name, timeout)?;
        let gone = || {
            let what = format!("the server shm://{name} has died while it was greeted");
            FabricError::new(Kind::PeerGone, what, "start it again")
        };
        let system = |errno: Errno| match errno {
            Errno::AGAIN => name::silent(name),
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => gone(),
            _ => {
                let what = format!("cannot greet the server shm://{name}");
                let advice = "raise the limits of open files and of memory (ulimit -n, -v)";
                FabricError::new(Kind::System, what, advice).because(errno)
            }
        };
        greeting::send_hello(socket.as_fd()).map_err(system)?;
        let answer = loop {
            match greeting::receive_welcome(socket.as_fd()) {
                Err(Errno::INTR) => {}
                answered => break answered.map_err(system)?,
            }
        };
        let strange = || {
            let what = format!("what listens as shm://{name} is no server of ours");
            FabricError::new(Kind::PeerGone, what, "look who has taken the name")
        };
        let (fd, ring_lines) = match answer {
            Answer::Welcome(fd, lines) => (fd, lines),
            Answer::Refused(Status::Full) => {
                let what = format!("the server shm://{name} has as many clients as it takes");
                let advice = "end one of them, or start it with room for more peers";
                return Err(FabricError::new(Kind::Exhausted, what, advice));
            }
            Answer::Refused(_) => {
                let what = format!("the server shm://{name} has no memory for another client");
                let advice = "raise its limits of open files and of memory (ulimit -n, -v)";
                return Err(FabricError::new(Kind::Exhausted, what, advice));
            }
            Answer::Version(theirs) => {
                let ours = greeting::VERSION;
                let what = format!(
                    "the server shm://{name} speaks version {theirs} of shared memory, and this program {ours}"
                );
                let advice = "build both from the same source";
                return Err(FabricError::new(Kind::Unsupported, what, advice));
            }
            Answer::Gone => return Err(gone()),
            Answer::Strange => return Err(strange()),
        };
        let rings = segment::open(fd.as_fd(), ring_lines).map_err(|error| match error {
            NotASegment::Wrong => strange(),
            NotASegment::System(errno) => system(errno),
        })?;
        Self::over(socket, rings, ring_lines)
    }

    /// A client that has been welcomed.
    pub(super) fn over(
        socket: OwnedFd,
        rings: Rings,
        ring_lines: usize,
    ) -> Result<Self, FabricError> {
        Ok(Self {
            socket,
            waker: Waker::new()?,
            sender: Sender::new(rings.upward),
            receiver: Receiver::new(rings.downward),
            ring_lines,
            len: 0,
            sent: false,
            looks: POLLS,
            first_look: FirstLook::new(CLIENT_SHRINKS),
            polls: 0,
            closing: false,
            drained: false,
            told: false,
            dropped: 0,
        })
    }

    #[inline(always)]
    fn pushed(&mut self, pushed: Result<(), NoRoom>) {
        match pushed {
            Ok(()) => {
                self.sent = true;
                self.first_look.sent();
            }
            Err(NoRoom) => self.dropped += 1,
        }
    }

    #[cold]
    fn look(&mut self) {
        self.polls = 0;
        self.closing = self.closing || greeting::take_wakes(self.socket.as_fd());
    }
}

impl Fabric for ShmClient {
    fn datagram_len(&self) -> u16 {
        DATAGRAM_LEN as u16
    }

    fn receive_buffers(&self) -> u32 {
        self.ring_lines as u32
    }

    fn peer_buffers(&self, datagram_len: usize) -> u16 {
        ring_holds(self.ring_lines, datagram_len)
    }

    fn peers(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn receive(&mut self) -> Result<Option<Arrival<'_>>, FabricError> {
        let first = self.first_look.wait();
        if first {
            self.looks = POLLS;
        }
        for look in 0..self.looks {
            match self.receiver.pop() {
                Ok(Some(len)) => {
                    if first {
                        self.first_look.found(look == 0);
                    }
                    // A reply makes room for the next call.
                    self.sender.prepare();
                    // Where there is no more, the caller has something to do.
                    self.looks = 1;
                    self.len = len;
                    let (from, datagram) = (SERVER, self.received());
                    return Ok(Some(Arrival { from, datagram }));
                }
                Ok(None) => self.drained = self.closing,
                // It writes what it likes: that is no server.
                Err(_) => (self.closing, self.drained) = (true, true),
            }
            pause(look);
        }
        self.len = 0;
        self.looks = POLLS;
        self.polls += 1;
        if self.polls >= POLLS_A_LOOK {
            self.look();
        }
        Ok(None)
    }

    #[inline(always)]
    fn received(&self) -> &[u8] {
        let words = self.receiver.words();
        words.as_bytes().get(..self.len).unwrap_or_default()
    }

    #[inline(always)]
    fn may_wait(&mut self, most: u32) {
        self.sender.group(u64::from(most).min(MOST_IN_GROUP));
    }

    #[inline(always)]
    fn send(&mut self, to: PeerId, header: &[u8], payload: &[u8]) -> Result<(), FabricError> {
        if to == SERVER && !self.closing {
            let pushed = self.sender.push(header, payload);
            self.pushed(pushed);
        }
        Ok(())
    }

    #[inline(always)]
    fn send_words(&mut self, to: PeerId, header: Words, payload: &[u8]) -> Result<(), FabricError> {
        if to == SERVER && !self.closing {
            let pushed = self.sender.push_words(header, payload);
            self.pushed(pushed);
        }
        Ok(())
    }

    #[inline(always)]
    fn flush(&mut self) -> Result<(), FabricError> {
        if self.sent {
            self.sent = false;
            self.sender.show();
            if self.sender.must_wake() {
                greeting::wake(self.socket.as_fd());
            }
        }
        Ok(())
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), FabricError> {
        if self.closing || !self.receiver.fall_asleep() {
            return Ok(());
        }
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let mut fds = [
            PollFd::new(&self.socket, PollFlags::IN),
            PollFd::new(&self.waker, PollFlags::IN),
        ];
        let polled = poll(&mut fds, timeout.as_ref());
        let [heard, woken] = fds.map(|fd| !fd.revents().is_empty());
        self.receiver.wake_up();
        match polled {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => {
                let what = "cannot wait for the server";
                return Err(FabricError::new(Kind::System, what, "").because(errno));
            }
        }
        if woken {
            self.waker.clear();
        }
        if heard {
            self.look();
        }
        Ok(())
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn poll_gone(&mut self) -> Option<PeerId> {
        let gone = self.closing && self.drained && !self.told;
        self.told |= gone;
        gone.then_some(SERVER)
    }

    fn retain(&mut self, _peer: PeerId) {}

    fn release(&mut self, _peer: PeerId) {}

    fn dropped(&self) -> u64 {
        self.dropped
    }
}
