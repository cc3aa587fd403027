//! The buffers of a session's slots.
//!
//! A slot keeps a page for replies from its first request on. Longer messages have more pages, out of a budget that all
//! share, until their session ends. A reply of one page may still be being sent when its session ends, which is why its page
//! stays; sends of longer ones ask for completions, so that it is known when their pages are free.

use mitosis_core::rpc::server::{Segment, Transmission};
use mitosis_core::wire::ErrorCode;

use crate::buffer::PagedBuffer;
use crate::endpoint::{Burst, Outbox, Ticket};
use crate::errno::Errno;
use crate::memory::PAGE_LEN;
use crate::verbs::ProtectionDomain;

/// Pages for long messages that may still be taken.
pub struct Budget {
    pages: usize,
}

impl Budget {
    /// A budget of so many bytes.
    pub const fn new(bytes: usize) -> Budget {
        Budget {
            pages: bytes / PAGE_LEN,
        }
    }

    fn take(&mut self, pages: usize) -> Result<(), ErrorCode> {
        self.pages = self.pages.checked_sub(pages).ok_or(ErrorCode::Busy)?;
        Ok(())
    }

    fn give_back(&mut self, pages: usize) {
        self.pages += pages;
    }
}

/// A slot's buffers.
#[derive(Default)]
pub struct SlotBuffers {
    /// Where a request of several datagrams is put together.
    request: Option<PagedBuffer>,
    reply: Option<Reply>,
}

/// Room for a reply, which is given once its length is known.
pub struct ReplyRoom<'r, 'o> {
    reply: &'r mut Option<Reply>,
    pd: &'r ProtectionDomain,
    outbox: &'r mut Outbox<'o>,
    budget: &'r mut Budget,
}

impl<'r> ReplyRoom<'r, '_> {
    /// The buffer for a reply of `len` bytes.
    #[inline]
    pub fn of(self, len: usize) -> Result<&'r mut PagedBuffer, ErrorCode> {
        if self.reply.is_none() {
            *self.reply = Some(Reply {
                buffer: PagedBuffer::new(self.pd, 0).map_err(|_| ErrorCode::Busy)?,
                ticket: Ticket::default(),
            });
        }
        let reply = self.reply.as_mut().ok_or(ErrorCode::HandlerFailed)?;
        if reply.buffer.capacity() < len {
            reply.resize(len, self.pd, self.outbox, self.budget)?;
        }
        Ok(&mut reply.buffer)
    }
}

struct Reply {
    buffer: PagedBuffer,
    /// The last send from it that asked for a completion.
    ticket: Ticket,
}

impl SlotBuffers {
    /// Puts a part of a request where it belongs.
    pub fn take(
        &mut self,
        segment: &Segment<'_>,
        pd: &ProtectionDomain,
        budget: &mut Budget,
    ) -> Result<(), ErrorCode> {
        let len = segment.message_len as usize;
        if self
            .request
            .as_ref()
            .is_none_or(|request| request.capacity() < len)
        {
            self.drop_request(budget);
            let more = len.div_ceil(PAGE_LEN).saturating_sub(1);
            budget.take(more)?;
            match PagedBuffer::new(pd, len) {
                Ok(buffer) => self.request = Some(buffer),
                Err(_) => {
                    budget.give_back(more);
                    return Err(ErrorCode::Busy);
                }
            }
        }
        let request = self.request.as_mut().ok_or(ErrorCode::HandlerFailed)?;
        if request.write(segment.offset as usize, segment.payload) {
            Ok(())
        } else {
            Err(ErrorCode::TooLarge)
        }
    }

    /// The parts of the request that was put together, as far as they are `len` bytes, and room for its reply.
    #[inline]
    pub fn halves<'r, 'o>(
        &'r mut self,
        len: usize,
        pd: &'r ProtectionDomain,
        outbox: &'r mut Outbox<'o>,
        budget: &'r mut Budget,
    ) -> (impl Iterator<Item = &'r [u8]>, ReplyRoom<'r, 'o>) {
        let room = ReplyRoom {
            reply: &mut self.reply,
            pd,
            outbox,
            budget,
        };
        let request = self.request.iter();
        (request.flat_map(move |buffer| buffer.chunks(len)), room)
    }

    /// Sends a part of the reply.
    #[inline]
    pub fn send(
        &mut self,
        burst: &mut Burst<'_, '_>,
        transmission: &Transmission,
    ) -> Result<(), Errno> {
        let Some(reply) = &mut self.reply else {
            // An Error to a request that never had a buffer.
            burst.send(transmission.header_len, None, false)?;
            return Ok(());
        };
        let awaited = transmission.again || reply.buffer.more_pages() > 0;
        // Sends complete in order: the last of those that follow one another tells of all.
        let signaled = transmission.again || awaited && !transmission.more;
        let payload = Some((&reply.buffer, transmission.payload.clone()));
        let ticket = burst.send(transmission.header_len, payload, signaled)?;
        if awaited {
            reply.ticket = ticket;
        }
        if transmission.again {
            // The client's next request proves that it has a reply, not that the repetition has left this buffer.
            burst.ring()?;
            burst.outbox().wait_sent(ticket)?;
        }
        Ok(())
    }

    /// The session is over: all but the reply's first page is given back.
    pub fn shrink(&mut self, pd: &ProtectionDomain, outbox: &mut Outbox<'_>, budget: &mut Budget) {
        self.drop_request(budget);
        if let Some(reply) = &mut self.reply {
            if reply.buffer.more_pages() > 0 {
                // A device that does not complete its sends keeps the pages, and the budget knows.
                let _ = reply.resize(0, pd, outbox, budget);
            }
        }
    }

    fn drop_request(&mut self, budget: &mut Budget) {
        if let Some(request) = self.request.take() {
            budget.give_back(request.more_pages());
        }
    }
}

impl Reply {
    fn resize(
        &mut self,
        len: usize,
        pd: &ProtectionDomain,
        outbox: &mut Outbox<'_>,
        budget: &mut Budget,
    ) -> Result<(), ErrorCode> {
        outbox.wait_sent(self.ticket).map_err(|_| ErrorCode::Busy)?;
        let had = self.buffer.more_pages();
        self.buffer.resize(pd, 0).map_err(|_| ErrorCode::Busy)?;
        budget.give_back(had);
        let more = len.div_ceil(PAGE_LEN).saturating_sub(1);
        budget.take(more)?;
        self.buffer.resize(pd, len).map_err(|_| {
            budget.give_back(more);
            ErrorCode::Busy
        })
    }
}
