//! What a server does when it is called.

use super::failures::Unanswered;
use super::slots::ReplyRoom;
use crate::payload::Maker;

/// The functions behind a server's RPC ids.
pub trait Service {
    /// Whether there is a function with this id; asked before anything of its request is kept.
    fn knows(&self, rpc_id: u32) -> bool;

    /// Executes a request of `len` bytes, which comes in chunks, and returns the length of the reply that it wrote into
    /// the buffer that `room` gave. Called on the serving thread, which nobody else is served by meanwhile.
    fn answer<'c>(
        &mut self,
        rpc_id: u32,
        request: impl Iterator<Item = &'c [u8]>,
        len: u32,
        room: ReplyRoom<'_, '_>,
    ) -> Result<u32, Unanswered>;
}

/// The stress test's only function: a reply as long as the request.
pub struct Echo {
    /// The id that it is called by.
    pub rpc_id: u32,
    /// Makes replies.
    pub maker: Maker,
}

impl Service for Echo {
    #[inline]
    fn knows(&self, rpc_id: u32) -> bool {
        rpc_id == self.rpc_id
    }

    #[inline]
    fn answer<'c>(
        &mut self,
        _rpc_id: u32,
        request: impl Iterator<Item = &'c [u8]>,
        len: u32,
        room: ReplyRoom<'_, '_>,
    ) -> Result<u32, Unanswered> {
        Ok(self.maker.answer(request, len, room.of(len as usize)?)?)
    }
}
