//! The child's machine: a seed's descriptor, fetched, and checked against this machine.

use std::os::fd::RawFd;

use mitosis_core::descriptor::{verify, Capability, Descriptor, SeedId as Name};

use crate::device::{of_seed, Device};
use crate::error::Error;
use crate::resume::Resumption;
use crate::system::{close, ioctl};
use crate::uapi::{self, Machine, SeedId};

/// First try for a descriptor's length in bytes: a small program's fits.
const FIRST_ROOM: usize = 64 << 10;

/// How a seed is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Fetches all pages at once.
    pub eager: bool,
    /// Gives each child pages of its own, instead of one copy until it writes.
    pub private: bool,
    /// How many pages are read with one that was touched; 0: the module's default.
    pub prefetch: u32,
}

/// A seed of another machine, or of this one, as this process sees it.
#[derive(Debug)]
pub struct Image {
    pub(crate) fd: RawFd,
    bytes: Vec<u8>,
}

impl Image {
    /// Fetches the descriptor of a seed. Without its capability, root of an authenticated machine may
    /// do so, and with a generation of 0 whichever seed has the id.
    pub fn open(
        machine: Machine,
        seed: SeedId,
        capability: Option<Capability>,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        let device = Device::open()?;
        let mut bytes = vec![0; FIRST_ROOM];
        let mut flags = 0;
        if options.eager {
            flags |= uapi::OPEN_EAGER;
        }
        if options.private {
            flags |= uapi::OPEN_PRIVATE;
        }
        loop {
            let room = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let mut call = uapi::Open {
                machine,
                seed,
                capability: capability.map_or([0; 16], |capability| capability.0),
                descriptor: bytes.as_mut_ptr() as u64,
                descriptor_room: room,
                descriptor_len: 0,
                flags,
                prefetch: options.prefetch,
            };
            // SAFETY: the structure is the one that the call takes; `bytes` has as much room as it says.
            let opened = unsafe { ioctl(device.fd, uapi::OPEN, &mut call) };
            match opened {
                Ok(fd) => {
                    bytes.truncate(call.descriptor_len as usize);
                    let image = Self { fd, bytes };
                    image.check()?;
                    return Ok(image);
                }
                // A seed's descriptor does not change, so the second try fits.
                Err(libc::ENOBUFS) if call.descriptor_len > room => {
                    bytes.resize(call.descriptor_len as usize, 0);
                }
                Err(libc::ENOBUFS | libc::ENOMEM) => return Err(Error::Exhausted),
                Err(errno @ (libc::ENOENT | libc::EACCES | libc::EPERM | libc::EINPROGRESS)) => {
                    return Err(of_seed("opening a seed", seed, errno));
                }
                Err(errno @ (libc::EINVAL | libc::EFAULT)) => {
                    return Err(Error::System {
                        what: "opening a seed",
                        errno,
                    });
                }
                Err(errno) => return Err(Error::of_machine(machine, errno)),
            }
        }
    }

    fn check(&self) -> Result<(), Error> {
        verify([&self.bytes[..]]).map_err(Error::Descriptor)?;
        Descriptor::parse(&self.bytes).map_err(Error::Descriptor)?;
        Ok(())
    }

    /// What the seed is.
    pub fn descriptor(&self) -> Descriptor<'_> {
        match Descriptor::parsed_before(&self.bytes) {
            Ok(descriptor) => descriptor,
            Err(error) => unreachable!("it was checked when it was opened: {error}"),
        }
    }

    /// The descriptor's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Which seed it is.
    pub fn seed(&self) -> Name {
        self.descriptor().identity().seed
    }

    /// The image's file descriptor, for a process that another one resumes it in.
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Checks that this machine can continue the seed, and makes what it takes.
    pub fn resumption(&self) -> Result<Resumption, Error> {
        Resumption::new(&self.descriptor())
    }
}

impl Drop for Image {
    /// Children go on: their memory keeps the image.
    fn drop(&mut self) {
        close(self.fd);
    }
}
