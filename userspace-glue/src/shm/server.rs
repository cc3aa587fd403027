//! The serving end: one socket to come to, and two rings for each client.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mitosis_core::sync::line_ring::{NoRoom, Receiver, Sender};
use mitosis_core::wire::Words;
use rustix::event::epoll;
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::net::{accept_with, SocketFlags};
use zerocopy::IntoBytes;

use super::first_look::{pause, FirstLook, NextLook, SERVER_SHRINKS};
use super::greeting::{self, Status};
use super::name::{self, Held};
use super::segment::{self, Ring};
use super::strangers::{Strangers, HELLO_PATIENCE, MAX_STRANGERS};
use super::{ring_holds, DATAGRAM_LEN, DATAGRAM_WORDS, MOST_IN_GROUP};
use crate::address::ShmName;
use crate::fabric::{Arrival, Fabric, FabricError, FabricErrorKind as Kind, PeerId, Waker};

/// How many datagrams of one client are received before the next client's turn.
const TURN: u32 = 16;

/// How often idle rings are looked at, at least, before the caller has something else to look at.
const POLLS: usize = 32;

/// After how many turns that found nothing, or batches, the sockets are looked at: a system call among many polls.
const POLLS_A_LOOK: u32 = 1024;

/// Events taken from the kernel at once.
const EVENTS: usize = 64;

/// What an epoll event is about; peers and strangers follow with their indices.
const LISTENER: u64 = 0;
const WAKER: u64 = 1;
const PEERS: u64 = 1 << 32;
const STRANGERS: u64 = 2 << 32;

/// What a server in shared memory is told at its start.
#[derive(Clone, Debug)]
pub struct ShmServerConfig {
    /// How many clients there can be at once.
    pub peers: u32,
    /// How many cache lines a ring has, of which an empty call takes one; brought to a power of two from 256 to 65536.
    pub ring_lines: usize,
    /// The directory of names; by default `$MITOSIS_RUNTIME_DIR`, or else a directory of the user's own.
    pub dir: PathBuf,
}

impl Default for ShmServerConfig {
    fn default() -> Self {
        Self {
            peers: 256,
            ring_lines: 2048,
            dir: name::runtime_dir(),
        }
    }
}

/// Where a peer's number stands.
enum Place {
    /// It names nobody.
    Free,
    /// It names somebody who is gone, because it is still retained.
    Gone,
    /// It names a client.
    Taken(Box<Peer>),
}

struct Peer {
    socket: OwnedFd,
    sender: Sender<Ring>,
    receiver: Receiver<Ring, DATAGRAM_WORDS>,
    /// It has closed its end; what it had sent is still received.
    closing: bool,
    /// How many datagrams were sent to it since the last flush.
    sent: u64,
}

/// The serving end of shared memory.
pub struct ShmServer {
    held: Held,
    epoll: OwnedFd,
    waker: Waker,
    ring_lines: usize,
    places: Vec<Place>,
    retained: Vec<u32>,
    /// The clients that there are, in the order of their turns.
    live: Vec<PeerId>,
    /// Whose turn it is, and how much of it is left.
    turn: usize,
    left: u32,
    /// How many rings are to be looked at, at least.
    looks: usize,
    first_look: FirstLook,
    next_look: NextLook,
    strangers: Strangers,
    gone: VecDeque<PeerId>,
    sent: Vec<PeerId>,
    /// How many datagrams may leave together.
    group: u64,
    /// Who sent the last datagram, and how many bytes it has.
    from: PeerId,
    len: usize,
    polls: u32,
    dropped: u64,
}

impl ShmServer {
    /// Takes the name and listens.
    pub fn bind(name: &ShmName, config: &ShmServerConfig) -> Result<Self, FabricError> {
        let peers = config.peers.clamp(1, 1 << 16) as usize;
        let held = Held::take(&config.dir, name)?;
        let waker = Waker::new()?;
        let epoll = watch(&held, &waker).map_err(|errno| {
            let what = "cannot watch the server's sockets";
            let advice = "raise the limit of open files (ulimit -n)";
            FabricError::new(Kind::Exhausted, what, advice).because(errno)
        })?;
        Ok(Self {
            held,
            epoll,
            waker,
            ring_lines: segment::ring_lines(config.ring_lines),
            places: (0..peers).map(|_| Place::Free).collect(),
            retained: vec![0; peers],
            live: Vec::with_capacity(peers),
            turn: 0,
            left: TURN,
            looks: POLLS,
            first_look: FirstLook::new(SERVER_SHRINKS),
            next_look: NextLook::default(),
            strangers: Strangers::default(),
            gone: VecDeque::new(),
            sent: Vec::with_capacity(peers),
            group: 1,
            from: 0,
            len: 0,
            polls: 0,
            dropped: 0,
        })
    }

