//! Connections that have not said Hello: a few, and not for long.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

/// How many there are at most.
pub(super) const MAX_STRANGERS: usize = 64;

/// How long each may take.
pub(super) const HELLO_PATIENCE: Duration = Duration::from_secs(2);

struct Stranger {
    socket: OwnedFd,
    since: Instant,
}

/// Each has a number from its admission until it is taken.
#[derive(Default)]
pub(super) struct Strangers {
    places: Vec<Option<Stranger>>,
}

impl Strangers {
    /// The number that the next one gets, if there is room for one.
    pub(super) fn room(&mut self) -> Option<usize> {
        let free = self.places.iter().position(Option::is_none);
        if free.is_none() && self.places.len() < MAX_STRANGERS {
            self.places.push(None);
            return Some(self.places.len() - 1);
        }
        free
    }

    /// A connection of `since` gets the number that [`Strangers::room`] gave.
    pub(super) fn admit(&mut self, index: usize, socket: OwnedFd, since: Instant) {
        if let Some(place) = self.places.get_mut(index) {
            *place = Some(Stranger { socket, since });
        }
    }

    /// Takes the one with this number.
    pub(super) fn take(&mut self, index: usize) -> Option<OwnedFd> {
        let stranger = self.places.get_mut(index)?.take()?;
        Some(stranger.socket)
    }

    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        self.places.iter().any(Option::is_some)
    }

    /// Takes one whose time is over at `now`. It may have said Hello in time to somebody who was late.
    pub(super) fn take_overdue(&mut self, now: Instant) -> Option<OwnedFd> {
        let overdue = |stranger: &mut Stranger| {
            now.saturating_duration_since(stranger.since) > HELLO_PATIENCE
        };
        let stranger = self
            .places
            .iter_mut()
            .find_map(|place| place.take_if(overdue))?;
        Some(stranger.socket)
    }
}
