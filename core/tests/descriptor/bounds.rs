//! Every field at its bounds and beyond them, in the bytes as they may arrive (docs/descriptor.md §3 to §11).

use mitosis_core::descriptor::{self, *};

use super::parts::*;
use super::{REGISTERS_AT, TASK_AT, VMAS_AT};

const IDENTITY_AT: usize = 56;
const LAYOUT_AT: usize = TASK_AT - layout::LEN;
/// Of three VMAs, two chunks and a file, as [`Parts::new`] has them.
const CHUNKS_AT: usize = VMAS_AT + 3 * vma::LEN;
const FILES_AT: usize = CHUNKS_AT + 2 * chunks::LEN;
const ACTIONS_AT: usize = FILES_AT + file::LEN;

/// A descriptor of which some bytes are changed.
struct Changed(Vec<u8>);

impl Changed {
    fn new() -> Self {
        Self(Parts::new().bytes())
    }

    /// With these bytes at that place.
    fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// With this word at that place.
    fn word(self, at: usize, word: u64) -> Self {
        self.with(at, &word.to_le_bytes())
    }

    /// With this half word at that place.
    fn half(self, at: usize, half: u32) -> Self {
        self.with(at, &half.to_le_bytes())
    }

    /// It is a descriptor, and encodes to the same bytes.
    #[track_caller]
    fn is_taken(&self) {
        let descriptor = Descriptor::parse(&self.0).unwrap();
        let again = Parts::of(&descriptor).bytes();
        assert_eq!((&again[..8], &again[16..]), (&self.0[..8], &self.0[16..]));
    }

    /// It is none, because of this field of the record there.
    #[track_caller]
    fn is_refused(&self, field: &str, record_at: usize) {
        match Descriptor::parse(&self.0) {
            Err(DescriptorError::Field { what, at, .. }) => {
                assert_eq!((what, at), (field, record_at));
            }
            parsed => panic!("{field}: {parsed:?}"),
        }
    }
}

/// A word of which each bit is there by itself: those of `allowed` are taken, and the others refused.
fn flags(allowed: u64, bits: u32, change: impl Fn(u64) -> Changed, field: &str, at: usize) {
    for bit in (0..bits).map(|bit| 1 << bit) {
        match allowed & bit != 0 {
            true => change(bit).is_taken(),
            false => change(bit).is_refused(field, at),
        }
    }
    change(allowed).is_taken();
    change(0).is_taken();
}

#[test]
fn of_the_identity() {
    let at = IDENTITY_AT;
    Changed::new()
        .half(at + 4, 0)
        .is_refused("generation of the seed", at);
    Changed::new().half(at + 4, 1).is_taken();
    for (field, offset, len, longest) in [
        ("name of the program", 36, 16, 15),
        ("kernel release", 52, 64, 64),
        ("kernel version", 116, 64, 64),
    ] {
        for text in [0, 1, longest] {
            let mut padded = vec![0; len];
            padded[..text].fill(b'x');
            Changed::new().with(at + offset, &padded).is_taken();
        }
        // A byte after a NUL.
        let mut padded = vec![0; len];
        (padded[0], padded[2]) = (b'x', b'x');
        Changed::new()
            .with(at + offset, &padded)
            .is_refused(field, at);
        let mut padded = vec![0; len];
        padded[len - 1] = b'x';
        Changed::new()
            .with(at + offset, &padded)
            .is_refused(field, at);
    }
    Changed::new()
        .with(at + 36, &[b'x'; 16])
        .is_refused("name of the program", at);
    let parts = Parts {
        identity: Identity {
            comm: &[b'x'; 15],
            kernel_release: &[b'y'; 64],
            kernel_version: &[b'z'; 64],
            ..IDENTITY
        },
        ..Parts::new()
    };
    let bytes = parts.bytes();
    assert_eq!(
        Descriptor::parse(&bytes).unwrap().identity(),
        parts.identity
    );
    for (field, identity) in [
        (
            "kernel release",
            Identity {
                kernel_release: &[b'y'; 65],
                ..IDENTITY
            },
        ),
        (
            "kernel version",
            Identity {
                kernel_version: b"a\0b",
                ..IDENTITY
            },
        ),
        (
            "generation of the seed",
            Identity {
                seed: SeedId {
                    id: 1,
                    generation: 0,
                },
                ..IDENTITY
            },
        ),
    ] {
        let parts = Parts {
            identity,
            ..Parts::new()
        };
        assert_eq!(parts.refused(), field);
    }
}

