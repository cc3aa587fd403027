//! What becomes of the seed's open files (libmitosis.md §3).

use std::ffi::{CStr, CString};
use std::os::fd::RawFd;

use mitosis_core::descriptor::{Descriptor, FileKind, OpenFile};

use crate::error::Error;
use crate::system::{checked, close, errno};

/// Standard input, output and error are the resumer's.
const STANDARD: u32 = 3;

/// The character devices that are the same on every machine, and the terminal, which is whichever
/// the child has.
const DEVICES: [&[u8]; 6] = [
    b"/dev/null",
    b"/dev/zero",
    b"/dev/full",
    b"/dev/random",
    b"/dev/urandom",
    b"/dev/tty",
];

/// What is in these says something about one kernel, not about a file.
const KERNELS_OWN: [&[u8]; 2] = [b"/proc/", b"/sys/"];

/// What becomes of an open file of the seed's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is the resumer's file of the same number.
    Resumers,
    /// It is opened again, by its path, at its position.
    Reopened,
    /// It stays closed: a pipe, a socket, a file without a path, another machine's device.
    Closed,
}

/// What becomes of an open file.
pub fn fate(file: &OpenFile<'_>) -> Fate {
    if file.fd < STANDARD {
        return Fate::Resumers;
    }
    let Some(path) = file.path.filter(|path| path.starts_with(b"/")) else {
        return Fate::Closed;
    };
    let carried = match file.kind {
        FileKind::Regular | FileKind::Directory => {
            !KERNELS_OWN.iter().any(|own| path.starts_with(own))
        }
        FileKind::CharDevice => DEVICES.contains(&path),
        FileKind::Pipe | FileKind::Socket | FileKind::Other => false,
    };
    if carried {
        Fate::Reopened
    } else {
        Fate::Closed
    }
}

/// A file that is opened again.
#[derive(Debug)]
struct Wanted {
    /// The number that it will have.
    target: RawFd,
    path: CString,
    kind: libc::mode_t,
    flags: i32,
    position: i64,
    close_on_exec: bool,
    /// The number that it has for now, or -1.
    opened: RawFd,
}

impl Wanted {
    fn of(file: &OpenFile<'_>) -> Option<Self> {
        if fate(file) != Fate::Reopened {
            return None;
        }
        Some(Self {
            target: RawFd::try_from(file.fd).ok()?,
            path: CString::new(file.path?).ok()?,
            kind: match file.kind {
                FileKind::Regular => libc::S_IFREG,
                FileKind::Directory => libc::S_IFDIR,
                _ => libc::S_IFCHR,
            },
            flags: file.status_flags as i32,
            position: file.position as i64,
            close_on_exec: file.close_on_exec,
            opened: -1,
        })
    }

    /// Opens the file under any number but those of the standard streams.
    fn open(&self) -> Result<RawFd, i32> {
        self.check_kind(|found| {
            // SAFETY: the path is a C string, and `found` valid during the call.
            unsafe { libc::stat(self.path.as_ptr(), found) }
        })?;
        let flags = self.flags | libc::O_CLOEXEC | libc::O_NOCTTY;
        // SAFETY: the path is a C string; the flags create nothing, as the core lets none pass that do.
        let fd = unsafe { libc::open(self.path.as_ptr(), flags) };
        if fd < 0 {
            return Err(errno());
        }
        let result = self
            // SAFETY: `found` is valid during the call.
            .check_kind(|found| unsafe { libc::fstat(fd, found) })
            .and_then(|()| self.seek(fd));
        if let Err(errno) = result {
            close(fd);
            return Err(errno);
        }
        Ok(fd)
    }

    /// Whatever is there now must be what the seed had: opening something else may do something.
    fn check_kind(&self, stat: impl FnOnce(&mut libc::stat) -> i32) -> Result<(), i32> {
        // SAFETY: a structure of integers, which the call fills.
        let mut found: libc::stat = unsafe { std::mem::zeroed() };
        if stat(&mut found) != 0 {
            return Err(errno());
        }
        if found.st_mode & libc::S_IFMT == self.kind {
            return Ok(());
        }
        Err(match self.kind {
            libc::S_IFDIR => libc::ENOTDIR,
            libc::S_IFCHR => libc::ENODEV,
            _ => libc::EISDIR,
        })
    }

    fn seek(&self, fd: RawFd) -> Result<(), i32> {
        let sought = self.kind == libc::S_IFREG && self.flags & libc::O_PATH == 0;
        // SAFETY: changes the position of a file that was opened just now.
        if sought && unsafe { libc::lseek(fd, self.position, libc::SEEK_SET) } < 0 {
            return Err(errno());
        }
        Ok(())
    }
}

/// The files that are opened again, by number. `open` and `place` do not allocate.
#[derive(Debug)]
pub struct Files {
    wanted: Vec<Wanted>,
    skip: bool,
    /// The image's file, if it had to get out of the way.
    moved_image: RawFd,
}

