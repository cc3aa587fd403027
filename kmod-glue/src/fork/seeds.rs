//! The table that other machines find this one's seeds in, and in which a process that prepares itself meets its copy.
//!
//! A place is somebody's from when a seed is first heard of: its parent announces it (`PREPARE`), or its process begins to
//! freeze, whichever comes first. It has its name then, and whoever comes second finds it by the token.

use mitosis_core::wire::fork::{SeedName, Status};
use subtle::ConstantTimeEq;

use super::process::Process;
use super::seed::{Lease, Origin, Seed, Title};
use crate::errno::Errno;
use crate::lock::{Mutex, Shared};
use crate::memory::Table;
use crate::thread::random;

/// Seeds that a machine keeps: each is a process, and a machine has some tens of thousands of those at most.
const MAX_SEEDS: usize = 1024;

/// Whether whoever asks by this name may resume the seed with this capability.
pub fn entitles(name: &SeedName, capability: &[u8; 16]) -> bool {
    // An administrator of a machine that belongs to the cluster may resume any seed; that the machine does belong, its
    // session shows (wire.md §7.5).
    name.by_id.get() == 1 || bool::from(capability.ct_eq(&name.capability))
}

/// A seed on its way.
struct Coming {
    origin: Origin,
    capability: [u8; 16],
    uid: u32,
    /// The process that is to freeze, if its parent has said which.
    announced: Option<Process>,
    /// Whether it has begun to.
    freezing: bool,
    lease: Lease,
    /// Whether nobody wants it any more.
    called_off: bool,
}

impl Coming {
    /// Whether no process will freeze here any more.
    fn is_lost(&self) -> bool {
        let announced = self.announced.as_ref();
        !self.freezing && announced.is_some_and(|process| !process.is_alive())
    }
}

enum Held {
    Nobody,
    Coming(Coming),
    Seed(Shared<Seed>),
}

struct Place {
    generation: u32,
    held: Held,
}

impl Place {
    fn seed(&self) -> Option<&Shared<Seed>> {
        match &self.held {
            Held::Seed(seed) => Some(seed),
            _ => None,
        }
    }

    fn coming(&mut self) -> Option<&mut Coming> {
        match &mut self.held {
            Held::Coming(coming) => Some(coming),
            _ => None,
        }
    }

    /// Forgets a seed that will not come.
    fn forget_lost(&mut self) {
        if self.coming().is_some_and(|coming| coming.is_lost()) {
            self.held = Held::Nobody;
        }
    }
}

/// What a parent finds that announces a seed.
pub enum Announced {
    /// The seed.
    There(Shared<Seed>),
    /// The name that it will have. Whether its process has begun to freeze.
    Coming(Title, bool),
}

/// The seeds of this machine.
pub struct Seeds {
    places: Mutex<Table<Place>>,
}

impl Seeds {
    /// None.
    pub fn new() -> Result<Seeds, Errno> {
        Ok(Seeds {
            places: Mutex::new(Table::try_new(MAX_SEEDS, |_| {
                Ok(Place {
                    generation: 0,
                    held: Held::Nobody,
                })
            })?)?,
        })
    }

    /// For a parent whose copy `process` is to freeze: the seed, or the name that it will have. `ECANCELED` where it was
    /// called off, `EBUSY` where the process is to become another seed.
    pub fn announce(
        &self,
        origin: Origin,
        uid: u32,
        process: Process,
        lease: Lease,
    ) -> Result<Announced, Errno> {
        let mut places = self.places.lock();
        for (id, place) in places.iter_mut().enumerate() {
            let generation = place.generation;
            match &mut place.held {
                Held::Seed(seed) if seed.origin == origin => {
                    process.hide_from_wait();
                    seed.let_to(lease);
                    return Ok(Announced::There(seed.clone()));
                }
                Held::Coming(coming) if coming.origin == origin => {
                    if coming.called_off {
                        return Err(Errno::CANCELED);
                    }
                    process.hide_from_wait();
                    coming.announced = Some(process);
                    coming.lease = lease;
                    let title = Title {
                        id: id as u32,
                        generation,
                        capability: coming.capability,
                    };
                    return Ok(Announced::Coming(title, coming.freezing));
                }
                Held::Coming(coming) if coming.announced.as_ref() == Some(&process) => {
                    return Err(Errno::BUSY);
                }
                _ => {}
            }
        }
        process.hide_from_wait();
        let title = admit(&mut places, |capability| Coming {
            origin,
            capability,
            uid,
            announced: Some(process),
            freezing: false,
            lease,
            called_off: false,
        })?;
        Ok(Announced::Coming(title, false))
    }