#[test]
fn of_the_registers() {
    let at = REGISTERS_AT;
    for (field, place) in [("rip", 16), ("rsp", 19), ("fs_base", 21), ("gs_base", 22)] {
        let of = |value| Changed::new().word(at + 8 * place, value);
        of(0).is_taken();
        of(USER_END - 1).is_taken();
        of(USER_END).is_refused(field, at);
    }
    for bit in 0..64 {
        let of = |place: usize, value: u64| Changed::new().word(at + 8 * place, value ^ 1 << bit);
        of(17, 0x33).is_refused("cs", at);
        of(20, 0x2b).is_refused("ss", at);
        match 0x25_0dd5 & 1_u64 << bit != 0 {
            true => of(18, 0x202).is_taken(),
            false => of(18, 0x202).is_refused("eflags", at),
        }
    }
}

#[test]
fn of_the_layout() {
    let at = LAYOUT_AT;
    for (field, place) in [
        ("code", 0),
        ("data", 2),
        ("brk", 4),
        ("arguments", 7),
        ("environment", 9),
    ] {
        let of = |start, end| {
            Changed::new()
                .word(at + 8 * place, start)
                .word(at + 8 * place + 8, end)
        };
        of(0x1000, 0x1000).is_taken();
        of(0x1000, 0x1001).is_taken();
        of(0x1001, 0x1000).is_refused(field, at);
        of(0, USER_END - 1).is_taken();
        of(0, USER_END).is_refused(field, at);
    }
    for (field, place, most) in [("stack", 6, USER_END - 1), ("vdso", 11, USER_END - PAGE)] {
        let of = |value| Changed::new().word(at + 8 * place, value);
        of(most).is_taken();
        of(USER_END).is_refused(field, at);
    }
    for vdso in [1, PAGE - 1, PAGE + 8] {
        Changed::new().word(at + 88, vdso).is_refused("vdso", at);
    }
}

#[test]
fn of_the_task() {
    let at = TASK_AT;
    let rseq = |address, len, signature| {
        Changed::new()
            .word(at + 8, address)
            .half(at + 16, len)
            .half(at + 20, signature)
    };
    rseq(0, 0, 0).is_taken();
    rseq(0, 32, 0).is_refused("rseq length", at);
    rseq(0, 0, 1).is_refused("rseq signature", at);
    rseq(32, 32, 0).is_taken();
    rseq(32, 31, 0).is_refused("rseq length", at);
    rseq(32, 33, 1).is_taken();
    for address in [1, 16, 31, 33, 48] {
        rseq(address, 32, 0).is_refused("rseq", at);
    }
    rseq(USER_END - 32, 32, 0).is_taken();
    rseq(USER_END - 32, 33, 0).is_refused("rseq", at);
    rseq(USER_END, 32, 0).is_refused("rseq", at);

    let robust = |address, len| Changed::new().word(at + 24, address).word(at + 32, len);
    robust(0, 0).is_taken();
    robust(0, 24).is_refused("robust list length", at);
    robust(1, 0).is_refused("robust list length", at);
    for len in [23, 25] {
        robust(0x1000, len).is_refused("robust list length", at);
    }
    robust(USER_END - 24, 24).is_taken();
    robust(USER_END - 23, 24).is_refused("robust list", at);

    let tid = |address| Changed::new().word(at + 40, address);
    tid(0).is_taken();
    tid(USER_END - 4).is_taken();
    tid(USER_END - 3).is_refused("clear_child_tid", at);
    tid(u64::MAX).is_refused("clear_child_tid", at);

    let stack = |address, len| Changed::new().word(at + 48, address).word(at + 56, len);
    stack(0, 0).is_taken();
    stack(0x1000, USER_END - 0x1000).is_taken();
    stack(0x1000, USER_END - 0xfff).is_refused("signal stack", at);
    stack(0x1000, u64::MAX).is_refused("signal stack", at);
    stack(USER_END, 0).is_refused("signal stack", at);
    let of_stack = |flags| Changed::new().half(at + 64, flags as u32);
    flags(0x8000_0002, 32, of_stack, "signal stack flags", at);
}

