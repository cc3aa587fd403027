//! Addresses that a caller may give: of memory in every state, and of none.

use rand::rngs::SmallRng;
use rand::Rng;

/// In the kernel, where its memory is mapped; and no address at all.
const KERNEL: usize = 0xffff_8880_0000_1000;
const NO_ADDRESS: usize = 0x0000_8000_0000_0000;
const PAGE: usize = 4096;
/// Longest argument of a call, with some room.
const LEN: usize = 256;

/// Memory of one thread: a page to write, one to read only, and one that is not to be touched, each behind the other.
pub struct Pointers {
    pages: usize,
}

impl Pointers {
    /// New ones.
    pub fn new() -> Result<Self, std::io::Error> {
        // SAFETY: asks for new memory anywhere.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                3 * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let pages = memory as usize;
        for (page, protection) in [(1, libc::PROT_READ), (2, libc::PROT_NONE)] {
            // SAFETY: the pages are this one's own, and nothing refers to what lies there.
            unsafe { libc::mprotect((pages + page * PAGE) as *mut libc::c_void, PAGE, protection) };
        }
        Ok(Self { pages })
    }

    /// The address of a copy of `argument`, as often as not; otherwise one that cannot be read, or written, or not all of it.
    pub fn of(&self, argument: &[u8], random: &mut SmallRng) -> usize {
        let good = self.pages + (random.next_u32() as usize % 8) * LEN;
        self.write(good, argument);
        match random.next_u32() % 20 {
            0 => 0,
            1 => KERNEL,
            2 => NO_ADDRESS - 8,
            3 => NO_ADDRESS,
            4 => usize::MAX - 7,
            // Read-only, and of that what is cut off by what cannot be read.
            5 => self.pages + PAGE,
            6 => self.pages + 2 * PAGE - random_len(random, argument.len()),
            7 => self.pages + 2 * PAGE,
            // Written at its end only in part.
            8 => {
                let place = self.pages + PAGE - random_len(random, argument.len());
                let fits = &argument[..argument.len().min(self.pages + PAGE - place)];
                self.write(place, fits);
                place
            }
            9 => {
                let place = good + 1 + random.next_u32() as usize % 7;
                self.write(place, argument);
                place
            }
            _ => good,
        }
    }

    /// Whether it is in these pages, or in no process's.
    #[cfg(test)]
    pub fn may_be_written(&self, address: usize) -> bool {
        (self.pages..self.pages + 3 * PAGE).contains(&address)
            || !(PAGE..NO_ADDRESS - PAGE).contains(&address)
    }

    fn write(&self, to: usize, bytes: &[u8]) {
        debug_assert!(to >= self.pages && to + bytes.len() <= self.pages + PAGE);
        // SAFETY: `to` lies in the first page, as callers see to; what else is there is bytes that nobody refers to.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) }
    }
}

/// At least one byte of them.
fn random_len(random: &mut SmallRng, len: usize) -> usize {
    1 + random.next_u32() as usize % len.max(1)
}
