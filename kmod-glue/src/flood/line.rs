//! A queue pair of the stranger's own: one datagram out at a time, and what is answered.

use mitosis_core::wire::MAX_DATAGRAM;

use crate::cm::{Route, Unresolved};
use crate::endpoint::{Endpoint, Ticket};
use crate::errno::Errno;
use crate::module::Control;
use crate::thread::now_ns;
use crate::verbs::{Completion, Direction, MappedPage, BATCH};

const RECEIVE_BUFFERS: u32 = 64;
/// A datagram may be lost, also because the server looks for the way back first: it is repeated after this.
const REPEAT_NS: u64 = 500_000_000;
/// The server answers within this, or never.
const PATIENCE_NS: u64 = 10_000_000_000;

/// Why the stranger did not get to its end.
pub enum Failure {
    /// The server was not found.
    Unresolved(Unresolved),
    /// The kernel refused something.
    Kernel(&'static str, Errno),
    /// rmmod came first.
    Stopped,
    /// The server did what it must not do, or did not do what it must.
    Unlike(&'static str),
}

/// The queue pair, dropped before what it sends from.
pub struct Line<'a> {
    endpoint: Endpoint<'a>,
    page: MappedPage,
    sent: Ticket,
    route: &'a Route,
    control: &'a Control,
}

impl<'a> Line<'a> {
    /// A queue pair on `route`.
    pub fn open(route: &'a Route, control: &'a Control) -> Result<Line<'a>, Failure> {
        let kernel = |step| move |errno| Failure::Kernel(step, errno);
        let page = MappedPage::new(route.pd(), Direction::ToDevice)
            .map_err(kernel("cannot allocate a send buffer"))?;
        let endpoint = Endpoint::open(route.port(), route.pd(), &control.event, RECEIVE_BUFFERS)
            .map_err(kernel("cannot create a queue pair"))?;
        Ok(Line {
            endpoint,
            page,
            sent: Ticket::default(),
            route,
            control,
        })
    }

    /// Longest datagram in bytes.
    pub fn datagram_len(&self) -> u16 {
        self.endpoint.datagram_len()
    }

    /// Sends a datagram, and again until `heed` makes something of an answer.
    pub fn ask<T>(
        &mut self,
        datagram: &[u8],
        mut heed: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<T, Failure> {
        let give_up_ns = now_ns().saturating_add(PATIENCE_NS);
        while now_ns() < give_up_ns {
            self.say(datagram)?;
            let until_ns = now_ns().saturating_add(REPEAT_NS);
            if let Some(heeded) = self.hear(until_ns, &mut heed)? {
                return Ok(heeded);
            }
        }
        Err(Failure::Unlike("the server does not answer"))
    }

    /// Sends a datagram once.
    pub fn say(&mut self, datagram: &[u8]) -> Result<(), Failure> {
        let kernel = |step| move |errno| Failure::Kernel(step, errno);
        self.endpoint
            .outbox()
            .wait_sent(self.sent)
            .map_err(kernel("a send does not complete"))?;
        let len = datagram.len().min(MAX_DATAGRAM);
        for (to, from) in self.page.page.bytes_mut().iter_mut().zip(datagram) {
            *to = *from;
        }
        self.sent = self
            .endpoint
            .send_page(&self.route.destination(), &self.page, len)
            .map_err(kernel("cannot send"))?;
        Ok(())
    }

    /// Takes in answers until `heed` makes something of one.
    fn hear<T>(
        &mut self,
        until_ns: u64,
        heed: &mut impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, Failure> {
        let kernel = |errno| Failure::Kernel("cannot post receives", errno);
        let mut heeded = None;
        loop {
            if self.control.stop.wanted() {
                return Err(Failure::Stopped);
            }
            let mut completions = [Completion::default(); BATCH];
            let arrived = self.endpoint.poll(&mut completions);
            for completion in arrived {
                if let (None, Some(received)) = (&heeded, self.endpoint.received(completion)) {
                    heeded = heed(received.datagram);
                }
                self.endpoint.give_back(completion.wr_id).map_err(kernel)?;
            }
            if !arrived.is_empty() {
                self.endpoint.flush().map_err(kernel)?;
                if heeded.is_some() {
                    return Ok(heeded);
                }
                continue;
            }
            let now = now_ns();
            if now >= until_ns {
                return Ok(None);
            }
            if !self.endpoint.arm() {
                self.control.event.wait(until_ns.saturating_sub(now));
            }
        }
    }
}