#[test]
fn of_the_mappings() {
    let at = VMAS_AT;
    let second = at + vma::LEN;
    let last = second + vma::LEN;
    // The first ends where the second begins.
    Changed::new().word(second, 0x40_3000).is_taken();
    Changed::new()
        .word(second, 0x40_2000)
        .is_refused("VMA start", second);
    Changed::new()
        .word(second, 0x40_3001)
        .is_refused("VMA start", second);
    for (end, taken) in [
        (0x60_0000, false),
        (0x60_0001, false),
        (0x60_1000, true),
        (USER_END, true),
        (USER_END + PAGE, false),
    ] {
        let changed = Changed::new().word(last + 8, end);
        match taken {
            true => changed.is_taken(),
            false => changed.is_refused("VMA end", last),
        }
    }
    let offset = |record, pages| Changed::new().word(record + 16, pages);
    offset(at, (1 << 51) - 1).is_taken();
    offset(at, 1 << 51).is_refused("VMA page offset", at);
    offset(last, 1).is_refused("VMA page offset", last);
    // Of a file, of anonymous memory, and of the kernel's.
    let of = |record, flags| Changed::new().half(record + 24, flags as u32);
    flags(0xf7, 32, |bit| of(at, bit & !2), "VMA flags", at);
    of(at, 2).is_taken();
    of(at, 0x82).is_refused("VMA flags", at);
    flags(0x7f, 32, |bit| of(last, bit), "VMA flags", last);
    let special = |bit| of(last, bit).with(last + 34, &[3]);
    flags(0x77, 32, special, "VMA flags", last);
    for kind in [0, 4, 255] {
        Changed::new()
            .with(last + 34, &[kind])
            .is_refused("VMA kind", last);
    }
    // A path that the record before has, and one that is not a file's.
    Changed::new()
        .half(last + 28, 12)
        .with(last + 32, &[12])
        .is_refused("length of the path of a VMA", last);
    Changed::new()
        .with(last + 35, &[1])
        .is_refused("VMA reserved", last);
}

#[test]
fn flags_with_flags_are_these_and_those() {
    let (read, write) = (VmaFlags::READ, VmaFlags::WRITE);
    let both = read.with(write);
    assert_eq!((both, both.with(write)), (VmaFlags(3), VmaFlags(3)));
    assert!(both.contains(both) && both.contains(read) && both.contains(write));
    assert!(!read.contains(both) && !read.contains(write));
}

#[test]
fn of_the_chunks() {
    let (first, second) = (CHUNKS_AT, CHUNKS_AT + chunks::LEN);
    let of = |one, two| Changed::new().half(first, one).half(second, two);
    of(0, 1).is_taken();
    of(2, 2).is_refused("chunk", second);
    of(3, 2).is_refused("chunk", second);
    of(0, 0x3ff_ffff).is_taken();
    of(0, 0x400_0000).is_refused("chunk", second);
    of(u32::MAX, 0).is_refused("chunk", first);
}

