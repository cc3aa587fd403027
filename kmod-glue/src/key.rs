//! The cluster key as a module parameter.

use mitosis_core::session::ClusterKey;

/// Why a key was not understood.
const COMPLAINT: &str = "cluster_key is not 32 hexadecimal digits";

/// Reads the parameter; nothing is no key.
pub fn parse(text: &[u8]) -> Result<Option<ClusterKey>, &'static str> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut key = [0u8; 16];
    if text.len() != key.len() * 2 {
        return Err(COMPLAINT);
    }
    for (byte, digits) in key.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digits
            .iter()
            .try_fold(0u8, |value, &digit| {
                let digit = char::from(digit).to_digit(16)?;
                Some((value << 4) | digit as u8)
            })
            .ok_or(COMPLAINT)?;
    }
    Ok(Some(ClusterKey(key)))
}
