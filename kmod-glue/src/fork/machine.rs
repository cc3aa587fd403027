//! Other machines: a session with each for questions, and a connection for reading.

use mitosis_core::wire::fork::{rpc_id, Token, QUEUE_HINT};
use mitosis_core::wire::resolution::Ask;
use zerocopy::FromBytes;

use super::channel::{Channel, ChannelError, Into, Sink};
use super::link::Link;
use super::Fork;
use crate::cm::{self, Route, Unresolved};
use crate::devices::Gid;
use crate::errno::Errno;
use crate::lock::{Mutex, Shared};
use crate::memory::{Owned, Table};
use crate::thread::{now_ns, Event};
use crate::{info, warning};

/// Machines that are kept connected.
const MAX_MACHINES: usize = 64;
/// After a failure to connect, those who waited for it meanwhile share its outcome: one after another, each would look for
/// the machine as long again.
const SHARED_NS: u64 = 1_000_000_000;

/// Why a machine could not be used.
#[derive(Clone, Copy)]
pub enum MachineError {
    /// It was not found.
    Unresolved(Unresolved),
    /// The session failed.
    Channel(ChannelError),
    /// The connection for reading could not be made.
    Link(Errno),
    /// Its reply makes no sense.
    Damaged,
    /// The kernel refused something.
    Kernel(Errno),
}

impl MachineError {
    /// Whether it may be different in a moment.
    pub fn may_pass(&self) -> bool {
        match self {
            MachineError::Unresolved(Unresolved::Refused(_) | Unresolved::NoService) => false,
            MachineError::Unresolved(_) | MachineError::Link(_) => true,
            MachineError::Channel(error) => {
                matches!(error, ChannelError::Silent | ChannelError::Closed)
            }
            MachineError::Damaged | MachineError::Kernel(_) => false,
        }
    }

    /// What a system call returns for it.
    pub fn errno(&self) -> Errno {
        match self {
            MachineError::Unresolved(Unresolved::NoPort) => Errno::NO_DEVICE,
            MachineError::Unresolved(Unresolved::NoService | Unresolved::Refused(_)) => {
                Errno::CONNECTION_REFUSED
            }
            MachineError::Unresolved(_) => Errno::HOST_UNREACHABLE,
            MachineError::Channel(ChannelError::NotAuthorised) => Errno::KEY_REJECTED,
            MachineError::Channel(ChannelError::Silent) => Errno::TIMED_OUT,
            MachineError::Channel(ChannelError::Kernel(errno)) => *errno,
            MachineError::Channel(_) => Errno::CONNECTION_RESET,
            MachineError::Link(errno) | MachineError::Kernel(errno) => *errno,
            MachineError::Damaged => Errno::PROTOCOL,
        }
    }
}

impl crate::log::Part for MachineError {
    fn put(&self, line: &mut crate::log::Line) {
        match self {
            MachineError::Unresolved(why) => why.put(line),
            MachineError::Channel(ChannelError::NotAuthorised) => {
                "it has another cluster key, or none".put(line)
            }
            MachineError::Channel(ChannelError::Closed) => "it ended the session".put(line),
            MachineError::Channel(ChannelError::Refused(_)) => "it refused the call".put(line),
            MachineError::Damaged | MachineError::Channel(ChannelError::Damaged) => {
                "its reply makes no sense".put(line)
            }
            other => other.errno().put(line),
        }
    }
}

struct Session {
    channel: Channel,
    link: Shared<Link>,
}

/// Why there is no session, which whoever comes until then is told.
#[derive(Clone, Copy)]
struct Failed {
    error: MachineError,
    until_ns: u64,
}

struct State {
    /// In memory of its own: a page fault may have to connect, and stacks are small.
    session: Option<Owned<Session>>,
    failed: Option<Failed>,
}

/// Another machine, connected or to be connected when it is needed.
pub struct Machine {
    /// Where it is.
    pub gid: Gid,
    /// Where its module listens.
    pub service: u32,
    state: Mutex<State>,
}

