//! Who has `/dev/mitosis` open, and what those who wait for a seed are told.

use mitosis_core::sync::gauge::Gauge;

use super::refusal::Refusal;
use crate::errno::Errno;
use crate::lock::{Mutex, Shared};
use crate::memory::Table;
use crate::thread::Event;

/// Refusals that are kept for their parents; a further one takes the oldest one's place.
const REFUSALS: usize = 32;
/// Open files of `/dev/mitosis` that wait for a seed at one time.
const WAITERS: usize = 256;

/// One open file of `/dev/mitosis`.
pub struct Client {
    /// Its number, never used again.
    pub number: u64,
    /// The process that opened it.
    pub tgid: i32,
}

#[derive(Clone, Copy, Default)]
struct Told {
    owner: u64,
    token: u64,
    refusal: Refusal,
}

struct Waiting {
    owner: u64,
    event: Shared<Event>,
}

struct Book {
    next: u64,
    told: [Told; REFUSALS],
    at: usize,
    waiting: Table<Option<Waiting>>,
}

/// All of them.
pub struct Clients {
    book: Mutex<Book>,
    /// Now open.
    pub open: Gauge,
}

impl Clients {
    /// Nobody.
    pub fn new() -> Result<Clients, Errno> {
        Ok(Clients {
            book: Mutex::new(Book {
                next: 1,
                told: [Told::default(); REFUSALS],
                at: 0,
                waiting: Table::try_new(WAITERS, |_| Ok(None))?,
            })?,
            open: Gauge::default(),
        })
    }

    /// A number for a file that is being opened.
    pub fn admit(&self) -> u64 {
        let mut book = self.book.lock();
        let number = book.next;
        book.next += 1;
        number
    }

    /// Keeps why a process could not be frozen, for its parent to ask, and wakes it.
    pub fn tell(&self, owner: u64, token: u64, refusal: Refusal) {
        let mut book = self.book.lock();
        let at = book.at % REFUSALS;
        book.at = book.at.wrapping_add(1);
        if let Some(place) = book.told.get_mut(at) {
            *place = Told {
                owner,
                token,
                refusal,
            };
        }
        drop(book);
        self.wake(owner);
    }

    /// What was told of a token, which is forgotten.
    pub fn told(&self, owner: u64, token: u64) -> Option<Refusal> {
        let mut book = self.book.lock();
        let told = book
            .told
            .iter_mut()
            .find(|told| told.owner == owner && owner != 0 && told.token == token)?;
        let refusal = told.refusal;
        *told = Told::default();
        Some(refusal)
    }

    /// Wakes those who wait through an open file.
    pub fn wake(&self, owner: u64) {
        let book = self.book.lock();
        for waiting in book.waiting.iter().flatten() {
            if waiting.owner == owner {
                waiting.event.signal();
            }
        }
    }

    /// An event that is signalled when something happens to the seeds of an open file.
    pub fn wait(&self, owner: u64) -> Result<Waiter<'_>, Errno> {
        let event = Shared::new(Event::new()?)?;
        let mut book = self.book.lock();
        let place = book.waiting.iter_mut().find(|place| place.is_none());
        *place.ok_or(Errno::NO_ROOM)? = Some(Waiting {
            owner,
            event: event.clone(),
        });
        Ok(Waiter {
            clients: self,
            event,
        })
    }
}

/// Somebody who waits.
pub struct Waiter<'c> {
    clients: &'c Clients,
    /// What to sleep on.
    pub event: Shared<Event>,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut book = self.clients.book.lock();
        for place in book.waiting.iter_mut() {
            if place
                .as_ref()
                .is_some_and(|waiting| waiting.event.same(&self.event))
            {
                *place = None;
            }
        }
    }
}
