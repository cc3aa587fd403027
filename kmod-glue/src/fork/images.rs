//! The images that are open, so that all who resume the same seed share its pages.

use mitosis_core::wire::fork::SeedName;

use super::image::Image;
use super::lost::PageError;
use super::machine::Machine;
use super::Fork;
use crate::errno::Errno;
use crate::lock::{Mutex, Shared};
use crate::memory::Table;

/// Seeds of other machines that are known at one time.
const MAX_IMAGES: usize = 256;

struct Entry {
    image: Shared<Image>,
    /// Open files of it.
    files: u32,
}

/// All of them.
pub struct Images {
    list: Mutex<Table<Option<Entry>>>,
}

impl Images {
    /// None.
    pub fn new() -> Result<Images, Errno> {
        Ok(Images {
            list: Mutex::new(Table::try_new(MAX_IMAGES, |_| Ok(None))?)?,
        })
    }

    /// The image of a seed, for one more file, to be given back by [`Images::close`]. Who opens one that is open already
    /// must show the capability all the same, or be an administrator.
    pub fn open(
        &self,
        fork: &Fork,
        machine: Shared<Machine>,
        name: &SeedName,
        prefetch: u32,
        private: bool,
    ) -> Result<Shared<Image>, PageError> {
        // The seed's machine decides each time whether the seed is there and the caller is entitled.
        let fresh = Shared::new(Image::fetch(
            fork,
            machine,
            name,
            prefetch as usize,
            private,
        )?)?;
        let mut list = self.list.lock();
        if !private {
            let known = list.iter_mut().flatten().find(|entry| {
                entry.image.machine.same(&fresh.machine)
                    && entry.image.name.id == fresh.name.id
                    && entry.image.name.generation == fresh.name.generation
                    && entry.image.bytes() == fresh.bytes()
            });
            if let Some(entry) = known {
                entry.files += 1;
                return Ok(entry.image.clone());
            }
        }
        let place = list.iter_mut().find(|place| place.is_none());
        *place.ok_or(PageError::NoMemory)? = Some(Entry {
            image: fresh.clone(),
            files: 1,
        });
        drop(list);
        // A child can do without.
        let _ = fresh.warm(fork);
        Ok(fresh)
    }

    /// One file less.
    pub fn close(&self, fork: &Fork, image: Shared<Image>) {
        let mut list = self.list.lock();
        let place = list
            .iter_mut()
            .find(|place| place.as_ref().is_some_and(|entry| entry.image.same(&image)));
        let mut last = None;
        if let Some(place) = place {
            if let Some(entry) = place.as_mut() {
                entry.files = entry.files.saturating_sub(1);
                if entry.files == 0 {
                    last = place.take();
                }
            }
        }
        drop(list);
        if last.is_some() {
            fork.counters
                .cached_pages
                .subtract(image.cached_pages() as u64);
        }
    }

    /// Lets go of all connections.
    pub fn settle(&self) {
        for index in 0..MAX_IMAGES {
            let image = {
                let list = self.list.lock();
                let entry = list.get(index).and_then(Option::as_ref);
                entry.map(|entry| entry.image.clone())
            };
            if let Some(image) = image {
                image.settle_all();
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.list.lock().iter().flatten().count()
    }
}