    #[inline(always)]
    fn peer(&mut self, id: PeerId) -> Option<&mut Peer> {
        match self.places.get_mut(id as usize) {
            Some(Place::Taken(peer)) => Some(peer),
            _ => None,
        }
    }

    /// Takes the next datagram of whoever's turn it is; whether there is one.
    #[inline(always)]
    fn next(&mut self) -> bool {
        let first = self.first_look.wait();
        let Some(&id) = self.live.get(self.turn) else {
            return false;
        };
        let Some(Place::Taken(peer)) = self.places.get_mut(id as usize) else {
            return false;
        };
        if self.left != 0 {
            if let Ok(Some(len)) = peer.receiver.pop() {
                if first {
                    self.first_look.found(true);
                }
                // It will most likely be answered at once.
                peer.sender.prepare();
                self.took(id, len);
                return true;
            }
        }
        self.next_of_all(first)
    }

    /// A datagram of this client's was taken.
    #[inline(always)]
    fn took(&mut self, id: PeerId, len: usize) {
        (self.from, self.len) = (id, len);
        self.left -= 1;
        // Where there is no more, the caller has something to do.
        self.looks = 1;
    }

    /// The same after a look that found nothing.
    #[inline(never)]
    fn next_of_all(&mut self, first: bool) -> bool {
        let mut looked_at = 0;
        if first {
            self.looks = POLLS;
        }
        loop {
            let Some(&id) = self.live.get(self.turn) else {
                return false;
            };
            let Some(Place::Taken(peer)) = self.places.get_mut(id as usize) else {
                return false;
            };
            let popped = match self.left {
                0 => Ok(None),
                _ => peer.receiver.pop(),
            };
            match popped {
                Ok(Some(len)) => {
                    if first {
                        self.first_look.found(looked_at == 0);
                    }
                    peer.sender.prepare();
                    self.took(id, len);
                    return true;
                }
                Ok(None) if !peer.closing || self.left == 0 => {
                    looked_at += usize::from(self.left != 0);
                    self.turn = if self.turn + 1 < self.live.len() {
                        self.turn + 1
                    } else {
                        // To ask again at once would fetch a line while its writer is about to write it.
                        pause(looked_at as u32);
                        0
                    };
                    self.left = TURN;
                }
                // It is gone, and this was all; or it writes what it likes, and is not listened to any longer.
                Ok(None) | Err(_) => self.lose(id),
            }
            if looked_at >= self.live.len().max(self.looks) {
                self.looks = POLLS;
                return false;
            }
        }
    }

    /// A client is gone for good. Its rings go with it.
    #[cold]
    fn lose(&mut self, id: PeerId) {
        let Some(place) = self.places.get_mut(id as usize) else {
            return;
        };
        let retained = self
            .retained
            .get(id as usize)
            .is_some_and(|&count| count > 0);
        *place = match retained {
            true => Place::Gone,
            false => Place::Free,
        };
        self.live.retain(|&live| live != id);
        self.sent.retain(|&sent| sent != id);
        self.turn = 0;
        self.left = TURN;
        self.gone.push_back(id);
    }

    #[inline(always)]
    fn pushed(&mut self, to: PeerId, pushed: Result<(), NoRoom>) {
        let Some(peer) = self.peer(to) else {
            return;
        };
        if pushed.is_err() {
            self.dropped += 1;
            return;
        }
        peer.sent += 1;
        if peer.sent == 1 {
            self.sent.push(to);
        }
    }

    #[inline(always)]
    fn look_now_and_then(&mut self) -> Result<(), FabricError> {
        self.polls += 1;
        if self.polls < POLLS_A_LOOK {
            return Ok(());
        }
        self.polls = 0;
        self.look(Some(Duration::ZERO))
    }