    /// For a process that freezes: its place, and the name that it will have. `ECANCELED` where nobody wants it any more.
    pub fn begin(&self, origin: Origin, uid: u32) -> Result<Reserved<'_>, Errno> {
        let mut places = self.places.lock();
        let found = places.iter_mut().enumerate().find_map(|(id, place)| {
            let generation = place.generation;
            let coming = place.coming()?;
            (coming.origin == origin && !coming.freezing).then_some((id, generation))
        });
        let Some((id, generation)) = found else {
            let title = admit(&mut places, |capability| Coming {
                origin,
                capability,
                uid,
                announced: None,
                freezing: true,
                lease: Lease::NONE,
                called_off: false,
            })?;
            return Ok(Reserved { seeds: self, title });
        };
        let place = places.get_mut(id).ok_or(Errno::INVALID)?;
        let coming = place.coming().ok_or(Errno::INVALID)?;
        if coming.called_off {
            place.held = Held::Nobody;
            return Err(Errno::CANCELED);
        }
        coming.freezing = true;
        let title = Title {
            id: id as u32,
            generation,
            capability: coming.capability,
        };
        Ok(Reserved { seeds: self, title })
    }

    /// For a parent that waits for its copy: the seed, if it is there.
    pub fn claim(&self, origin: Origin, lease: Lease) -> Option<Shared<Seed>> {
        let places = self.places.lock();
        let mut all = places.iter().filter_map(Place::seed);
        let seed = all.find(|seed| seed.origin == origin)?;
        seed.let_to(lease);
        Some(seed.clone())
    }

    fn with<R>(&self, id: u32, f: impl FnOnce(&mut Place) -> R) -> Option<R> {
        self.places.lock().get_mut(id as usize).map(f)
    }

    /// The seed with this id, if its generation is `generation`, or if that is 0.
    pub fn find(&self, id: u32, generation: u32) -> Option<Shared<Seed>> {
        self.with(id, |place| {
            let seed = place.seed();
            seed.filter(|seed| generation == 0 || seed.generation == generation)
                .cloned()
        })
        .flatten()
    }

    /// What becomes of a seed on its way with this id and generation, or any if that is 0; nothing if there is none that
    /// is still wanted and may come.
    fn with_coming<R>(
        &self,
        id: u32,
        generation: u32,
        f: impl FnOnce(&mut Coming) -> R,
    ) -> Option<R> {
        self.with(id, |place| {
            place.forget_lost();
            if generation != 0 && generation != place.generation {
                return None;
            }
            place.coming().filter(|coming| !coming.called_off).map(f)
        })
        .flatten()
    }

    /// The seed that is named, if whoever names it may resume it.
    pub fn entitled(&self, name: &SeedName) -> Result<Shared<Seed>, Status> {
        let (id, generation) = (name.id.get(), name.generation.get());
        let capability = match self.find(id, generation) {
            Some(seed) if entitles(name, &seed.capability) => return Ok(seed),
            Some(_) => return Err(Status::NotEntitled),
            None => self.with_coming(id, generation, |coming| coming.capability),
        };
        // It may have frozen between the two looks: who may resume it asks again, and finds it.
        Err(match capability {
            Some(capability) if entitles(name, &capability) => Status::NotYet,
            Some(_) => Status::NotEntitled,
            None => Status::NoSuchSeed,
        })
    }

    /// Through which file a seed on its way is made, and by which user.
    pub fn coming(&self, id: u32, generation: u32) -> Option<(u64, u32)> {
        self.with_coming(id, generation, |coming| (coming.origin.owner, coming.uid))
    }

    /// Sees to it that a seed on its way never comes; whether there is one.
    pub fn call_off(&self, id: u32, generation: u32) -> bool {
        let called_off = self.with_coming(id, generation, |coming| coming.called_off = true);
        called_off.is_some()
    }

    /// As [`Seeds::call_off`], with all of an open file that have no lease.
    pub fn call_off_all(&self, owner: u64) {
        for place in self.places.lock().iter_mut() {
            let coming = place.coming();
            if let Some(coming) = coming.filter(|coming| coming.origin.owner == owner) {
                coming.called_off |= !coming.lease.leased;
            }
            place.forget_lost();
        }
    }

    /// Forgets those on their way of an open file that is gone for good, so that nobody can freeze through it.
    pub fn forget_coming(&self, owner: u64) {
        for place in self.places.lock().iter_mut() {
            if place
                .coming()
                .is_some_and(|coming| coming.origin.owner == owner)
            {
                place.held = Held::Nobody;
            }
        }
    }

    /// The first seed from `from` on that `wanted` picks.
    pub fn next(
        &self,
        from: usize,
        mut wanted: impl FnMut(&Seed) -> bool,
    ) -> Option<(usize, Shared<Seed>)> {
        let places = self.places.lock();
        let mut all = places.iter().enumerate().skip(from);
        all.find_map(|(index, place)| {
            let seed = place.seed().filter(|seed| wanted(seed))?;
            Some((index, seed.clone()))
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        let places = self.places.lock();
        places.iter().filter_map(Place::seed).count()
    }
}

/// Gives a seed on its way a place, and a name.
fn admit(places: &mut [Place], coming: impl FnOnce([u8; 16]) -> Coming) -> Result<Title, Errno> {
    let free = |place: &Place| matches!(place.held, Held::Nobody);
    let mut id = places.iter().position(free);
    if id.is_none() {
        places.iter_mut().for_each(Place::forget_lost);
        id = places.iter().position(free);
    }
    let id = id.ok_or(Errno::NO_ROOM)?;
    let place = places.get_mut(id).ok_or(Errno::NO_ROOM)?;
    place.generation = match place.generation {
        // After a restart of the module, nobody's old generation is met again, but for one in four billion.
        0 => (random() as u32).max(1),
        generation => generation.wrapping_add(1).max(1),
    };
    let mut capability = [0; 16];
    let words = [random(), random()];
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    for (place, byte) in capability.iter_mut().zip(bytes) {
        *place = byte;
    }
    place.held = Held::Coming(coming(capability));
    Ok(Title {
        id: id as u32,
        generation: place.generation,
        capability,
    })
}

/// A freezing process's place in the table, free again when dropped.
pub struct Reserved<'s> {
    seeds: &'s Seeds,
    /// The seed's name.
    pub title: Title,
}

impl Reserved<'_> {
    /// Lets others find the seed. `ECANCELED` where nobody wants it any more.
    pub fn publish(&self, seed: Shared<Seed>) -> Result<(), Errno> {
        let published = self.seeds.with(self.title.id, |place| {
            let coming = place.coming().ok_or(Errno::INVALID)?;
            if coming.called_off {
                return Err(Errno::CANCELED);
            }
            if coming.announced.is_some() {
                seed.let_to(coming.lease);
            }
            place.held = Held::Seed(seed);
            Ok(())
        });
        published.unwrap_or(Err(Errno::INVALID))
    }

    /// Whether its parent has been given its name already.
    pub fn is_announced(&self) -> bool {
        let announced = self.seeds.with(self.title.id, |place| {
            place
                .coming()
                .is_some_and(|coming| coming.announced.is_some())
        });
        announced.unwrap_or(false)
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let held = self.seeds.with(self.title.id, |place| {
            core::mem::replace(&mut place.held, Held::Nobody)
        });
        // Outside the lock, as the last owner revokes regions.
        if let Some(Held::Seed(seed)) = held {
            seed.revoke();
        }
    }
}
