//! What children do with their memory, and others with theirs: none of it may change but what they change.

use anyhow::Result;

use super::{Forks, Row};
use crate::forks::walker::SeedName;
use crate::klog::watch::Watch;

/// Two chunks of memory.
const MIB: u64 = 4;
/// Where the children are.
const NEAR: usize = 1;

impl Forks<'_> {
    /// Children give up, protect, move and share their memory, and touch it by threads.
    pub(super) fn handled(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        self.each_way(watch, row, &["drop", "handle", "threads"])
    }

    /// Debuggers look into children, which leave core files, and become other programs.
    pub(super) fn observed(&self, watch: &mut Watch<'_>, row: &mut Row) -> Result<()> {
        self.each_way(watch, row, &["trace", "dump", "exec"])
    }

    /// A child for each line. First such as read each page from the seed's machine, then such as find them all here, kept for a
    /// sibling.
    fn each_way(&self, watch: &mut Watch<'_>, row: &mut Row, lines: &[&str]) -> Result<()> {
        let (parent, seed) = self.site.parent(watch, MIB)?;
        for line in lines {
            self.one(watch, row, &seed, line)?;
        }
        let mut sibling = self.site.child(watch, NEAR, &seed)?;
        sibling.walk(watch, "read")?;
        for line in lines {
            self.one(watch, row, &seed, line)?;
        }
        sibling.walk(watch, "read")?;
        sibling.end(watch)?;
        row.verified += 1;
        self.site.retire(watch, parent)
    }

    fn one(&self, watch: &mut Watch<'_>, row: &mut Row, seed: &SeedName, line: &str) -> Result<()> {
        let mut child = self.site.child(watch, NEAR, seed)?;
        if line == "exec" {
            child.ask(watch, line, "ready")?;
            child.walk(watch, "read")?;
        } else {
            child.walk(watch, line)?;
        }
        child.end(watch)?;
        row.verified += 1;
        Ok(())
    }
}
