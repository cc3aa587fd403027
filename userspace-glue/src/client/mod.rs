//! The calling side.

mod calling;
mod shared;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mitosis_core::session::ClusterKey;

use self::calling::{Calling, Failure, Link, NotBegun, BATCH};
use crate::address::Address;
use crate::error::Error;
#[cfg(not(feature = "verbs"))]
use crate::server::no_verbs;
use crate::shm::{self, ShmClient};
#[cfg(feature = "verbs")]
use crate::verbs::{self, Verbs};

pub use self::calling::CallId;
pub use self::shared::{Pending, SharedClient};

/// What a client is told at its start.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// How many calls may be outstanding at once: 1 to 64, and no more than the server grants.
    pub window: u16,
    /// The longest request and reply, in bytes; 8 MiB at most. The shorter, the more calls a ring has room for at once.
    pub max_message_len: u32,
    /// Proves membership, where the server asks for it.
    pub cluster_key: Option<ClusterKey>,
    /// After how long [`Client::connect`] fails.
    pub connect_timeout: Duration,
    /// After how long a call fails.
    pub call_timeout: Duration,
    /// Before the first retransmission, until a round trip has been measured.
    pub rto_initial: Duration,
    /// The shortest and the longest time before a retransmission.
    pub rto_min: Duration,
    /// See `rto_min`.
    pub rto_max: Duration,
    /// For how long a wait spins at most before it sleeps.
    pub spin: Duration,
    /// In which directory servers in shared memory are looked for.
    pub shm_dir: std::path::PathBuf,
    /// Over RDMA.
    #[cfg(feature = "verbs")]
    pub verbs: verbs::Options,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            window: 64,
            max_message_len: 64 << 10,
            cluster_key: None,
            connect_timeout: Duration::from_secs(8),
            call_timeout: Duration::from_secs(60),
            rto_initial: Duration::from_millis(100),
            rto_min: Duration::from_millis(20),
            rto_max: Duration::from_secs(1),
            spin: Duration::from_micros(50),
            shm_dir: shm::runtime_dir(),
            #[cfg(feature = "verbs")]
            verbs: verbs::Options::default(),
        }
    }
}

/// A client with one session, polled by its caller.
///
/// A call at a time, or as many as the window has room for:
///
/// ```
/// # use mitosis::{Client, Error, Server};
/// # let name = format!("shm://doc-client-{}", std::process::id());
/// # let address = name.as_str();
/// # let mut server = Server::bind(address)?;
/// # server.register(7, |request, reply| {
/// #     reply.extend_from_slice(request);
/// #     Ok(())
/// # });
/// # let server = server.spawn();
/// let mut client = Client::connect(address)?;
/// assert_eq!(client.call(7, b"one")?, b"one");
///
/// let mut sum = 0;
/// for number in 0..10_u8 {
///     client.start(7, &[number])?;
/// }
/// while client.outstanding() > 0 {
///     client.wait(None, |_call, reply| sum += u32::from(reply.unwrap()[0]))?;
/// }
/// assert_eq!(sum, 45);
/// client.close();
/// # Ok::<(), Error>(())
/// ```
pub struct Client {
    inner: Inner,
    address: Address,
    options: ClientOptions,
    /// Calls that ended while [`Client::call`] waited for another one.
    ended: VecDeque<(CallId, Result<Vec<u8>, Failure>)>,
}

enum Inner {
    Shm(Box<Calling<ShmClient>>),
    #[cfg(feature = "verbs")]
    Rdma(Box<Calling<Verbs>>),
}

/// Runs the same on whichever fabric it is: each has its own code, compiled as a whole.
macro_rules! on {
    ($inner:expr, $calling:ident => $body:expr) => {
        match $inner {
            Inner::Shm($calling) => $body,
            #[cfg(feature = "verbs")]
            Inner::Rdma($calling) => $body,
        }
    };
}

impl Inner {
    fn open(address: &Address, options: &ClientOptions) -> Result<Self, Error> {
        match address {
            Address::Shm(name) => {
                let timeout = options.connect_timeout;
                let fabric = ShmClient::connect(&options.shm_dir, name, timeout)?;
                let mut calling = Calling::new(fabric, options)?;
                open(&mut calling, address, options)?;
                Ok(Self::Shm(Box::new(calling)))
            }
            #[cfg(feature = "verbs")]
            Address::Rdma(server) => {
                let fabric = Verbs::connect(server, &options.verbs)?;
                let options = &ClientOptions {
                    spin: fabric.spin(options.spin),
                    ..options.clone()
                };
                let mut calling = Calling::new(fabric, options)?;
                open(&mut calling, address, options)?;
                Ok(Self::Rdma(Box::new(calling)))
            }
            #[cfg(not(feature = "verbs"))]
            Address::Rdma(_) => Err(no_verbs(address).into()),
        }
    }
}

/// Waits for the session.
fn open<F: crate::fabric::Fabric>(
    calling: &mut Calling<F>,
    address: &Address,
    options: &ClientOptions,
) -> Result<(), Error> {
    loop {
        let busy = calling.work(BATCH, |_, _| {})?;
        let address = address.clone();
        match calling.link() {
            Link::Open => return Ok(()),
            Link::Refused(refusal) => return Err(Error::Refused { address, refusal }),
            Link::Gone => return Err(Error::ServerGone { address }),
            Link::Unanswered => {
                let after = options.connect_timeout;
                return Err(Error::NoAnswer { address, after });
            }
            Link::Opening if !busy => calling.wait(None)?,
            Link::Opening => {}
        }
    }
}