impl Machine {
    /// Calls the machine; connects first if that has not been done, and once more where the session turns out to be over.
    pub fn call(
        &self,
        fork: &Fork,
        rpc_id: u32,
        request: &mut dyn FnMut(u64) -> Request,
        sink: &mut impl Sink,
    ) -> Result<(), MachineError> {
        let mut state = self.state.lock();
        let mut fresh = false;
        loop {
            fresh |= self.see_to(fork, &mut state)?;
            let Some(open) = state.session.as_mut() else {
                return Err(MachineError::Kernel(Errno::INVALID));
            };
            let request = request(open.link.token());
            let outcome = open.channel.call(rpc_id, request.bytes(), sink);
            match outcome {
                Ok(()) => return Ok(()),
                Err(ChannelError::Refused(code)) => {
                    return Err(MachineError::Channel(ChannelError::Refused(code)));
                }
                Err(error) => {
                    state.session = None;
                    if fresh || error != ChannelError::Closed {
                        return Err(MachineError::Channel(error));
                    }
                }
            }
        }
    }

    /// The connection for reading.
    pub fn link(&self, fork: &Fork) -> Result<Shared<Link>, MachineError> {
        let mut state = self.state.lock();
        self.see_to(fork, &mut state)?;
        let open = state.session.as_ref();
        open.map(|open| open.link.clone())
            .ok_or(MachineError::Kernel(Errno::INVALID))
    }

    /// Sees to it that there is a session; whether it is a new one.
    fn see_to(&self, fork: &Fork, state: &mut State) -> Result<bool, MachineError> {
        let session = state.session.as_ref();
        if session.is_some_and(|open| open.link.is_alive()) {
            return Ok(false);
        }
        state.session = None;
        if let Some(failed) = state.failed.filter(|failed| now_ns() < failed.until_ns) {
            return Err(failed.error);
        }
        let connected = self.connect(fork);
        state.failed = connected.as_ref().err().map(|&error| Failed {
            error,
            until_ns: now_ns() + SHARED_NS,
        });
        state.session = Some(connected?);
        Ok(true)
    }

    /// Looks for the machine at the next call, whatever the outcome was just now: somebody asks for it by name.
    pub fn look_again(&self) {
        self.state.lock().failed = None;
    }

    /// Keeps the session alive, unless somebody is using it, or finds that it is over.
    fn keep(&self) {
        let Some(mut state) = self.state.try_lock() else {
            return;
        };
        let over = state
            .session
            .as_mut()
            .is_some_and(|open| !open.link.is_alive() || open.channel.keep().is_err());
        if over {
            state.session = None;
        }
    }

    /// Ends the session and the connection.
    pub fn disconnect(&self) {
        let open = self.state.lock().session.take();
        if let Some(open) = &open {
            open.link.sever();
        }
    }

    /// Whether there is a connection now, or is being made or used.
    pub fn is_connected(&self) -> bool {
        match self.state.try_lock() {
            Some(state) => {
                let session = state.session.as_ref();
                session.is_some_and(|open| open.link.is_alive())
            }
            None => true,
        }
    }

    /// What it takes is spread over several frames, of which one is on the stack at a time.
    #[inline(never)]
    fn connect(&self, fork: &Fork) -> Result<Owned<Session>, MachineError> {
        let route = self.find(fork)?;
        let session = self.open(fork, route)?;
        info!("connected to ", self.gid, ", service ", self.service);
        Ok(session)
    }

    #[inline(never)]
    fn find(&self, fork: &Fork) -> Result<Shared<Route>, MachineError> {
        let event = Event::new().map_err(MachineError::Kernel)?;
        let ask = Ask {
            server_qd_hint: QUEUE_HINT,
            client_qd_hint: QUEUE_HINT,
            client_service_id: fork.service,
        };
        let devices = fork.devices().map_err(MachineError::Kernel)?;
        let route = cm::resolve(
            &devices,
            &event,
            &fork.resolving,
            self.gid,
            self.service,
            &ask,
        )
        .map_err(MachineError::Unresolved)?;
        Shared::new(route).map_err(MachineError::Kernel)
    }

    #[inline(never)]
    fn open(&self, fork: &Fork, route: Shared<Route>) -> Result<Owned<Session>, MachineError> {
        let devices = fork.devices().map_err(MachineError::Kernel)?;
        let mut channel = Channel::open(devices.clone(), route.clone(), fork.cluster_key)
            .map_err(MachineError::Channel)?;
        let mut bytes = [0; size_of::<Token>()];
        let mut sink = Into::new(&mut bytes);
        channel
            .call(rpc_id::ATTACH, &[], &mut sink)
            .map_err(MachineError::Channel)?;
        let token = Token::read_from_bytes(&bytes).map_err(|_| MachineError::Damaged)?;
        let link = Link::connect(devices, route, self.gid, self.service, token.token.get())
            .map_err(MachineError::Link)?;
        let link = Shared::new(link).map_err(MachineError::Kernel)?;
        Owned::new(Session { channel, link }).map_err(MachineError::Kernel)
    }
}

