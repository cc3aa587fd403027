//! The kernel's own mappings, vvar and vdso: a program calls into them where they are, so a child
//! needs its own where the seed had them (libmitosis.md §4).

use std::fs;
use std::ptr;

use mitosis_core::descriptor::{Descriptor, VmaKind};

use crate::error::Error;
use crate::system::{checked, errno};

/// More than any kernel has.
const MOST: usize = 8;

/// A mapping that moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Move {
    from: u64,
    to: u64,
    len: u64,
}

/// Moves the kernel's own mappings to where the seed had them.
#[derive(Debug)]
pub struct Relocation {
    moves: [Move; MOST],
    count: usize,
}

impl Relocation {
    /// Compares this process's mappings with the seed's: the same kernel makes the same, in the same
    /// order, anywhere.
    pub(super) fn new(descriptor: &Descriptor<'_>) -> Result<Self, Error> {
        let special = |vma: &mitosis_core::descriptor::Vma<'_>| vma.kind == VmaKind::Special;
        let there = descriptor.vmas().filter(special);
        Self::of(own()?, there.map(|vma| (vma.start, vma.end - vma.start)))
    }

    fn of(own: Vec<(u64, u64)>, there: impl Iterator<Item = (u64, u64)>) -> Result<Self, Error> {
        let mut moves = [Move::default(); MOST];
        let mut places = moves.iter_mut();
        let mut own = own.into_iter();
        let mut count = 0;
        for (to, len) in there {
            match (own.next(), places.next()) {
                (Some((from, same)), Some(place)) if same == len => *place = Move { from, to, len },
                _ => return Err(Error::OtherVdso),
            }
            count += 1;
        }
        match own.next() {
            Some(_) => Err(Error::OtherVdso),
            None => Ok(Self { moves, count }),
        }
    }

    fn moves(&self) -> &[Move] {
        self.moves.get(..self.count).unwrap_or_default()
    }

    /// Moves them. If that fails, they are where they were.
    ///
    /// Afterwards glibc's pointers to the vdso's functions, those for the time, point nowhere.
    pub(super) fn run(&mut self) -> Result<(), Error> {
        if self.moves().iter().all(|one| one.from == one.to) {
            return Ok(());
        }
        let before = self.moves;
        let moved = self
            .make_way()
            .and_then(|()| self.reserve())
            .and_then(|()| self.finish());
        if moved.is_err() {
            for (one, was) in self.moves().iter().zip(&before) {
                if one.from != was.from {
                    // Nothing has been mapped since where it was.
                    let _ = remap(one.from, was.from, one.len);
                }
            }
            self.moves = before;
        }
        moved
    }

    /// Moves them out of the way where they are in each other's.
    fn make_way(&mut self) -> Result<(), Error> {
        let moves = self.moves();
        let overlap = moves.iter().any(|one| {
            moves
                .iter()
                .any(|other| one.from < other.to + other.len && other.to < one.from + one.len)
        });
        if !overlap {
            return Ok(());
        }
        let total = moves.iter().map(|one| one.len).sum();
        let first = map_anywhere(total)?;
        let in_the_way = moves
            .iter()
            .any(|one| first < one.to + one.len && one.to < first + total);
        let mut aside = first;
        if in_the_way {
            let second = map_anywhere(total);
            unmap(first, total);
            aside = second?;
        }
        let count = self.count;
        for one in self.moves.iter_mut().take(count) {
            remap(one.from, aside, one.len)?;
            one.from = aside;
            aside += one.len;
        }
        Ok(())
    }