    /// Looks at the sockets, for `timeout` at most.
    #[cold]
    fn look(&mut self, timeout: Option<Duration>) -> Result<(), FabricError> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; EVENTS];
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let count = match epoll::wait(&self.epoll, &mut events, timeout.as_ref()) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(errno) => {
                let what = "cannot wait for the server's sockets";
                return Err(FabricError::new(Kind::System, what, "").because(errno));
            }
        };
        for event in events.iter().take(count) {
            let data = event.data.u64();
            let index = data as u32 as usize;
            match data {
                LISTENER => self.accept(),
                WAKER => self.waker.clear(),
                PEERS..STRANGERS => self.heard(index),
                _ => {
                    if let Some(socket) = self.strangers.take(index) {
                        self.greet(socket);
                    }
                }
            }
        }
        self.part_with_strangers(Instant::now());
        Ok(())
    }

    /// Something has come through a client's socket.
    fn heard(&mut self, index: usize) {
        if let Some(Place::Taken(peer)) = self.places.get_mut(index) {
            if greeting::take_wakes(peer.socket.as_fd()) {
                peer.closing = true;
                let _ = epoll::delete(&self.epoll, &peer.socket);
            }
        }
    }

    fn accept(&mut self) {
        // The rest of a crowd has its turn at the next look.
        for _ in 0..MAX_STRANGERS {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(self.held.listener(), flags) {
                Ok(socket) => socket,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                // None is left; or there are no more descriptors, and it waits until there are.
                Err(_) => return,
            };
            let Some(index) = self.strangers.room() else {
                continue;
            };
            let data = epoll::EventData::new_u64(STRANGERS | index as u64);
            if epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN).is_ok() {
                self.strangers.admit(index, socket, Instant::now());
            }
        }
    }

    /// A stranger has said something, or its time is over.
    fn greet(&mut self, socket: OwnedFd) {
        match greeting::receive_hello(socket.as_fd()) {
            Ok(Some(greeting::VERSION)) => {}
            Ok(Some(_)) => {
                let _ = greeting::send_welcome(socket.as_fd(), Status::Version, None);
                return;
            }
            Ok(None) | Err(_) => return,
        }
        if let Err((status, socket)) = self.welcome(socket) {
            let _ = greeting::send_welcome(socket.as_fd(), status, None);
        }
    }

    /// Those of whom this server has heard nothing until `now` are given up, after a last look: it may be the server that
    /// is late.
    fn part_with_strangers(&mut self, now: Instant) {
        while let Some(socket) = self.strangers.take_overdue(now) {
            self.greet(socket);
        }
    }

    /// Gives a client its number and its segment.
    fn welcome(&mut self, socket: OwnedFd) -> Result<(), (Status, OwnedFd)> {
        let mut places = self.places.iter();
        let Some(index) = places.position(|place| matches!(place, Place::Free)) else {
            return Err((Status::Full, socket));
        };
        let Ok((fd, rings)) = segment::create(self.ring_lines) else {
            return Err((Status::Exhausted, socket));
        };
        let data = epoll::EventData::new_u64(PEERS | index as u64);
        if epoll::modify(&self.epoll, &socket, data, epoll::EventFlags::IN).is_err() {
            return Err((Status::Exhausted, socket));
        }
        let segment = Some((&fd, self.ring_lines));
        if greeting::send_welcome(socket.as_fd(), Status::Welcome, segment).is_err() {
            // It is gone already.
            return Ok(());
        }
        if let Some(place) = self.places.get_mut(index) {
            *place = Place::Taken(Box::new(Peer {
                socket,
                sender: Sender::new(rings.downward),
                receiver: Receiver::new(rings.upward),
                closing: false,
                sent: 0,
            }));
            self.live.push(index as PeerId);
        }
        Ok(())
    }

    fn wake_up(&self) {
        for &id in &self.live {
            if let Some(Place::Taken(peer)) = self.places.get(id as usize) {
                peer.receiver.wake_up();
            }
        }
    }

    /// Whether nothing has happened that the caller does not know.
    fn fall_asleep(&self) -> bool {
        self.gone.is_empty()
            && self
                .live
                .iter()
                .all(|&id| match self.places.get(id as usize) {
                    Some(Place::Taken(peer)) => !peer.closing && peer.receiver.fall_asleep(),
                    _ => true,
                })
    }
}

fn watch(held: &Held, waker: &Waker) -> Result<OwnedFd, Errno> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let (readable, data) = (epoll::EventFlags::IN, epoll::EventData::new_u64);
    epoll::add(&epoll, held, data(LISTENER), readable)?;
    epoll::add(&epoll, waker, data(WAKER), readable)?;
    Ok(epoll)
}

impl Fabric for ShmServer {
    fn datagram_len(&self) -> u16 {
        DATAGRAM_LEN as u16
    }

    fn receive_buffers(&self) -> u32 {
        u32::try_from(self.places.len().saturating_mul(self.ring_lines)).unwrap_or(u32::MAX)
    }

    fn peer_buffers(&self, datagram_len: usize) -> u16 {
        ring_holds(self.ring_lines, datagram_len)
    }

