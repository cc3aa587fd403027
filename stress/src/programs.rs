//! Programs that the runner starts on hosts, on this machine: where a build puts them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where builds put programs, and the files that go with them.
pub fn directory(out: &Path) -> PathBuf {
    out.join("programs")
}

/// Reads the program or file `name`.
pub fn load(out: &Path, name: &str) -> Result<Vec<u8>> {
    let path = directory(out).join(name);
    std::fs::read(&path).with_context(|| {
        format!(
            "no {}: build it first, with `make build-rpc-programs` or `make build-lean-container-bench`",
            path.display()
        )
    })
}
