//! The Confirm message, by which a client opens the session that it was granted (wire.md §5.3).

use super::{BufferTooSmall, Malformed, Tag, HEADER_LEN};

/// Length of a Confirm's payload in bytes.
pub const LEN: usize = size_of::<Tag>();

/// The payload of a Confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confirm {
    /// Proves that the client knows the cluster key and has had this very Accept; 0 without a key.
    pub tag: Tag,
}

impl Confirm {
    /// Reads the payload of a Confirm.
    pub fn parse(payload: &[u8]) -> Result<Self, Malformed> {
        let tag = payload.try_into().map_err(|_| Malformed::Truncated {
            what: "confirm",
            at: HEADER_LEN,
            need: LEN,
        })?;
        Ok(Self { tag })
    }

    /// Writes the payload to the start of `payload`.
    pub fn emit(&self, payload: &mut [u8]) -> Result<(), BufferTooSmall> {
        let have = payload.len();
        let place = payload
            .first_chunk_mut()
            .ok_or(BufferTooSmall { need: LEN, have })?;
        *place = self.tag;
        Ok(())
    }
}