    fn peers(&self) -> u32 {
        self.places.len() as u32
    }

    #[inline(always)]
    fn receive(&mut self) -> Result<Option<Arrival<'_>>, FabricError> {
        let answered = !self.sent.is_empty();
        if answered && self.next_look.is_in_vain() {
            self.len = 0;
            return Ok(None);
        }
        let found = self.next();
        if answered {
            self.next_look.found(found);
        }
        if !found {
            self.len = 0;
            self.look_now_and_then()?;
            return Ok(None);
        }
        let (from, datagram) = (self.from, self.received());
        Ok(Some(Arrival { from, datagram }))
    }

    #[inline(always)]
    fn received(&self) -> &[u8] {
        let Some(Place::Taken(peer)) = self.places.get(self.from as usize) else {
            return &[];
        };
        let words = peer.receiver.words();
        words.as_bytes().get(..self.len).unwrap_or_default()
    }

    #[inline(always)]
    fn send(&mut self, to: PeerId, header: &[u8], payload: &[u8]) -> Result<(), FabricError> {
        if let Some(peer) = self.peer(to) {
            let pushed = peer.sender.push(header, payload);
            self.pushed(to, pushed);
        }
        Ok(())
    }

    #[inline(always)]
    fn send_words(&mut self, to: PeerId, header: Words, payload: &[u8]) -> Result<(), FabricError> {
        if let Some(peer) = self.peer(to) {
            let pushed = peer.sender.push_words(header, payload);
            self.pushed(to, pushed);
        }
        Ok(())
    }

    #[inline(always)]
    fn may_wait(&mut self, most: u32) {
        self.group = u64::from(most).min(MOST_IN_GROUP);
    }

    #[inline(always)]
    fn flush(&mut self) -> Result<(), FabricError> {
        let most = self.group;
        let mut answers = 0;
        while let Some(id) = self.sent.pop() {
            if let Some(peer) = self.peer(id) {
                answers += peer.sent;
                peer.sender.show();
                // The client has the others to look at meanwhile.
                peer.sender.group(most.min(peer.sent / 4));
                peer.sent = 0;
                if peer.sender.must_wake() {
                    greeting::wake(peer.socket.as_fd());
                }
            }
        }
        if answers == 1 {
            self.first_look.sent();
        }
        // A server that is never idle looks at its sockets as well.
        self.look_now_and_then()
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), FabricError> {
        let awaits_hello = self.strangers.any();
        let timeout = match timeout {
            _ if !self.fall_asleep() => Some(Duration::ZERO),
            Some(timeout) if awaits_hello => Some(timeout.min(HELLO_PATIENCE)),
            None if awaits_hello => Some(HELLO_PATIENCE),
            asked => asked,
        };
        let looked = self.look(timeout);
        self.wake_up();
        looked
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn poll_gone(&mut self) -> Option<PeerId> {
        self.gone.pop_front()
    }

    fn retain(&mut self, peer: PeerId) {
        if let Some(count) = self.retained.get_mut(peer as usize) {
            *count = count.saturating_add(1);
        }
    }

    fn release(&mut self, peer: PeerId) {
        let Some(count) = self.retained.get_mut(peer as usize) else {
            return;
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            if let Some(place @ Place::Gone) = self.places.get_mut(peer as usize) {
                *place = Place::Free;
            }
        }
    }

    fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use super::super::greeting::Answer;

    #[test]
    fn a_hello_that_came_in_time_counts_however_late_the_server_looks() {
        let dir = tempfile::tempdir().unwrap();
        let config = ShmServerConfig {
            dir: dir.path().to_owned(),
            ..ShmServerConfig::default()
        };
        let name = ShmName::new("late").unwrap();
        let mut server = ShmServer::bind(&name, &config).unwrap();
        let reach = || name::reach(dir.path(), &name, Duration::from_secs(5)).unwrap();
        let (speaks, is_silent) = (reach(), reach());
        server.look(Some(Duration::ZERO)).unwrap();
        greeting::send_hello(speaks.as_fd()).unwrap();
        server.part_with_strangers(Instant::now() + 2 * HELLO_PATIENCE);
        let answer = |socket: &OwnedFd| greeting::receive_welcome(socket.as_fd());
        assert!(matches!(answer(&speaks), Ok(Answer::Welcome(..))));
        assert!(matches!(
            answer(&is_silent),
            Ok(Answer::Gone) | Err(Errno::CONNRESET)
        ));
        assert!(!server.strangers.any() && server.live == [0]);
    }
}
