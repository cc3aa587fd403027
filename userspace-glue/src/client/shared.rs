//! A client in a thread of its own.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::{channel, Receiver, Sender, TryRecvError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker as TaskWaker};
use std::thread::JoinHandle;

use super::Client;
use crate::error::Error;
use crate::fabric::Waker;

/// A client in a thread of its own: any thread can call by it, and clones share its session. It ends with the last of them.
///
/// ```
/// # use mitosis::{Client, Error, Server};
/// # let name = format!("shm://doc-shared-{}", std::process::id());
/// # let address = name.as_str();
/// # let mut server = Server::bind(address)?;
/// # server.register(7, |request, reply| {
/// #     reply.extend_from_slice(request);
/// #     Ok(())
/// # });
/// # let server = server.spawn();
/// let client = Client::connect(address)?.into_shared();
/// let pending: Vec<_> = (0..200_u8).map(|number| client.call_async(7, vec![number])).collect();
/// for (number, pending) in (0..200_u8).zip(pending) {
///     assert_eq!(pending.wait()?, [number]); // or pending.await
/// }
/// assert_eq!(client.call(7, b"one")?, b"one");
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone)]
pub struct SharedClient {
    calls: Sender<Call>,
    waker: Waker,
    _thread: Arc<Ended>,
}

/// The end of the last clone.
struct Ended {
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

struct Call {
    rpc_id: u32,
    request: Vec<u8>,
    promise: Promise,
}

impl SharedClient {
    pub(super) fn new(client: Client) -> Self {
        let waker = client.waker();
        let (calls, orders) = channel();
        let thread = std::thread::spawn(move || run(client, &orders));
        Self {
            calls,
            waker: waker.clone(),
            _thread: Arc::new(Ended {
                waker,
                thread: Some(thread),
            }),
        }
    }

    /// Calls, and waits for the reply.
    pub fn call(&self, rpc_id: u32, request: &[u8]) -> Result<Vec<u8>, Error> {
        self.call_async(rpc_id, request.to_vec()).wait()
    }

    /// Calls. What comes of it, the [`Pending`] tells, as a future or to who waits. Calls beyond the window queue up.
    pub fn call_async(&self, rpc_id: u32, request: Vec<u8>) -> Pending {
        let promise = Promise::default();
        let pending = Pending {
            state: Arc::clone(&promise.state),
        };
        // If the thread has ended, the promise is dropped, which is an answer as well.
        let call = Call {
            rpc_id,
            request,
            promise,
        };
        if self.calls.send(call).is_ok() {
            self.waker.wake();
        }
        pending
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.waker.wake();
        if let Some(thread) = self.thread.take() {
            // A future that holds the last clone may be dropped by the thread itself.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

/// The thread's life: until the last clone is gone, or the fabric.
fn run(mut client: Client, orders: &Receiver<Call>) {
    let mut queue: VecDeque<Call> = VecDeque::new();
    let mut outstanding: Vec<Option<Promise>> = (0..client.window()).map(|_| None).collect();
    loop {
        let open = loop {
            match orders.try_recv() {
                Ok(call) => queue.push_back(call),
                Err(TryRecvError::Empty) => break true,
                Err(TryRecvError::Disconnected) => break false,
            }
        };
        if !open && queue.is_empty() && client.outstanding() == 0 {
            client.close();
            return;
        }
        while client.outstanding() < outstanding.len() {
            let Some(call) = queue.pop_front() else {
                break;
            };
            match client.start(call.rpc_id, &call.request) {
                Ok(id) => outstanding[id.slot()] = Some(call.promise),
                Err(error) => call.promise.keep(Err(error)),
            }
        }
        let waited = client.wait(None, |id, result| {
            if let Some(promise) = outstanding.get_mut(id.slot()).and_then(Option::take) {
                promise.keep(result.map(<[u8]>::to_vec));
            }
        });
        if waited.is_err() {
            // Promises that are not kept say so.
            return;
        }
    }
}

#[derive(Default)]
struct State {
    result: Mutex<Progress>,
    over: Condvar,
}

#[derive(Default)]
enum Progress {
    #[default]
    Under,
    Awaited(TaskWaker),
    Over(Option<Result<Vec<u8>, Error>>),
}

/// The duty to say how a call ended.
#[derive(Default)]
struct Promise {
    state: Arc<State>,
}

impl Promise {
    fn keep(self, result: Result<Vec<u8>, Error>) {
        self.settle(result);
    }

    fn settle(&self, result: Result<Vec<u8>, Error>) {
        let mut progress = self.state.lock();
        if matches!(*progress, Progress::Over(_)) {
            return;
        }
        let before = std::mem::replace(&mut *progress, Progress::Over(Some(result)));
        drop(progress);
        self.state.over.notify_all();
        if let Progress::Awaited(task) = before {
            task.wake();
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.settle(Err(Error::Closed));
    }
}

impl State {
    fn lock(&self) -> std::sync::MutexGuard<'_, Progress> {
        // Nothing panics while it is held.
        self.result.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A call that is under way: a future, and something to wait for.
pub struct Pending {
    state: Arc<State>,
}

impl Pending {
    /// Waits for the reply.
    pub fn wait(self) -> Result<Vec<u8>, Error> {
        let mut progress = self.state.lock();
        loop {
            if let Progress::Over(result) = &mut *progress {
                return result.take().unwrap_or(Err(Error::Closed));
            }
            let over = &self.state.over;
            progress = over.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Future for Pending {
    type Output = Result<Vec<u8>, Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut progress = self.state.lock();
        match &mut *progress {
            Progress::Over(result) => Poll::Ready(result.take().unwrap_or(Err(Error::Closed))),
            Progress::Under | Progress::Awaited(_) => {
                *progress = Progress::Awaited(context.waker().clone());
                Poll::Pending
            }
        }
    }
}
