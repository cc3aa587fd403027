//! The serving side.

mod handlers;
mod pace;
mod serving;
mod slots;

use std::sync::mpsc::{sync_channel, Receiver as ChannelReceiver};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mitosis_core::session::ClusterKey;
use mitosis_core::sync::stop::Stop;
use mitosis_core::wire::MAX_MESSAGE;

use self::handlers::Handlers;
use self::serving::Serving;
use crate::address::Address;
use crate::error::Error;
use crate::fabric::Waker;
#[cfg(not(feature = "verbs"))]
use crate::fabric::{FabricError, FabricErrorKind};
use crate::shm::{ShmServer, ShmServerConfig};
#[cfg(feature = "verbs")]
use crate::verbs::{self, Verbs};

pub use self::handlers::HandlerFailed;
pub use mitosis_core::rpc::server::Counters;

/// How long a server that is to shut down still answers what is under way.
const GRACE: Duration = Duration::from_millis(20);

/// What a server is told at its start.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// How many sessions there can be at once.
    pub sessions: u32,
    /// The most calls that one session may have outstanding: 1 to 64.
    pub window: u16,
    /// The longest request and reply, in bytes; 8 MiB at most.
    pub max_message_len: u32,
    /// How many bytes of memory long messages may take, over all sessions.
    pub memory_budget: usize,
    /// What clients must prove to know; `None` if every peer is served.
    pub cluster_key: Option<ClusterKey>,
    /// How long a session is kept of which nothing is heard.
    pub idle_timeout: Duration,
    /// The same for a session that its client has not confirmed.
    pub handshake_timeout: Duration,
    /// For how long [`Server::serve`] spins at most before it sleeps.
    pub spin: Duration,
    /// Of shared memory.
    pub shm: ShmServerConfig,
    /// Over RDMA.
    #[cfg(feature = "verbs")]
    pub verbs: verbs::Options,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            sessions: 256,
            window: 64,
            max_message_len: MAX_MESSAGE,
            memory_budget: 256 << 20,
            cluster_key: None,
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            spin: Duration::from_micros(50),
            shm: ShmServerConfig::default(),
            #[cfg(feature = "verbs")]
            verbs: verbs::Options::default(),
        }
    }
}

/// A server: what answers calls. Its caller polls it, or gives it a thread ([`Server::spawn`]).
///
/// ```
/// use mitosis::{Client, Server};
///
/// # let name = format!("shm://doc-server-{}", std::process::id());
/// # let address = name.as_str();
/// let mut server = Server::bind(address)?;
/// server.register(7, |request, reply| {
///     reply.extend(request.iter().rev());
///     Ok(())
/// });
/// let server = server.spawn();
///
/// let mut client = Client::connect(address)?;
/// assert_eq!(client.call(7, b"mitosis")?, b"sisotim");
/// client.close();
/// let counters = server.shutdown()?;
/// assert_eq!(counters.requests, 1);
/// # Ok::<(), mitosis::Error>(())
/// ```
pub struct Server {
    inner: Inner,
    address: Address,
    stop: Arc<Stop>,
}

enum Inner {
    Shm(Box<Serving<ShmServer>>),
    #[cfg(feature = "verbs")]
    Rdma(Box<Serving<Verbs>>),
}

/// Runs the same on whichever fabric it is: each has its own code, compiled as a whole.
macro_rules! on {
    ($inner:expr, $serving:ident => $body:expr) => {
        match $inner {
            Inner::Shm($serving) => $body,
            #[cfg(feature = "verbs")]
            Inner::Rdma($serving) => $body,
        }
    };
}

impl Server {
    /// Takes the address and listens.
    ///
    /// # Errors
    ///
    /// If the text is no address; if the name or the service is another's; if a right, a device or memory is missing.
    pub fn bind(address: &str) -> Result<Self, Error> {
        Self::bind_with(&address.parse()?, &ServerOptions::default())
    }

