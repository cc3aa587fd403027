//! What the client does when a time has come (wire.md §7.3, §8.5).

use super::rtt::one_more;
use super::{bit, Client, Event, SlotSet, State};
use crate::session::RequestId;
use crate::wire::{ErrorCode, Refusal};

impl Client<'_> {
    /// When to call [`Client::handle_timeout`]; `None` without a session or handshake. While calls
    /// are outstanding, it may be earlier than there is anything to do.
    #[inline]
    pub fn next_timeout_ns(&self) -> Option<u64> {
        if self.busy != 0 {
            return Some(self.calls_at_ns);
        }
        (self.state != State::Closed).then(|| self.resend_at_ns.min(self.deadline_ns))
    }

    /// Acts upon the time that has come: asks [`Client::poll_transmit`] to send again, or gives up.
    /// As several calls may be over at once, it is called until it yields nothing.
    pub fn handle_timeout(&mut self, now_ns: u64) -> Option<Event> {
        match self.state {
            State::Closed => None,
            State::Open if self.busy != 0 => self.calls_due(now_ns),
            State::Open => self.idle_due(now_ns),
            State::Connecting => {
                if now_ns >= self.deadline_ns {
                    self.close();
                    return Some(Event::ConnectTimedOut);
                }
                if now_ns >= self.resend_at_ns {
                    self.control.connect = true;
                    self.retreats = one_more(self.retreats);
                    // Set again when it is sent; until then, do not ask for it over and over.
                    self.resend_at_ns = now_ns.saturating_add(self.handshake_interval_ns());
                }
                None
            }
        }
    }

    /// Looks at every outstanding call.
    fn calls_due(&mut self, now_ns: u64) -> Option<Event> {
        if now_ns < self.calls_at_ns {
            return None;
        }
        let mut next_ns = u64::MAX;
        for slot in SlotSet(self.busy).iter() {
            let Some(place) = self.slots.get_mut(usize::from(slot)) else {
                continue;
            };
            if now_ns >= place.deadline_ns {
                let request = RequestId(place.request);
                self.in_flight = self.in_flight.saturating_sub(place.in_flight);
                // The session may well live; Pings find out.
                self.heard = false;
                self.free(now_ns, slot);
                // `calls_at_ns` is still in the past: the other calls are looked at next.
                return Some(Event::TimedOut { request, slot });
            }
            if now_ns >= place.resend_at_ns {
                let credits = place.go_back();
                self.in_flight = self.in_flight.saturating_sub(credits);
                self.ready |= bit(slot);
                if !self.heard && self.config.cluster_key.is_some() {
                    // No request is heard before the Confirm (wire.md §7.5).
                    self.control.confirm = true;
                }
            }
            next_ns = next_ns.min(place.deadline_ns).min(place.resend_at_ns);
        }
        self.calls_at_ns = next_ns;
        None
    }

    fn idle_due(&mut self, now_ns: u64) -> Option<Event> {
        if now_ns >= self.deadline_ns {
            // The server has not answered for as long as it keeps a silent session.
            return Some(self.closed(Refusal::new(ErrorCode::NoSuchSession)));
        }
        if now_ns >= self.resend_at_ns {
            if self.heard {
                self.control.ping = true;
            } else {
                self.control.confirm = true;
                self.retreats = one_more(self.retreats);
            }
            self.resend_at_ns = now_ns.saturating_add(self.idle_interval_ns());
        }
        None
    }

    /// No call is outstanding (any more).
    #[inline(always)]
    pub(super) fn rest(&mut self, now_ns: u64) {
        // A timeout of 32 bits of milliseconds cannot overflow the clock.
        self.resend_at_ns = now_ns.wrapping_add(self.idle_interval_ns());
        self.deadline_ns = now_ns.wrapping_add(self.idle_timeout_ns);
    }

    /// Between two Connects, or two Confirms.
    pub(super) fn handshake_interval_ns(&self) -> u64 {
        self.trip.interval_ns(self.retreats)
    }

    /// Pings are four to an idle timeout; but until the server has shown that it knows that we have
    /// its Accept, Confirms come at the intervals of the handshake.
    #[inline(always)]
    fn idle_interval_ns(&self) -> u64 {
        let interval_ns = self.idle_timeout_ns / 4;
        if self.heard {
            interval_ns
        } else {
            interval_ns.min(self.handshake_interval_ns())
        }
    }
}