    /// Makes sure that nothing of this process's is where they go, by mapping there.
    fn reserve(&self) -> Result<(), Error> {
        for (index, one) in self.moves().iter().enumerate() {
            // SAFETY: maps only where nothing is mapped.
            let got = unsafe {
                libc::mmap(
                    ptr::without_provenance_mut(one.to as usize),
                    one.len as usize,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE
                        | libc::MAP_ANONYMOUS
                        | libc::MAP_NORESERVE
                        | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            if got.addr() as u64 == one.to {
                continue;
            }
            let error = match errno() {
                libc::EEXIST => Error::InTheWay { at: one.to },
                errno => Error::System {
                    what: "reserving the vdso's place",
                    errno,
                },
            };
            for reserved in self.moves().iter().take(index) {
                unmap(reserved.to, reserved.len);
            }
            return Err(error);
        }
        Ok(())
    }

    /// Moves each to its place, which is reserved.
    fn finish(&mut self) -> Result<(), Error> {
        let count = self.count;
        for one in self.moves.iter_mut().take(count) {
            remap(one.from, one.to, one.len)?;
            one.from = one.to;
        }
        Ok(())
    }
}

/// Start and length of each of this process's own, by address.
fn own() -> Result<Vec<(u64, u64)>, Error> {
    let maps = fs::read_to_string("/proc/self/maps").map_err(|error| Error::System {
        what: "reading /proc/self/maps",
        errno: error.raw_os_error().unwrap_or(libc::EIO),
    })?;
    Ok(maps.lines().filter_map(special).collect())
}

/// Start and length of the mapping of a line of `/proc/self/maps`, if it is one of the kernel's own.
fn special(line: &str) -> Option<(u64, u64)> {
    let name = line.split_ascii_whitespace().nth(5)?;
    if name != "[vdso]" && !name.starts_with("[vvar") {
        return None;
    }
    let (start, end) = line.split_ascii_whitespace().next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

fn map_anywhere(len: u64) -> Result<u64, Error> {
    // SAFETY: maps where the kernel finds room.
    let got = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if got == libc::MAP_FAILED {
        return Err(Error::System {
            what: "mapping room for the vdso",
            errno: errno(),
        });
    }
    Ok(got.addr() as u64)
}

/// Unmaps what `map_anywhere` or `reserve` mapped, which nobody else knows.
fn unmap(start: u64, len: u64) {
    // SAFETY: by what this function is for.
    unsafe { libc::munmap(ptr::without_provenance_mut(start as usize), len as usize) };
}

/// Moves one of the kernel's own mappings over a reservation, or back to where it was.
fn remap(from: u64, to: u64, len: u64) -> Result<(), Error> {
    // SAFETY: what is at `to` is a reservation, or nothing. Nobody calls into what moves until it is
    // where the seed knows it: this library makes system calls directly, and asks nobody for the
    // time.
    let got = unsafe {
        libc::mremap(
            ptr::without_provenance_mut(from as usize),
            len as usize,
            len as usize,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            ptr::without_provenance_mut::<libc::c_void>(to as usize),
        )
    };
    let failed = if got == libc::MAP_FAILED { -1 } else { 0 };
    checked("moving the vdso", failed).map(|_| ())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Runs `test` in a copy of the process, which it may spoil, and expects that it is true.
    pub(crate) fn in_a_child(test: impl FnOnce() -> bool) {
        // SAFETY: the copy has one thread, and glibc's fork keeps its allocator usable.
        unsafe {
            let pid = libc::fork();
            if pid == 0 {
                libc::alarm(20);
                libc::_exit(if test() { 0 } else { 1 });
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(pid, &mut status, 0), pid);
            assert_eq!(status, 0, "the copy failed");
        }
    }

    /// Where so much can be mapped.
    fn room(len: u64) -> u64 {
        let at = map_anywhere(len).unwrap();
        unmap(at, len);
        at
    }

    fn total(own: &[(u64, u64)]) -> u64 {
        own.iter().map(|(_, len)| len).sum()
    }

    /// Each after the other from `at`.
    fn laid_out(own: &[(u64, u64)], at: u64) -> Vec<(u64, u64)> {
        let mut at = at;
        own.iter()
            .map(|(_, len)| {
                let start = at;
                at += len;
                (start, *len)
            })
            .collect()
    }

    #[test]
    fn lines_of_maps() {
        let vdso =
            "7ffd0a5f2000-7ffd0a5f4000 r-xp 00000000 00:00 0                          [vdso]";
        assert_eq!(special(vdso), Some((0x7ffd_0a5f_2000, 0x2000)));
        assert_eq!(
            special(&vdso.replace("[vdso]", "[vvar_vclock]")),
            Some((0x7ffd_0a5f_2000, 0x2000))
        );
        assert_eq!(special(&vdso.replace("[vdso]", "[stack]")), None);
        assert_eq!(special(&vdso.replace("[vdso]", "")), None);
        assert!(own().unwrap().len() >= 2);
    }

    #[test]
    fn they_move_to_where_there_is_room() {
        in_a_child(|| {
            let before = own().unwrap();
            let to = laid_out(&before, room(total(&before) + 0x10_0000) + 0x1000);
            let mut relocation = Relocation::of(before, to.clone().into_iter()).unwrap();
            relocation.run().is_ok() && own().unwrap() == to
        });
    }

    /// By one page, so that each lies in the way of the next.
    #[test]
    fn they_move_over_themselves() {
        in_a_child(|| {
            let before = own().unwrap();
            // Far from everything first, so that there is room on both sides.
            let far = laid_out(&before, room(total(&before) + 0x40_0000) + 0x20_0000);
            if Relocation::of(before, far.clone().into_iter())
                .unwrap()
                .run()
                .is_err()
            {
                return false;
            }
            [far[0].0 + 0x1000, far[0].0 - 0x1000]
                .into_iter()
                .all(|at| {
                    let now = own().unwrap();
                    let to = laid_out(&now, at);
                    let moved = Relocation::of(now, to.clone().into_iter()).unwrap().run();
                    moved.is_ok() && own().unwrap() == to
                })
        });
    }

    #[test]
    fn what_is_in_the_way_stays_and_is_named() {
        in_a_child(|| {
            let before = own().unwrap();
            let taken = map_anywhere(total(&before)).unwrap();
            let to = laid_out(&before, taken);
            let mut relocation = Relocation::of(before.clone(), to.into_iter()).unwrap();
            relocation.run() == Err(Error::InTheWay { at: taken }) && own().unwrap() == before
        });
        // Also where they had been put aside before.
        in_a_child(|| {
            let before = own().unwrap();
            let far = laid_out(&before, room(total(&before) + 0x40_0000) + 0x20_0000);
            Relocation::of(before, far.clone().into_iter())
                .unwrap()
                .run()
                .unwrap();
            let last = far[far.len() - 1];
            // SAFETY: maps behind the last of them, where nothing is.
            let blocker = unsafe {
                libc::mmap(
                    ptr::without_provenance_mut((last.0 + last.1) as usize),
                    0x1000,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            let to = laid_out(&far, far[0].0 + 0x1000);
            let moved = Relocation::of(own().unwrap(), to.into_iter())
                .unwrap()
                .run();
            blocker.addr() as u64 == last.0 + last.1
                && matches!(moved, Err(Error::InTheWay { .. }))
                && own().unwrap() == far
        });
    }

    #[test]
    fn others_are_refused() {
        let own = own().unwrap();
        let others = [
            own[1..].to_vec(),
            [own.clone(), vec![(0x1000, 0x1000)]].concat(),
            own.iter()
                .map(|(start, len)| (*start, len + 0x1000))
                .collect(),
        ];
        for other in others {
            let relocation = Relocation::of(own.clone(), other.into_iter());
            assert_eq!(relocation.unwrap_err(), Error::OtherVdso);
        }
        let same = Relocation::of(own.clone(), own.into_iter()).unwrap().run();
        assert_eq!(same, Ok(()));
    }
}