/// A request's bytes.
pub struct Request {
    bytes: [u8; 48],
    len: usize,
}

impl Request {
    /// A request of these bytes, at most 48.
    pub fn of(from: &[u8]) -> Request {
        let mut request = Request {
            bytes: [0; 48],
            len: from.len().min(48),
        };
        for (place, byte) in request.bytes.iter_mut().zip(from) {
            *place = *byte;
        }
        request
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// The machines that this one knows.
pub struct Machines {
    list: Mutex<Table<Option<Shared<Machine>>>>,
}

impl Machines {
    /// None.
    pub fn new() -> Result<Machines, Errno> {
        Ok(Machines {
            list: Mutex::new(Table::try_new(MAX_MACHINES, |_| Ok(None))?)?,
        })
    }

    /// The machine at this place, which need not be connected.
    pub fn at(&self, gid: Gid, service: u32) -> Result<Shared<Machine>, Errno> {
        let mut list = self.list.lock();
        let known = list
            .iter()
            .flatten()
            .find(|machine| machine.gid == gid && machine.service == service);
        if let Some(machine) = known {
            return Ok(machine.clone());
        }
        let machine = Shared::new(Machine {
            gid,
            service,
            state: Mutex::new(State {
                session: None,
                failed: None,
            })?,
        })?;
        // Anybody may name any machine: one that was tried in vain, and that nobody waits for, gives its place up.
        let free = list.iter().position(Option::is_none);
        let free = free.or_else(|| {
            let idle = |place: &Option<Shared<Machine>>| {
                place
                    .as_ref()
                    .is_some_and(|machine| machine.is_only() && !machine.is_connected())
            };
            list.iter().position(idle)
        });
        let place = free.and_then(|index| list.get_mut(index));
        let earlier = place.ok_or(Errno::NO_ROOM)?.replace(machine.clone());
        drop(list);
        drop(earlier);
        Ok(machine)
    }

    /// Ends what there is with a machine, and forgets it.
    pub fn forget(&self, gid: Gid, service: u32) -> Result<(), Errno> {
        let mut list = self.list.lock();
        let place = list.iter_mut().find(|place| {
            place
                .as_ref()
                .is_some_and(|machine| machine.gid == gid && machine.service == service)
        });
        let machine = place.ok_or(Errno::NOT_CONNECTED)?.take();
        drop(list);
        if let Some(machine) = machine {
            machine.disconnect();
        }
        Ok(())
    }

    /// Ends everything.
    pub fn forget_all(&self) {
        for index in 0..MAX_MACHINES {
            let machine = self.list.lock().get_mut(index).and_then(Option::take);
            if let Some(machine) = machine {
                machine.disconnect();
            }
        }
    }

    /// Keeps all sessions alive.
    pub fn keep(&self) {
        for index in 0..MAX_MACHINES {
            let machine = self.list.lock().get(index).and_then(Clone::clone);
            if let Some(machine) = machine {
                machine.keep();
            }
        }
    }

    /// How many are connected.
    pub fn connected(&self) -> usize {
        let list = self.list.lock();
        list.iter()
            .flatten()
            .filter(|machine| machine.is_connected())
            .count()
    }

    /// Time of a call that does nothing.
    pub fn ping(&self, fork: &Fork, gid: Gid, service: u32) -> Result<u64, Errno> {
        let machine = self.at(gid, service)?;
        machine.look_again();
        let mut request = |_| Request::of(&[]);
        let mut none = [];
        // The first call may have to connect.
        let outcome = machine.call(fork, rpc_id::PING, &mut request, &mut Into::new(&mut none));
        let begun_ns = now_ns();
        outcome
            .and_then(|()| {
                machine.call(fork, rpc_id::PING, &mut request, &mut Into::new(&mut none))
            })
            .map(|()| now_ns().saturating_sub(begun_ns))
            .map_err(|error| {
                if let Some(untold) = fork.complaints.turn() {
                    warning!(
                        "no answer from ",
                        gid,
                        ", service ",
                        service,
                        ": ",
                        error,
                        untold
                    );
                }
                error.errno()
            })
    }
}
