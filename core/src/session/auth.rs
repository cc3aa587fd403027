//! The proof that a peer belongs to the cluster (wire.md §7.5).

use core::fmt;

/// The cluster's key: 128 secret bits that all its members are told.
#[derive(Clone, Copy)]
pub struct ClusterKey(pub [u8; 16]);

impl fmt::Debug for ClusterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterKey(secret)")
    }
}