#[test]
fn of_the_open_files() {
    let at = FILES_AT;
    let number = |fd| Changed::new().half(at + 8, fd);
    number(0).is_taken();
    number(i32::MAX as u32).is_taken();
    number(1 << 31).is_refused("number of an open file", at);
    Changed::new().word(at, i64::MAX as u64).is_taken();
    Changed::new()
        .word(at, 1 << 63)
        .is_refused("position of an open file", at);
    let status = |flags| Changed::new().half(at + 12, flags as u32);
    let what = "status flags of an open file";
    flags(0x35_5c03, 32, status, what, at);
    for kind in 0..=u8::MAX {
        let changed = Changed::new().with(at + 23, &[kind]);
        match (1..=6).contains(&kind) {
            true => changed.is_taken(),
            false => changed.is_refused("kind of an open file", at),
        }
    }
    for close_on_exec in 0..=u8::MAX {
        let changed = Changed::new().with(at + 22, &[close_on_exec]);
        match close_on_exec {
            0 | 1 => changed.is_taken(),
            _ => changed.is_refused("close-on-exec of an open file", at),
        }
    }
    // An encoder leaves out what is not carried.
    let parts = Parts {
        files: vec![OpenFile {
            status_flags: u32::MAX,
            ..LOG
        }],
        ..Parts::new()
    };
    let bytes = parts.bytes();
    let carried = Descriptor::parse(&bytes).unwrap().files().next().unwrap();
    assert_eq!(carried.status_flags, 0x35_5c03);
}

#[test]
fn of_the_signal_actions() {
    for signal in [1, 8, 9, 10, 18, 19, 20, 64] {
        let at = ACTIONS_AT + (signal - 1) * action::LEN;
        let handler = |address| Changed::new().word(at, address);
        match signal {
            9 | 19 => {
                handler(0).is_taken();
                handler(1).is_refused("handler of SIGKILL or SIGSTOP", at);
            }
            _ => {
                handler(1).is_taken();
                handler(USER_END - 1).is_taken();
            }
        }
        handler(USER_END).is_refused("signal handler", at);
        let restorer = |address| Changed::new().word(at + 16, address);
        restorer(USER_END - 1).is_taken();
        restorer(USER_END).is_refused("signal restorer", at);
        let change = |flags| Changed::new().word(at + 8, flags);
        flags(0xdc00_0807, 64, change, "signal flags", at);
        Changed::new().word(at + 24, u64::MAX).is_taken();
    }
}

#[test]
fn of_the_paths() {
    // Nothing refers to a byte that is put before the paths, and their places are told from the end.
    let len = Parts::new().bytes().len();
    let paths_at = len - 16;
    let longer = |more: &[u8]| {
        let mut bytes = Parts::new().bytes();
        bytes.splice(paths_at..paths_at, more.iter().copied());
        let total = bytes.len() as u32;
        Changed(bytes)
            .half(16, total)
            .half(52, 16 + more.len() as u32)
    };
    let after_all = ACTIONS_AT + SIGNALS * action::LEN;
    let unused = "bytes of paths that nothing refers to";
    longer(b"").is_taken();
    longer(b"x").is_refused(unused, after_all);
    longer(b"/a/path").is_refused(unused, after_all);
    // The log's path, which is the second.
    let log = |back: u32, len: u16| {
        Changed::new()
            .half(FILES_AT + 16, back)
            .with(FILES_AT + 20, &len.to_le_bytes())
    };
    log(16, 4).is_taken();
    let place = "place of a path";
    for (back, len) in [(15, 4), (17, 4), (16, 3), (16, 5), (16, 0), (1, 0), (0, 4)] {
        log(back, len).is_refused(place, FILES_AT);
    }
    // No path at all, which leaves its bytes unused.
    log(0, 0).is_refused(unused, after_all);
    log(17, 5).is_refused(place, FILES_AT);
    Changed::new()
        .with(paths_at + 1, &[0])
        .is_refused("byte of a path", FILES_AT);

    // The longest, and one that is longer.
    for (len, taken) in [(1, true), (4095, true), (4096, false)] {
        let path = vec![b'p'; len];
        let mut parts = Parts::new();
        parts.files[0].path = Some(&path);
        match taken {
            true => {
                let bytes = parts.bytes();
                let descriptor = Descriptor::parse(&bytes).unwrap();
                assert_eq!(descriptor.files().next().unwrap().path, Some(&path[..]));
            }
            false => assert_eq!(parts.refused(), "length of a path"),
        }
        let mut bytes = Parts::new().bytes();
        bytes.splice(paths_at..paths_at + 4, path.iter().copied());
        let total = bytes.len() as u32;
        let changed = Changed(bytes)
            .half(16, total)
            .half(52, 12 + len as u32)
            .half(FILES_AT + 16, 12 + len as u32)
            .with(FILES_AT + 20, &(len as u16).to_le_bytes());
        match taken {
            true => changed.is_taken(),
            false => changed.is_refused("length of a path", FILES_AT),
        }
    }
    let empty = Parts {
        files: vec![OpenFile {
            path: Some(b""),
            ..LOG
        }],
        ..Parts::new()
    };
    assert_eq!(empty.refused(), "length of a path");
}

