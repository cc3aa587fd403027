//! Replies about a seed on their way, part by part.

use mitosis_core::wire::fork::{Status, PREAMBLE_LEN};

use super::channel::Sink;
use super::memory::PageRef;
use crate::errno::Errno;
use crate::memory::{Table, PAGE_LEN};

/// A descriptor on its way.
pub struct Incoming {
    /// What comes before it.
    pub preamble: [u8; PREAMBLE_LEN],
    /// What there is of it.
    pub bytes: Table<u8>,
    failed: bool,
}

impl Incoming {
    /// Nothing yet.
    pub fn new() -> Result<Incoming, Errno> {
        Ok(Incoming {
            preamble: [0; PREAMBLE_LEN],
            bytes: Table::zeroed(0)?,
            failed: false,
        })
    }
}

impl Sink for Incoming {
    fn take(&mut self, message_len: usize, offset: usize, bytes: &[u8]) -> bool {
        let wanted = message_len.saturating_sub(PREAMBLE_LEN);
        if offset == 0 && self.bytes.len() != wanted {
            match Table::zeroed(wanted) {
                Ok(table) => self.bytes = table,
                Err(_) => self.failed = true,
            }
        }
        if self.failed {
            return false;
        }
        for (at, byte) in (offset..).zip(bytes) {
            let place = match at.checked_sub(PREAMBLE_LEN) {
                None => self.preamble.get_mut(at),
                Some(at) => self.bytes.get_mut(at),
            };
            match place {
                Some(place) => *place = *byte,
                None => return false,
            }
        }
        true
    }
}

/// What a reply says came of the request.
pub fn status_of(preamble: &[u8; PREAMBLE_LEN]) -> Status {
    let word = preamble.first_chunk().copied().unwrap_or([0xff; 4]);
    Status::from_u32(u32::from_le_bytes(word)).unwrap_or(Status::BadRequest)
}

/// A page on its way, through a reply.
pub struct Copied {
    /// What comes before it.
    pub preamble: [u8; PREAMBLE_LEN],
    /// The page.
    pub page: PageRef,
}

impl Sink for Copied {
    fn take(&mut self, message_len: usize, offset: usize, bytes: &[u8]) -> bool {
        if message_len > PREAMBLE_LEN + PAGE_LEN {
            return false;
        }
        let in_preamble = PREAMBLE_LEN.saturating_sub(offset);
        let (head, body) = bytes.split_at_checked(in_preamble).unwrap_or((bytes, &[]));
        for (place, byte) in self.preamble.iter_mut().skip(offset).zip(head) {
            *place = *byte;
        }
        let at = offset
            .saturating_add(head.len())
            .saturating_sub(PREAMBLE_LEN);
        body.is_empty() || self.page.write(at, body)
    }
}
