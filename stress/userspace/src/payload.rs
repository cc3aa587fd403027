//! What the calls carry: as the modules' messages, which means nothing, or with checksums a random payload and its CRC-64/XZ in
//! the last 8 bytes, little-endian.

use crc::{Crc, CRC_64_XZ};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

static CRC: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

const CHECKSUM_LEN: usize = 8;

/// Makes and verifies messages.
pub struct Payloads {
    size: usize,
    checked: bool,
    random: SmallRng,
}

impl Payloads {
    /// Messages of `size` bytes, and a checksum if they are checked.
    pub fn new(size: u32, checked: bool) -> Self {
        Self {
            size: size as usize,
            checked,
            random: SmallRng::from_rng(&mut rand::rng()),
        }
    }

    /// Length of a message in bytes.
    pub fn message_len(&self) -> usize {
        self.size + if self.checked { CHECKSUM_LEN } else { 0 }
    }

    /// Puts a new message into `buffer`.
    pub fn make(&mut self, buffer: &mut Vec<u8>) {
        buffer.resize(self.message_len(), 0);
        if self.checked {
            let (payload, checksum) = buffer.split_at_mut(self.size);
            self.random.fill_bytes(payload);
            checksum.copy_from_slice(&CRC.checksum(payload).to_le_bytes());
        }
    }

    /// Whether a message is one that was made, as far as can be told.
    pub fn verify(&self, message: &[u8]) -> bool {
        if !self.checked {
            return message.len() == self.message_len();
        }
        message
            .split_last_chunk()
            .is_some_and(|(payload, said)| CRC.checksum(payload).to_le_bytes() == *said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_bit_is_found() {
        let mut payloads = Payloads::new(100, true);
        let mut message = Vec::new();
        payloads.make(&mut message);
        assert_eq!(message.len(), 108);
        assert!(payloads.verify(&message));
        for bit in 0..message.len() * 8 {
            message[bit / 8] ^= 1 << (bit % 8);
            assert!(!payloads.verify(&message));
            message[bit / 8] ^= 1 << (bit % 8);
        }
        assert!(!payloads.verify(&message[..7]));
    }
}