/// A path that the record before has is referred to, not written again.
#[test]
fn of_a_path_that_repeats_itself() {
    let twice = OpenFile {
        path: PROGRAM.path,
        ..LOG
    };
    let parts = Parts {
        files: vec![twice],
        ..Parts::new()
    };
    let bytes = parts.bytes();
    assert!(bytes.ends_with(b"/bin/counter") && !bytes.ends_with(b"r/bin/counter"));
    let mut again = bytes;
    let paths_at = again.len() - 12;
    again.splice(paths_at..paths_at, *b"/bin/counter");
    let total = again.len() as u32;
    Changed(again)
        .half(16, total)
        .half(52, 24)
        .half(FILES_AT + 16, 24)
        .is_refused("repeated path", FILES_AT);
}

#[test]
fn of_the_header() {
    let bytes = Parts::new().bytes();
    let of = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = byte;
        Descriptor::parse(&bytes).unwrap_err()
    };
    assert!(matches!(of(0, b'N'), DescriptorError::Magic { .. }));
    for version in [0, 2] {
        let found = u16::from(version);
        assert_eq!(of(4, version), DescriptorError::Version { found });
    }
    for sections in [8, 10] {
        let what = "number of sections";
        let found = u64::from(sections);
        let at = 0;
        assert_eq!(of(6, sections), DescriptorError::Field { what, at, found });
    }
    for total in [bytes[16] - 1, bytes[16] + 1] {
        assert!(matches!(
            of(16, total),
            DescriptorError::Length {
                what: "the descriptor",
                ..
            }
        ));
    }
}

/// As many as there may be of each are taken when they are read, and one more is not.
#[test]
fn of_what_there_may_be_many() {
    type More = fn(&mut Parts<'_>, usize);
    let more: [(&str, usize, usize, More); 3] = [
        ("VMAs", 4, MAX_VMAS, |parts, count| {
            parts.vmas = (1..=count as u64)
                .map(|page| mapping(page * PAGE, (page + 1) * PAGE))
                .collect();
        }),
        ("chunks", 5, MAX_CHUNKS, |parts, count| {
            parts.chunks = (0..count as u64).collect();
        }),
        ("open files", 6, MAX_FILES, |parts, count| {
            let file = |fd| OpenFile {
                fd,
                path: None,
                ..LOG
            };
            parts.files = (0..count as u32).map(file).collect();
        }),
    ];
    for (what, section, most, fill) in more {
        let mut parts = Parts::new();
        fill(&mut parts, most);
        let mut buffer = vec![0; descriptor::MAX_DESCRIPTOR];
        let len = parts.encode(&mut buffer).unwrap();
        Descriptor::parse(&buffer[..len]).unwrap();
        fill(&mut parts, most + 1);
        let too_many = EncodeError::TooMany { what, limit: most };
        assert_eq!(parts.encode(&mut buffer), Err(too_many));
        // What the header says is refused before the records are looked at.
        let mut bytes = Parts::new().bytes();
        let lens_at = 20 + 4 * section;
        let record = match what {
            "VMAs" => vma::LEN,
            "chunks" => chunks::LEN,
            _ => file::LEN,
        };
        let said = ((most + 1) * record) as u32;
        bytes.resize(bytes.len() + said as usize, 0);
        let total = bytes.len() as u32;
        let bytes = Changed(bytes).half(16, total).half(lens_at, said).0;
        assert_eq!(
            Descriptor::parse(&bytes).unwrap_err(),
            DescriptorError::TooMany {
                what,
                found: most + 1,
                limit: most
            }
        );
    }
}
