//! What a seed's process touched between its birth and its freezing: what its continuations are likely to touch first.

use core::ffi::{c_int, c_void};

use mitosis_core::wire::fork::{count, MAX_RECENT};

use super::ffi;
use crate::errno::Errno;
use crate::memory::Table;

/// Pages of a chunk that were touched.
#[derive(Clone, Copy)]
pub struct Touched {
    /// The chunk's number.
    pub chunk: u64,
    /// A bit each.
    pub pages: [u64; 8],
}

/// Some chunks, those with the fewest touched pages first: data and stacks are touched page by page, where of a file the
/// kernel maps sixteen pages for one.
pub struct Recent {
    places: Table<Option<Touched>>,
}

impl Recent {
    /// The calling process's.
    pub fn of_caller() -> Result<Recent, Errno> {
        let mut recent = Recent {
            places: Table::try_new(MAX_RECENT, |_| Ok(None))?,
        };
        let context = core::ptr::from_mut(&mut recent).cast();
        // SAFETY: `take` knows what the context is, which lives during the call; a process calls this.
        Errno::check(unsafe { ffi::mitosis_each_recent(take, context) })?;
        Ok(recent)
    }

    /// Puts a chunk in its place. Where there is none left, the one with the most pages goes.
    fn insert(&mut self, touched: Touched) {
        let mut pages = count(&touched.pages);
        let mut moved = Some(touched);
        for place in self.places.iter_mut() {
            let there = place.as_ref().map(|there| count(&there.pages));
            if there.is_none_or(|there| there > pages) {
                core::mem::swap(place, &mut moved);
                match there {
                    Some(there) => pages = there,
                    None => return,
                }
            }
        }
    }

    /// Those that there are.
    pub fn iter(&self) -> impl Iterator<Item = &Touched> {
        self.places.iter().flatten()
    }
}

/// # Safety
/// `context` is a `Recent`; `touched` has eight words.
unsafe extern "C" fn take(context: *mut c_void, chunk: u64, touched: *const u64) -> c_int {
    // SAFETY: by this function's contract.
    let (recent, pages) = unsafe { (&mut *context.cast::<Recent>(), *touched.cast::<[u64; 8]>()) };
    recent.insert(Touched { chunk, pages });
    0
}
