//! Containers in stock: made in the background, so that a fork does not wait for its namespaces.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Mutex, PoisonError};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::cgroup::Groups;
use super::container::{Container, Failure};
use super::stub::Plan;

/// Makes containers.
pub struct Maker {
    /// What stubs are told.
    pub plan: Plan,
    /// Where their groups are.
    pub groups: Groups,
    /// For each thing that a container does.
    pub deadline: Duration,
    /// How many were made.
    pub made: AtomicU64,
}

/// A container, and how long it took to make.
pub type Made = (Container, Duration);

impl Maker {
    /// Makes one, here and now.
    pub fn make(&self) -> Result<Made, Failure> {
        let started = Instant::now();
        // Relaxed: only makes numbers differ.
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let container = Container::prepare(&self.plan, &self.groups, number, self.deadline)?;
        Ok((container, started.elapsed()))
    }
}

/// Where the workers get their containers.
pub enum Pool<'a> {
    /// Each makes its own.
    None(&'a Maker),
    /// Made in the background.
    Stock(Mutex<Receiver<Result<Made, Failure>>>),
}

impl<'a> Pool<'a> {
    /// Keeps up to `size` in stock. The thread that makes them ends once the pool is dropped, and a container ends with
    /// the thread that made it: the pool must outlive its containers.
    pub fn fill<'scope>(scope: &'scope Scope<'scope, '_>, maker: &'scope Maker, size: usize) -> Self
    where
        'scope: 'a,
    {
        if size == 0 {
            return Pool::None(maker);
        }
        // One more is ready, and waits to be let in.
        let (sender, receiver) = mpsc::sync_channel(size - 1);
        scope.spawn(move || while sender.send(maker.make()).is_ok() {});
        Pool::Stock(Mutex::new(receiver))
    }

    /// The next container.
    pub fn take(&self) -> Result<Made, Failure> {
        match self {
            Pool::None(maker) => maker.make(),
            Pool::Stock(receiver) => {
                let receiver = receiver.lock().unwrap_or_else(PoisonError::into_inner);
                receiver.recv().unwrap_or_else(|_| {
                    let error = std::io::Error::other("the pool's thread has ended");
                    Err(Failure::Make("a container", error))
                })
            }
        }
    }
}
