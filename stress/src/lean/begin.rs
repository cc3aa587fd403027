//! How the children in the containers begin: as a seed's continuation, or, to compare with, as a program.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use mitosis_fork::uapi::SeedId;
use mitosis_fork::{Capability, Image, Machine, OpenOptions, Resumption};

use super::container::Failure;
use super::stub::Order;

/// What becomes of stubs.
pub trait Begin: Sync {
    /// What the stub is to become as the child of this number, and what it takes for that.
    fn subject(&self, child: u32) -> Result<(Order, Arc<OwnedFd>), Failure>;

    /// The arguments of a stub that becomes a program, its name first.
    fn arguments(&self) -> Vec<CString> {
        Vec::new()
    }

    /// What it takes for a stub to become a seed's continuation.
    fn resumption(&self) -> Result<Option<Resumption>> {
        Ok(None)
    }
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
    fn subject(&self, _child: u32) -> Result<(Order, Arc<OwnedFd>), Failure> {
        Ok((Order::Execute, Arc::clone(&self.file)))
    }

    fn arguments(&self) -> Vec<CString> {
        self.arguments.clone()
    }
}

/// Each child is a continuation of this seed.
pub struct Seed {
    /// Where it is.
    pub machine: Machine,
    /// Which one it is.
    pub id: SeedId,
    /// Without it, only root of an authenticated machine may resume it.
    pub capability: Option<Capability>,
    /// How it is opened.
    pub options: OpenOptions,
    /// Opened once, for all children; `None`: opened anew for each.
    pub shared: Option<Arc<OwnedFd>>,
}

impl Seed {
    /// Fetches the descriptor.
    pub fn open(&self) -> Result<Image, mitosis_fork::Error> {
        Image::open(self.machine, self.id, self.capability, &self.options)
    }

    /// An image's own file descriptor, which outlives it.
    pub fn descriptor_of(image: &Image) -> std::io::Result<OwnedFd> {
        // SAFETY: the image has it open as long as it is borrowed.
        let fd = unsafe { BorrowedFd::borrow_raw(image.fd()) };
        fd.try_clone_to_owned()
    }
}

impl Begin for Seed {
    fn subject(&self, child: u32) -> Result<(Order, Arc<OwnedFd>), Failure> {
        let order = Order::Resume { child };
        if let Some(shared) = &self.shared {
            return Ok((order, Arc::clone(shared)));
        }
        let image = self
            .open()
            .map_err(|error| Failure::Subject(error.to_string()))?;
        let fd = Self::descriptor_of(&image)
            .map_err(|error| Failure::Make("a copy of an image", error))?;
        Ok((order, Arc::new(fd)))
    }

    fn resumption(&self) -> Result<Option<Resumption>> {
        let image = self.open().context("cannot open the seed")?;
        let resumption = image.resumption().context("cannot resume the seed here")?;
        Ok(Some(resumption))
    }
}
