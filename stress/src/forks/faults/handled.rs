//! What children do with their memory: none of it may change but what they change.

use anyhow::Result;

use super::{Forks, Row};
use crate::klog::watch::Watch;

/// Two chunks of memory.
const MIB: u64 = 4;
/// Where the children are.
const NEAR: usize = 1;

impl Forks<'_> {
    pub(super) fn handled(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, MIB)?;
        let mut one = |watch: &mut Watch<'_>, line| {
            let mut child = self.site.child(watch, NEAR, &seed)?;
            child.walk(watch, line)?;
            child.end(watch)?;
            row.verified += 1;
            Ok::<_, anyhow::Error>(())
        };
        // Children that read each page from the seed's machine; then such as find them all here, kept for a sibling.
        one(watch, "drop")?;
        one(watch, "handle")?;
        let mut sibling = self.site.child(watch, NEAR, &seed)?;
        sibling.walk(watch, "read")?;
        one(watch, "drop")?;
        one(watch, "handle")?;
        sibling.walk(watch, "read")?;
        sibling.end(watch)?;
        row.verified += 1;
        self.site.retire(watch, parent)
    }
}