impl Files {
    /// Those of a seed.
    pub(super) fn new(descriptor: &Descriptor<'_>) -> Self {
        Self {
            wanted: descriptor
                .files()
                .filter_map(|file| Wanted::of(&file))
                .collect(),
            skip: false,
            moved_image: -1,
        }
    }

    pub(super) fn skip(&mut self) {
        self.skip = true;
    }

    /// Number and path of each file that is opened again.
    pub fn reopened(&self) -> impl Iterator<Item = (RawFd, &CStr)> {
        self.wanted
            .iter()
            .map(|wanted| (wanted.target, wanted.path.as_c_str()))
    }

    fn is_target(&self, fd: RawFd) -> bool {
        self.wanted
            .binary_search_by_key(&fd, |wanted| wanted.target)
            .is_ok()
    }

    /// Opens every file, and sees to it that neither they nor the image are in each other's places.
    /// If it fails, the process is as it was.
    pub(super) fn open(&mut self, image: &mut RawFd) -> Result<(), Error> {
        let opened = self.try_open(image);
        if opened.is_err() {
            self.give_up();
        }
        opened
    }

    fn try_open(&mut self, image: &mut RawFd) -> Result<(), Error> {
        self.check_limit()?;
        for index in 0..self.wanted.len() {
            let Some(wanted) = self.wanted.get(index) else {
                break;
            };
            let fd = wanted.target as u32;
            let opened = match wanted.open() {
                Ok(opened) => self
                    .settle(opened, wanted.target)
                    .map_err(|error| Error::File {
                        fd,
                        errno: error.errno(),
                    })?,
                Err(_) if self.skip => continue,
                Err(errno) => return Err(Error::File { fd, errno }),
            };
            if let Some(wanted) = self.wanted.get_mut(index) {
                wanted.opened = opened;
            }
        }
        if self.is_target(*image) {
            self.moved_image = self.elsewhere(*image)?;
            *image = self.moved_image;
        }
        Ok(())
    }

    /// Gives an open file a number where it is in nobody's way until it gets its own.
    fn settle(&self, opened: RawFd, target: RawFd) -> Result<RawFd, Error> {
        if opened == target || (opened >= STANDARD as RawFd && !self.is_target(opened)) {
            return Ok(opened);
        }
        let elsewhere = self.elsewhere(opened);
        close(opened);
        elsewhere
    }

