//! Messages: buffers of whole pages, from which a device can send any part.
//!
//! A page is the largest piece that is surely contiguous; a datagram's payload is at most a page long, so it lies in two of
//! them at the most.

use core::ops::Range;

use crate::errno::Errno;
use crate::memory::{Table, PAGE_LEN};
use crate::verbs::{Direction, MappedPage, Pieces, ProtectionDomain};

/// A buffer for a message: one page, and as many more as were needed.
pub struct PagedBuffer {
    first: MappedPage,
    rest: Table<MappedPage>,
}

impl PagedBuffer {
    /// A buffer of at least `len` bytes; one page at the least.
    pub fn new(pd: &ProtectionDomain, len: usize) -> Result<PagedBuffer, Errno> {
        let mut buffer = PagedBuffer {
            first: MappedPage::new(pd, Direction::ToDevice)?,
            rest: Table::try_new(0, |_| Err(Errno::INVALID))?,
        };
        buffer.resize(pd, len)?;
        Ok(buffer)
    }

    /// Gives it room for `len` bytes, and for no page more. All but the first page is replaced: nothing that sends from it may
    /// be outstanding.
    pub fn resize(&mut self, pd: &ProtectionDomain, len: usize) -> Result<(), Errno> {
        let more = len.div_ceil(PAGE_LEN).saturating_sub(1);
        self.rest = Table::try_new(more, |_| MappedPage::new(pd, Direction::ToDevice))?;
        Ok(())
    }

    /// How many pages it has beyond the first.
    pub fn more_pages(&self) -> usize {
        self.rest.len()
    }

    /// How many bytes it holds.
    pub fn capacity(&self) -> usize {
        (1 + self.rest.len()) * PAGE_LEN
    }

    fn page(&self, index: usize) -> Option<&MappedPage> {
        match index.checked_sub(1) {
            None => Some(&self.first),
            Some(index) => self.rest.get(index),
        }
    }

    /// Copies `bytes` to `offset`. `false` if they do not fit; nothing has been copied then.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let end = offset.checked_add(bytes.len());
        if end.is_none_or(|end| end > self.capacity()) {
            return false;
        }
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let within = at % PAGE_LEN;
            let page = match (at / PAGE_LEN).checked_sub(1) {
                None => Some(&mut self.first),
                Some(index) => self.rest.get_mut(index),
            };
            let Some(page) = page else {
                return false;
            };
            let take = rest.len().min(PAGE_LEN - within);
            let (now, later) = rest.split_at_checked(take).unwrap_or((rest, &[]));
            let room = page.page.bytes_mut().get_mut(within..within + take);
            if let Some(room) = room {
                for (to, from) in room.iter_mut().zip(now) {
                    *to = *from;
                }
            }
            rest = later;
            at += take;
        }
        true
    }

    /// The first `len` bytes, page by page.
    pub fn chunks(&self, len: usize) -> impl Iterator<Item = &[u8]> {
        let mut left = len;
        core::iter::once(&self.first)
            .chain(self.rest.iter())
            .map_while(move |page| {
                let take = left.min(PAGE_LEN);
                left -= take;
                page.page
                    .bytes()
                    .get(..take)
                    .filter(|chunk| !chunk.is_empty())
            })
    }

    /// The first `len` bytes, page by page, to write.
    pub fn chunks_mut(&mut self, len: usize) -> impl Iterator<Item = &mut [u8]> {
        let mut left = len;
        core::iter::once(&mut self.first)
            .chain(self.rest.iter_mut())
            .map_while(move |page| {
                let take = left.min(PAGE_LEN);
                left -= take;
                page.page
                    .bytes_mut()
                    .get_mut(..take)
                    .filter(|chunk| !chunk.is_empty())
            })
    }

    /// Adds the bytes of `range` to what is sent: at most a page's worth, from one page or two.
    pub fn gather(&self, range: Range<u32>, pieces: &mut Pieces) {
        let mut at = range.start as usize;
        let end = range.end as usize;
        while at < end {
            let within = at % PAGE_LEN;
            let take = (end - at).min(PAGE_LEN - within);
            let Some(page) = self.page(at / PAGE_LEN) else {
                return;
            };
            pieces.push(page, within, take);
            at += take;
        }
    }
}
