//! Which function answers which rpc id.

use mitosis_core::wire::ErrorCode;

/// A handler has failed; its client is told so, and nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandlerFailed;

type Handler = Box<dyn FnMut(&[u8], &mut Vec<u8>) -> Result<(), HandlerFailed> + Send>;

/// The handlers by rpc id, sorted.
#[derive(Default)]
pub struct Handlers {
    sorted: Vec<(u32, Handler)>,
}

impl Handlers {
    /// Adds a handler; one that the rpc id had is replaced.
    pub fn insert(&mut self, rpc_id: u32, handler: Handler) {
        match self.sorted.binary_search_by_key(&rpc_id, |(id, _)| *id) {
            Ok(place) => self.sorted[place].1 = handler,
            Err(place) => self.sorted.insert(place, (rpc_id, handler)),
        }
    }

    /// Runs the handler, which finds `reply` empty.
    #[inline(always)]
    pub fn run(
        &mut self,
        rpc_id: u32,
        request: &[u8],
        reply: &mut Vec<u8>,
    ) -> Result<(), ErrorCode> {
        // Servers have a handful of them.
        let found = self.sorted.iter_mut().find(|(id, _)| *id == rpc_id);
        let (_, handler) = found.ok_or(ErrorCode::NoSuchRpc)?;
        reply.clear();
        handler(request, reply).map_err(|HandlerFailed| ErrorCode::HandlerFailed)
    }
}