    /// A copy of a file at a number that no file of the seed's has.
    fn elsewhere(&self, fd: RawFd) -> Result<RawFd, Error> {
        let mut least = STANDARD as RawFd;
        loop {
            // SAFETY: makes a new number for an open file.
            let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, least) };
            let copy = checked("copying a file descriptor", i64::from(copy))? as RawFd;
            if !self.is_target(copy) {
                return Ok(copy);
            }
            close(copy);
            least = copy.saturating_add(1);
        }
    }

    fn check_limit(&self) -> Result<(), Error> {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` is valid during the call.
        let got = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        checked("reading the limit of open files", i64::from(got))?;
        match self.wanted.last() {
            Some(last) if last.target as u64 >= limit.rlim_cur => Err(Error::FileLimit {
                fd: last.target as u32,
                limit: limit.rlim_cur,
            }),
            _ => Ok(()),
        }
    }

    /// Closes what was opened.
    pub(super) fn give_up(&mut self) {
        for wanted in &mut self.wanted {
            if wanted.opened >= 0 {
                close(wanted.opened);
                wanted.opened = -1;
            }
        }
        if self.moved_image >= 0 {
            close(self.moved_image);
            self.moved_image = -1;
        }
    }

    /// Gives each file its number, and closes all others but the standard streams and `image`.
    pub(super) fn place(&self, image: RawFd) -> Result<(), Error> {
        for wanted in self.wanted.iter().filter(|wanted| wanted.opened >= 0) {
            let placed = if wanted.opened == wanted.target {
                let flags = if wanted.close_on_exec {
                    libc::FD_CLOEXEC
                } else {
                    0
                };
                // SAFETY: changes a flag of a file that was opened for this.
                unsafe { libc::fcntl(wanted.target, libc::F_SETFD, flags) }
            } else {
                let flags = if wanted.close_on_exec {
                    libc::O_CLOEXEC
                } else {
                    0
                };
                // SAFETY: what had the number is given up: the process is to be another.
                unsafe { libc::dup3(wanted.opened, wanted.target, flags) }
            };
            checked("dup3", i64::from(placed))?;
        }
        let mut from = STANDARD;
        for wanted in self.wanted.iter().filter(|wanted| wanted.opened >= 0) {
            from = close_until(from, wanted.target as u32, image)?;
        }
        close_until(from, u32::MAX, image).map(|_| ())
    }
}

/// Closes all from `from` to before `kept`, but for the image; returns what comes after `kept`.
fn close_until(from: u32, kept: u32, image: RawFd) -> Result<u32, Error> {
    let image = image as u32;
    if (from..kept).contains(&image) {
        close_range(from, image)?;
        close_range(image.saturating_add(1), kept)?;
    } else {
        close_range(from, kept)?;
    }
    Ok(kept.saturating_add(1))
}

fn close_range(from: u32, end: u32) -> Result<(), Error> {
    if from >= end {
        return Ok(());
    }
    // SAFETY: what is closed is given up: the process is to be another.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, from, end.saturating_sub(1), 0) };
    checked("close_range", closed).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resume::special::tests::in_a_child;

    fn file(fd: u32, kind: FileKind, path: &'static [u8]) -> OpenFile<'static> {
        OpenFile {
            fd,
            kind,
            status_flags: 0,
            close_on_exec: false,
            position: 0,
            path: Some(path).filter(|path| !path.is_empty()),
        }
    }

    fn files(wanted: &[OpenFile<'_>]) -> Files {
        Files {
            wanted: wanted.iter().filter_map(Wanted::of).collect(),
            skip: false,
            moved_image: -1,
        }
    }

    fn kind_of(fd: RawFd) -> Option<libc::mode_t> {
        // SAFETY: a structure of integers, which the call fills.
        let mut found: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: `found` is valid during the call.
        let failed = unsafe { libc::fstat(fd, &mut found) };
        (failed == 0).then_some(found.st_mode & libc::S_IFMT)
    }

    #[test]
    fn fates() {
        use FileKind::*;
        for (fd, kind, path, expected) in [
            (0, Regular, &b"/etc/passwd"[..], Fate::Resumers),
            (2, Pipe, b"", Fate::Resumers),
            (3, Regular, b"/etc/passwd", Fate::Reopened),
            (3, Directory, b"/etc", Fate::Reopened),
            (3, Regular, b"", Fate::Closed),
            (3, Regular, b"relative", Fate::Closed),
            (3, Regular, b"/proc/17/maps", Fate::Closed),
            (3, CharDevice, b"/dev/null", Fate::Reopened),
            (3, CharDevice, b"/dev/mitosis", Fate::Closed),
            (3, CharDevice, b"/dev/watchdog", Fate::Closed),
            (3, Pipe, b"/tmp/fifo", Fate::Closed),
            (3, Socket, b"", Fate::Closed),
            (3, Other, b"/x", Fate::Closed),
        ] {
            assert_eq!(fate(&file(fd, kind, path)), expected, "{kind:?} {path:?}");
        }
    }

    /// The numbers are those that the opening itself would take, so that everything is in everything's way.
    #[test]
    fn files_get_their_numbers_and_the_rest_is_closed() {
        in_a_child(|| {
            // SAFETY: the copy of a process may lose its files.
            unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
            // SAFETY: the path is a C string.
            let image = unsafe { libc::open(c"/dev/full".as_ptr(), libc::O_RDWR) };
            let mut positioned = file(4, FileKind::Regular, b"/etc/passwd");
            positioned.position = 5;
            positioned.close_on_exec = true;
            let mut files = files(&[
                file(3, FileKind::Directory, b"/etc"),
                positioned,
                file(5, FileKind::CharDevice, b"/dev/null"),
                file(9, FileKind::Regular, b"/etc/group"),
            ]);
            let mut moved = image;
            if files.open(&mut moved).is_err() || files.place(moved).is_err() {
                return false;
            }
            // SAFETY: these read a file's flags and position.
            let (position, flags) = unsafe {
                (
                    libc::lseek(4, 0, libc::SEEK_CUR),
                    libc::fcntl(4, libc::F_GETFD),
                )
            };
            let open: Vec<RawFd> = (3..64).filter(|fd| kind_of(*fd).is_some()).collect();
            let mut expected = vec![3, 4, 5, 9, moved];
            expected.sort_unstable();
            open == expected
                && kind_of(3) == Some(libc::S_IFDIR)
                && kind_of(5) == Some(libc::S_IFCHR)
                && kind_of(9) == Some(libc::S_IFREG)
                && (position, flags) == (5, libc::FD_CLOEXEC)
        });
    }

    #[test]
    fn a_file_that_is_missing_or_another_is_refused_by_number() {
        let mut image = -1;
        for (kind, path, errno) in [
            (FileKind::Regular, &b"/nonexistent"[..], libc::ENOENT),
            (FileKind::Regular, b"/dev/null", libc::EISDIR),
            (FileKind::Directory, b"/etc/passwd", libc::ENOTDIR),
        ] {
            let mut files = files(&[
                file(11, FileKind::Regular, b"/etc/passwd"),
                file(77, kind, path),
            ]);
            assert_eq!(files.open(&mut image), Err(Error::File { fd: 77, errno }));
            assert!(files.wanted.iter().all(|wanted| wanted.opened == -1));
            files.skip();
            assert_eq!(files.open(&mut image), Ok(()));
            files.give_up();
        }
        let error = files(&[file(1 << 30, FileKind::Regular, b"/etc/passwd")]).open(&mut image);
        assert!(matches!(
            error,
            Err(Error::FileLimit {
                fd: 0x4000_0000,
                ..
            })
        ));
    }
}
