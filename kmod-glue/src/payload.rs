//! What the stress test's calls carry.
//!
//! Built with the feature `checksum`, each message is a random payload, made anew each time, and an 8-byte checksum of it
//! (CRC-64/XZ, little-endian), which its receiver verifies. Without it, a message is as long and holds whatever its buffer
//! holds: for measuring.

use crc::{Crc, CRC_64_XZ};
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::buffer::PagedBuffer;
use crate::thread::random;

/// Whether messages carry a checksum.
pub const CHECKED: bool = cfg!(feature = "checksum");

/// Payload of a message unless the module is told otherwise: 2048 bytes with a checksum, and none without.
pub const DEFAULT_PAYLOAD_SIZE: u32 = if CHECKED { 2048 } else { 0 };

/// Largest payload: 8 MiB, and with a checksum 8 bytes less, so that both fit a message.
pub const MAX_PAYLOAD_SIZE: u32 = mitosis_core::wire::MAX_MESSAGE - CHECKSUM_LEN;

const CHECKSUM_LEN: u32 = if CHECKED { 8 } else { 0 };

static CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// Length of a message that carries `payload_size` bytes.
pub fn message_len(payload_size: u32) -> u32 {
    payload_size.saturating_add(CHECKSUM_LEN)
}

/// Makes payloads.
pub struct Maker {
    random: Xoshiro256PlusPlus,
}

impl Default for Maker {
    /// A maker whose payloads nobody else makes.
    fn default() -> Maker {
        Maker {
            random: Xoshiro256PlusPlus::seed_from_u64(random()),
        }
    }
}

impl Maker {
    /// Puts a new message of `message_len` bytes into `buffer`, if messages are checked at all. The buffer holds it.
    pub fn make(&mut self, buffer: &mut PagedBuffer, message_len: u32) {
        if !CHECKED {
            return;
        }
        let payload_len = message_len.saturating_sub(CHECKSUM_LEN) as usize;
        let mut digest = CRC.digest();
        for chunk in buffer.chunks_mut(payload_len) {
            self.random.fill_bytes(chunk);
            digest.update(chunk);
        }
        buffer.write(payload_len, &digest.finalize().to_le_bytes());
    }

    /// The test's function: verifies a request of `message_len` bytes and makes a reply as long as it, which `reply` holds.
    #[inline]
    pub fn answer<'a>(
        &mut self,
        request: impl Iterator<Item = &'a [u8]>,
        message_len: u32,
        reply: &mut PagedBuffer,
    ) -> Result<u32, Mismatch> {
        verify(request, message_len as usize)?;
        self.make(reply, message_len);
        Ok(message_len)
    }
}

/// A message's checksum is not that of its payload.
pub struct Mismatch;

/// Verifies a message that comes in `chunks` and is `message_len` bytes long, if messages are checked at all.
pub fn verify<'a>(
    chunks: impl Iterator<Item = &'a [u8]>,
    message_len: usize,
) -> Result<(), Mismatch> {
    if !CHECKED {
        return Ok(());
    }
    let payload_len = message_len
        .checked_sub(CHECKSUM_LEN as usize)
        .ok_or(Mismatch)?;
    let mut digest = CRC.digest();
    let mut said = [0u8; 8];
    let mut at = 0;
    for chunk in chunks {
        let (payload, checksum) = chunk
            .split_at_checked(payload_len.saturating_sub(at))
            .unwrap_or((chunk, &[]));
        digest.update(payload);
        let from = (at + payload.len()).saturating_sub(payload_len);
        let places = said.iter_mut().skip(from);
        for (place, byte) in places.zip(checksum) {
            *place = *byte;
        }
        at += chunk.len();
    }
    if at == message_len && digest.finalize().to_le_bytes() == said {
        Ok(())
    } else {
        Err(Mismatch)
    }
}
