//! The bodies of the fuzz targets. Each panics if what it states does not hold.

use crate::wire::{Datagram, MAX_DATAGRAM};

/// Takes any bytes for a datagram.
pub fn rpc_decode(bytes: &[u8]) {
    let mut again = [0; MAX_DATAGRAM];
    if let Ok(datagram) = Datagram::parse(bytes) {
        let _ = datagram.emit(&mut again);
    }
}