impl Client {
    /// Opens a session with the server at this address.
    ///
    /// # Errors
    ///
    /// If the text is no address; if there is no server, or it refuses; if a right, a device or memory is missing.
    pub fn connect(address: &str) -> Result<Self, Error> {
        Self::connect_with(&address.parse()?, &ClientOptions::default())
    }

    /// [`Client::connect`] with options.
    pub fn connect_with(address: &Address, options: &ClientOptions) -> Result<Self, Error> {
        Ok(Self {
            inner: Inner::open(address, options)?,
            address: address.clone(),
            options: options.clone(),
            ended: VecDeque::new(),
        })
    }

    /// Opens another session with the same server, or with the one that has taken its place. Calls that are outstanding end
    /// unheard: poll them away first.
    pub fn reconnect(&mut self) -> Result<(), Error> {
        self.ended.clear();
        self.inner = Inner::open(&self.address, &self.options)?;
        Ok(())
    }

    /// Where the server is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// How many calls may be outstanding at once: what the server granted.
    pub fn window(&self) -> usize {
        on!(&self.inner, calling => calling.granted().slots.into())
    }

    /// How many calls are outstanding.
    pub fn outstanding(&self) -> usize {
        on!(&self.inner, calling => calling.outstanding())
    }

    /// Calls, and waits for the reply.
    #[inline]
    pub fn call(&mut self, rpc_id: u32, request: &[u8]) -> Result<&[u8], Error> {
        let Self {
            inner,
            address,
            ended,
            ..
        } = self;
        let reply = on!(inner, calling => {
            let call = calling.start(rpc_id, request).map_err(|why| not_begun(address, why))?;
            let mut over = None;
            loop {
                let busy = calling.work(1, |id, result| {
                    if id == call {
                        over = Some(result.map(|_| ()));
                    } else {
                        ended.push_back((id, result.map(<[u8]>::to_vec)));
                    }
                })?;
                if let Some(result) = over {
                    break result.map(|()| calling.reply(call));
                }
                if !busy {
                    calling.wait(None)?;
                }
            }
        });
        reply.map_err(|failure| failed(address, failure))
    }

    /// Begins a call, which leaves with the next [`Client::poll`], [`Client::wait`] or [`Client::flush`]. How it ends, those
    /// two tell.
    #[inline]
    pub fn start(&mut self, rpc_id: u32, request: &[u8]) -> Result<CallId, Error> {
        on!(&mut self.inner, calling => calling.start(rpc_id, request))
            .map_err(|why| not_begun(&self.address, why))
    }

    /// Lets the calls leave that were begun.
    pub fn flush(&mut self) -> Result<(), Error> {
        on!(&mut self.inner, calling => Ok(calling.flush()?))
    }

    /// Takes in what has come, and tells `ended` how each call ended that is over; whether there was anything. Never sleeps.
    ///
    /// # Errors
    ///
    /// What ends the fabric.
    #[inline]
    pub fn poll(
        &mut self,
        mut ended: impl FnMut(CallId, Result<&[u8], Error>),
    ) -> Result<bool, Error> {
        let before = !self.ended.is_empty();
        while let Some((call, result)) = self.ended.pop_front() {
            let result = result.as_deref();
            ended(
                call,
                result.map_err(|&failure| failed(&self.address, failure)),
            );
        }
        let address = &self.address;
        let busy = on!(&mut self.inner, calling => {
            calling.work(BATCH, |call, result| {
                ended(call, result.map_err(|failure| failed(address, failure)));
            })?
        });
        Ok(busy || before)
    }

    /// [`Client::poll`] until something comes, or `timeout` is over: spins at first, then sleeps.
    pub fn wait(
        &mut self,
        timeout: Option<Duration>,
        mut ended: impl FnMut(CallId, Result<&[u8], Error>),
    ) -> Result<bool, Error> {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            if self.poll(&mut ended)? {
                return Ok(true);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            on!(&mut self.inner, calling => calling.wait(left)?);
        }
    }

    /// Whether the session is over: what is called then fails until [`Client::reconnect`].
    pub fn is_gone(&self) -> bool {
        on!(&self.inner, calling => calling.link() == Link::Gone)
    }

    /// Ends the session. Calls that are outstanding may still be executed.
    pub fn close(mut self) {
        // The server finds out anyway.
        let _ = on!(&mut self.inner, calling => calling.close());
    }

    /// Gives the client a thread of its own, by which any number of threads can call.
    pub fn into_shared(self) -> SharedClient {
        SharedClient::new(self)
    }

    fn waker(&self) -> crate::fabric::Waker {
        on!(&self.inner, calling => calling.waker())
    }
}

#[cold]
fn not_begun(address: &Address, why: NotBegun) -> Error {
    match why {
        NotBegun::Gone => Error::ServerGone {
            address: address.clone(),
        },
        NotBegun::WindowFull(window) => Error::WindowFull { window },
        NotBegun::TooLong { len, limit } => Error::TooLong { len, limit },
        NotBegun::Fabric(error) => Error::Fabric(error),
    }
}

#[cold]
fn failed(address: &Address, failure: Failure) -> Error {
    match failure {
        Failure::Failed(code) => Error::Failed(code),
        Failure::TimedOut => Error::TimedOut,
        Failure::Lost => Error::ServerGone {
            address: address.clone(),
        },
    }
}
