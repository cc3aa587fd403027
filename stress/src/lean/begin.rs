//! How the children in the containers begin: as a seed's continuation, or, to compare with, as a program.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use super::container::Failure;
use super::stub::Order;

/// What becomes of stubs.
pub trait Begin: Sync {
    /// What the stub is to become as the child of this number, and what it takes for that.
    fn subject(&self, child: u64) -> Result<(Order, Arc<OwnedFd>), Failure>;

    /// The arguments of a stub that becomes a program, its name first.
    fn arguments(&self) -> Vec<CString>;
}

/// Each child is this program, begun anew.
pub struct Program {
    file: Arc<OwnedFd>,
    arguments: Vec<CString>,
}

impl Program {
    /// The program in the file `words[0]`, with the other words as its arguments.
    pub fn open(words: &[String]) -> Result<Self> {
        let path = words.first().context("no program was named")?;
        let file = File::open(Path::new(path)).with_context(|| format!("cannot open {path}"))?;
        let arguments = words
            .iter()
            .map(|word| CString::new(word.as_str()).with_context(|| format!("{word:?}")))
            .collect::<Result<_>>()?;
        Ok(Self {
            file: Arc::new(file.into()),
            arguments,
        })
    }
}

impl Begin for Program {
    fn subject(&self, _child: u64) -> Result<(Order, Arc<OwnedFd>), Failure> {
        Ok((Order::Execute, Arc::clone(&self.file)))
    }

    fn arguments(&self) -> Vec<CString> {
        self.arguments.clone()
    }
}