    /// [`Server::bind`] with options.
    pub fn bind_with(address: &Address, options: &ServerOptions) -> Result<Self, Error> {
        let inner = match address {
            Address::Shm(name) => {
                let fabric = ShmServer::bind(name, &options.shm)?;
                Inner::Shm(Box::new(Serving::new(fabric, Handlers::default(), options)))
            }
            #[cfg(feature = "verbs")]
            Address::Rdma(own) => {
                let fabric = Verbs::serve(own, &options.verbs)?;
                let options = &ServerOptions {
                    spin: fabric.spin(options.spin),
                    ..options.clone()
                };
                Inner::Rdma(Box::new(Serving::new(fabric, Handlers::default(), options)))
            }
            #[cfg(not(feature = "verbs"))]
            Address::Rdma(_) => return Err(no_verbs(address).into()),
        };
        Ok(Self {
            inner,
            address: address.clone(),
            stop: Arc::new(Stop::new()),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Lets `handler` answer the calls of `rpc_id`: it is given the request, and puts the reply into an empty buffer. It runs
    /// in the server's thread, at most once for each call.
    pub fn register<H>(&mut self, rpc_id: u32, handler: H)
    where
        H: FnMut(&[u8], &mut Vec<u8>) -> Result<(), HandlerFailed> + Send + 'static,
    {
        on!(&mut self.inner, serving => serving.handlers().insert(rpc_id, Box::new(handler)));
    }

    /// Handles what has come, if anything has; whether it has. Never sleeps.
    ///
    /// # Errors
    ///
    /// What ends the fabric. Nothing that a client can do.
    pub fn poll(&mut self) -> Result<bool, Error> {
        on!(&mut self.inner, serving => Ok(serving.work()?))
    }

    /// After [`Server::poll`] found nothing: waits for something to come, for `timeout` at most. May return early.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        on!(&mut self.inner, serving => Ok(serving.wait(timeout)?))
    }

    /// Serves until its [`Shutdown`] is used, and then answers for a moment what is under way.
    pub fn serve(&mut self) -> Result<Counters, Error> {
        let stop = Arc::clone(&self.stop);
        on!(&mut self.inner, serving => serve(serving, &stop))
    }

    /// What ends [`Server::serve`], from any thread.
    pub fn shutdown_handle(&self) -> Shutdown {
        Shutdown {
            stop: Arc::clone(&self.stop),
            waker: on!(&self.inner, serving => serving.waker()),
        }
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        on!(&self.inner, serving => serving.live_sessions())
    }

    /// What became of the datagrams so far.
    pub fn counters(&self) -> Counters {
        on!(&self.inner, serving => serving.counters())
    }

    /// Serves in a thread of its own.
    pub fn spawn(mut self) -> RunningServer {
        let shutdown = self.shutdown_handle();
        let (ended, end) = sync_channel(1);
        let thread = std::thread::spawn(move || {
            // Whoever waits for the end learns of a panic as well: the channel is closed then.
            let _ = ended.send(self.serve());
        });
        RunningServer {
            shutdown,
            end,
            thread: Some(thread),
        }
    }
}

fn serve<F: crate::fabric::Fabric>(
    serving: &mut Serving<F>,
    stop: &Stop,
) -> Result<Counters, Error> {
    while !stop.wanted() {
        if !serving.work()? {
            serving.wait(None)?;
        }
    }
    serving.go_away();
    let end = Instant::now() + GRACE;
    while serving.live_sessions() > 0 && Instant::now() < end {
        serving.work()?;
    }
    Ok(serving.counters())
}

/// Ends [`Server::serve`].
#[derive(Clone)]
pub struct Shutdown {
    stop: Arc<Stop>,
    waker: Waker,
}

impl Shutdown {
    /// Ends it.
    pub fn shutdown(&self) {
        self.stop.want();
        self.waker.wake();
    }
}

/// A server in a thread of its own, which ends when this is dropped.
pub struct RunningServer {
    shutdown: Shutdown,
    end: ChannelReceiver<Result<Counters, Error>>,
    thread: Option<JoinHandle<()>>,
}

impl RunningServer {
    /// Ends it, and tells what it has done.
    ///
    /// # Errors
    ///
    /// What had ended it before.
    pub fn shutdown(mut self) -> Result<Counters, Error> {
        self.shutdown.shutdown();
        self.join()
    }

    /// Waits until it ends of itself, by an error, or by a [`Shutdown`].
    pub fn join(&mut self) -> Result<Counters, Error> {
        let end = self.end.recv();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        end.unwrap_or(Err(Error::Panicked))
    }

    /// What ends it, from any thread.
    pub fn shutdown_handle(&self) -> Shutdown {
        self.shutdown.clone()
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        self.shutdown.shutdown();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// This build has no verbs.
#[cfg(not(feature = "verbs"))]
pub(crate) fn no_verbs(address: &Address) -> FabricError {
    FabricError::new(
        FabricErrorKind::Unsupported,
        format!("{address} needs RDMA verbs, which this program was built without"),
        "build it with the feature 'verbs', or use shm://name within one machine",
    )
}
