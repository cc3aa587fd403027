//! Descriptors through the public face (docs/descriptor.md).

use std::collections::BTreeMap;

use mitosis_core::descriptor::{
    self, verify, Capability, CpuFeatures, Descriptor, DescriptorError, EncodeError, Encoder,
    FileKind, Identity, Layout, OpenFile, Registers, SeedId, SignalAction, Task, Vma, VmaFlags,
    VmaKind, MAX_FILES, MAX_VMAS, PAGE, SIGNALS,
};
use proptest::prelude::*;

const IDENTITY: Identity<'static> = Identity {
    seed: SeedId {
        id: 0x0403_0201,
        generation: 0x1413_1211,
    },
    capability: Capability([0xca; 16]),
    server_epoch: 0x2827_2625_2423_2221,
    owner_uid: 0x3433_3231,
    comm: b"counter",
    kernel_release: b"6.12.117-amd64",
    kernel_version: b"#1 SMP Debian 6.12.117-1",
    cpu_features: CpuFeatures([1, 2, 3, 4, 5, 6, 7]),
};

fn registers() -> Registers {
    Registers {
        r15: 15,
        rdx: 3,
        rip: 0x7f00_0000_1000,
        rsp: 0x7ffc_0000_1000,
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x246,
        gs_base: 0x60_0000,
        ..Registers::default()
    }
}

const TASK: Task = Task {
    blocked: 0x0807_0605_0403_0201,
    rseq: 0x2120,
    rseq_len: 32,
    rseq_signature: 0x5305_3053,
    robust_list: 0x3130,
    robust_list_len: 24,
    clear_child_tid: 0x4140,
    altstack: 0x5150,
    altstack_len: 0x61,
    altstack_flags: 0x8000_0000,
    personality: 0x0004_0000,
};

const fn mapping(start: u64, end: u64) -> Vma<'static> {
    Vma {
        start,
        end,
        flags: VmaFlags::READ,
        kind: VmaKind::Anonymous,
        page_offset: 0,
        path: None,
    }
}

const PROGRAM: Vma<'static> = Vma {
    start: 0x40_1000,
    end: 0x40_3000,
    flags: VmaFlags::READ.with(VmaFlags::EXEC),
    kind: VmaKind::File,
    page_offset: 0x0605_0403_0201,
    path: Some(b"/bin/counter"),
};

const LOG: OpenFile<'static> = OpenFile {
    fd: 0x0403_0201,
    kind: FileKind::Regular,
    status_flags: 0x401,
    close_on_exec: true,
    position: 0x1817_1615_1413_1211,
    path: Some(b"/log"),
};

/// What a descriptor is made of.
struct Parts<'a> {
    identity: Identity<'a>,
    registers: Registers,
    layout: Layout,
    task: Task,
    vmas: Vec<Vma<'a>>,
    chunks: Vec<u64>,
    files: Vec<OpenFile<'a>>,
    actions: [SignalAction; SIGNALS],
}

impl<'a> Parts<'a> {
    fn new() -> Self {
        Self {
            identity: IDENTITY,
            registers: registers(),
            layout: Layout::default(),
            task: TASK,
            vmas: vec![
                PROGRAM,
                Vma {
                    flags: VmaFlags::READ,
                    ..Vma {
                        start: 0x40_3000,
                        end: 0x40_4000,
                        ..PROGRAM
                    }
                },
                mapping(0x60_0000, 0x70_0000),
            ],
            chunks: vec![2, 3],
            files: vec![LOG],
            actions: [SignalAction::default(); SIGNALS],
        }
    }

    fn of(descriptor: &Descriptor<'a>) -> Self {
        Self {
            identity: descriptor.identity(),
            registers: descriptor.registers(),
            layout: descriptor.layout(),
            task: descriptor.task(),
            vmas: descriptor.vmas().collect(),
            chunks: descriptor.chunks().collect(),
            files: descriptor.files().collect(),
            actions: descriptor.actions(),
        }
    }

    fn encode(&self, buffer: &mut [u8]) -> Result<usize, EncodeError> {
        let mut encoder = Encoder::new(buffer);
        encoder.identity(&self.identity)?;
        encoder.registers(&self.registers)?;
        encoder.layout(&self.layout)?;
        encoder.task(&self.task)?;
        self.vmas.iter().try_for_each(|vma| encoder.vma(vma))?;
        self.chunks
            .iter()
            .try_for_each(|chunk| encoder.chunk(*chunk))?;
        self.files.iter().try_for_each(|file| encoder.file(file))?;
        self.actions
            .iter()
            .try_for_each(|action| encoder.action(action))?;
        encoder.finish()
    }

    fn bytes(&self) -> Vec<u8> {
        let mut buffer = vec![0xaa; 1 << 16];
        let len = self.encode(&mut buffer).unwrap();
        buffer.truncate(len);
        buffer
    }

    /// Why it cannot be encoded: the field.
    fn refused(&self) -> &'static str {
        match self.encode(&mut vec![0; 1 << 18]) {
            Err(EncodeError::Field { what, .. }) => what,
            encoded => panic!("{encoded:?}"),
        }
    }
}

const REGISTERS_AT: usize = 56 + 208;
const TASK_AT: usize = REGISTERS_AT + 184 + 96;
const VMAS_AT: usize = TASK_AT + 72;

#[test]
fn golden_bytes() {
    let mut parts = Parts::new();
    parts.vmas.truncate(1);
    parts.actions[1].handler = 0x0807_0605;
    let bytes = parts.bytes();

    #[rustfmt::skip]
    let header = [
        b'M', b'T', b'S', b'D', 1, 0, 9, 0,
    ];
    #[rustfmt::skip]
    let lens = [
        208, 0, 0, 0, 184, 0, 0, 0, 96, 0, 0, 0, 72, 0, 0, 0,
        36, 0, 0, 0, 8, 0, 0, 0, 24, 0, 0, 0, 0, 8, 0, 0, 16, 0, 0, 0,
    ];
    let total = (56 + 208 + 184 + 96 + 72 + 36 + 8 + 24 + 2048 + 16) as u32;
    assert_eq!(bytes[..8], header);
    assert_eq!(bytes[16..20], total.to_le_bytes());
    assert_eq!(bytes[20..56], lens);

    let mut identity = vec![1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14];
    identity.extend([0xca; 16]);
    identity.extend([0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28]);
    identity.extend([0x31, 0x32, 0x33, 0x34]);
    identity.extend(b"counter\0\0\0\0\0\0\0\0\0");
    identity.extend(b"6.12.117-amd64");
    identity.resize(116, 0);
    identity.extend(b"#1 SMP Debian 6.12.117-1");
    identity.resize(180, 0);
    (1..=7u32).for_each(|word| identity.extend(word.to_le_bytes()));
    assert_eq!(bytes[56..REGISTERS_AT], identity);

    assert_eq!(bytes[REGISTERS_AT], 15);
    assert_eq!(bytes[REGISTERS_AT + 17 * 8], 0x33);
    assert_eq!(bytes[REGISTERS_AT + 20 * 8], 0x2b);
    assert_eq!(bytes[REGISTERS_AT + 22 * 8 + 2], 0x60);

    #[rustfmt::skip]
    let task = [
        1, 2, 3, 4, 5, 6, 7, 8,
        0x20, 0x21, 0, 0, 0, 0, 0, 0,
        32, 0, 0, 0, 0x53, 0x30, 0x05, 0x53,
        0x30, 0x31, 0, 0, 0, 0, 0, 0,
        24, 0, 0, 0, 0, 0, 0, 0,
        0x40, 0x41, 0, 0, 0, 0, 0, 0,
        0x50, 0x51, 0, 0, 0, 0, 0, 0,
        0x61, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0x80, 0, 0, 4, 0,
    ];
    assert_eq!(bytes[TASK_AT..VMAS_AT], task);

    #[rustfmt::skip]
    let records = [
        0x00, 0x10, 0x40, 0, 0, 0, 0, 0,
        0x00, 0x30, 0x40, 0, 0, 0, 0, 0,
        1, 2, 3, 4, 5, 6, 0, 0,
        5, 0, 0, 0, 12, 0, 0, 0, 12, 0, 2, 0,
        2, 0, 0, 0, 3, 0, 0, 0,
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
        1, 2, 3, 4, 1, 4, 0, 0, 16, 0, 0, 0, 4, 0, 1, 1,
    ];
    let actions_at = VMAS_AT + records.len();
    assert_eq!(bytes[VMAS_AT..actions_at], records);
    assert_eq!(bytes[actions_at + 32..][..5], [5, 6, 7, 8, 0]);
    assert_eq!(&bytes[actions_at + 64 * 32..], b"/log/bin/counter");
    // As another implementation of CRC-64/XZ computes it.
    assert_eq!(bytes[8..16], xz(&bytes[16..]).to_le_bytes());
}

/// CRC-64/XZ bit by bit.
fn xz(bytes: &[u8]) -> u64 {
    let mut crc = u64::MAX;
    for byte in bytes {
        crc ^= u64::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xc96c_5795_d787_0f42 & 0u64.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let bytes = Parts::new().bytes();
    for len in 0..bytes.len() {
        let truncated = Descriptor::parse(&bytes[..len]).unwrap_err();
        assert!(matches!(
            truncated,
            DescriptorError::Truncated { .. } | DescriptorError::Length { .. }
        ));
        assert!(verify([&bytes[..len]]).is_err(), "{len}");
        let buffer = &mut vec![0; len];
        assert!(matches!(
            Parts::new().encode(buffer),
            Err(EncodeError::Full { .. })
        ));
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(
        Descriptor::parse(&longer),
        Err(DescriptorError::Length { .. })
    ));
}

/// A mutation is refused, or means something else that is just as well-formed; and the checksum
/// finds it in any case.
#[test]
fn every_mutation_of_a_byte_is_found() {
    let bytes = Parts::new().bytes();
    let mut mutated = bytes.clone();
    for at in 0..bytes.len() {
        for value in (0..8).map(|bit| bytes[at] ^ 1 << bit).chain([0, 0xff]) {
            if value == bytes[at] {
                continue;
            }
            mutated[at] = value;
            let parsed = Descriptor::parse(&mutated);
            assert!(parsed.is_err() || verify([&mutated[..]]).is_err(), "{at}");
            if let Ok(descriptor) = parsed {
                let again = Parts::of(&descriptor).bytes();
                assert_eq!((&again[..8], &again[16..]), (&mutated[..8], &mutated[16..]));
            }
        }
        mutated[at] = bytes[at];
    }
}

#[test]
fn it_is_verified_in_any_pieces() {
    let bytes = Parts::new().bytes();
    for len in [1, 5, 15, 16, 17, 4096] {
        verify(bytes.chunks(len)).unwrap();
    }
    let mut damaged = bytes;
    *damaged.last_mut().unwrap() ^= 1;
    assert!(matches!(
        verify(damaged.chunks(5)),
        Err(DescriptorError::Checksum { .. })
    ));
}

/// Lengths that are no bytes' are refused before anything is read, and hostile counts by name.
#[test]
fn hostile_lengths_are_refused() {
    let bytes = Parts::new().bytes();
    for section in 0..9 {
        for len in [0, 1, 35, 0x7fff_ffff, u32::MAX] {
            let mut hostile = bytes.clone();
            let at = 20 + 4 * section;
            if hostile[at..at + 4] == len.to_le_bytes() {
                continue;
            }
            hostile[at..at + 4].copy_from_slice(&len.to_le_bytes());
            let error = Descriptor::parse(&hostile).unwrap_err();
            assert!(
                matches!(
                    error,
                    DescriptorError::Truncated { .. } | DescriptorError::Length { .. }
                ),
                "{section} {len}: {error}"
            );
        }
    }
    let vmas = (MAX_VMAS + 1) * 36;
    let mut many = bytes[..VMAS_AT].to_vec();
    many.resize(VMAS_AT + vmas + 2048, 0);
    let total = many.len() as u32;
    many[16..20].copy_from_slice(&total.to_le_bytes());
    many[36..40].copy_from_slice(&(vmas as u32).to_le_bytes());
    many[40..48].fill(0);
    many[52..56].fill(0);
    let error = Descriptor::parse(&many).unwrap_err();
    assert_eq!(
        error,
        DescriptorError::TooMany {
            what: "VMAs",
            found: MAX_VMAS + 1,
            limit: MAX_VMAS
        }
    );
    assert_eq!(error.to_string(), "65537 VMAs are more than 65536");
    let huge = vec![0; descriptor::MAX_DESCRIPTOR + 1];
    let huge = [&bytes[..16], &huge[16..]].concat();
    assert!(Descriptor::parse(&huge).is_err());
}

/// A process of 100 GiB and 10,000 VMAs fits, and one at every limit too.
#[test]
fn the_largest_processes_fit() {
    for (vmas, chunks, files) in [
        (10_000, 51_200, 1_000),
        (MAX_VMAS, descriptor::MAX_CHUNKS, MAX_FILES),
    ] {
        let parts = Parts {
            vmas: (1..=vmas as u64)
                .map(|page| mapping(2 * page * PAGE, (2 * page + 1) * PAGE))
                .collect(),
            chunks: (0..chunks as u64).collect(),
            files: (0..files as u32)
                .map(|fd| OpenFile {
                    fd,
                    path: None,
                    ..LOG
                })
                .collect(),
            ..Parts::new()
        };
        let mut buffer = vec![0; descriptor::MAX_DESCRIPTOR];
        let len = parts.encode(&mut buffer).unwrap();
        assert_eq!(len, descriptor::len_without_paths(vmas, chunks, files));
        let descriptor = Descriptor::parse(&buffer[..len]).unwrap();
        assert_eq!(descriptor.vma_count(), vmas);
        assert_eq!(descriptor.vma_at(2 * vmas as u64 * PAGE), Some(vmas - 1));
        assert!(descriptor.has_chunk((chunks as u64) << 21 | 0x1f_ffff) == (chunks == 0));
    }
    let mut more = Parts::new();
    more.vmas = (1..=MAX_VMAS as u64 + 1)
        .map(|page| mapping(page * PAGE, (page + 1) * PAGE))
        .collect();
    assert_eq!(
        more.encode(&mut vec![0; descriptor::MAX_DESCRIPTOR]),
        Err(EncodeError::TooMany {
            what: "VMAs",
            limit: MAX_VMAS
        })
    );
}

#[test]
fn sections_have_an_order() {
    let mut buffer = vec![0; 8192];
    let mut encoder = Encoder::new(&mut buffer);
    assert_eq!(
        encoder.layout(&Layout::default()),
        Err(EncodeError::Order { what: "identity" })
    );
    encoder.identity(&IDENTITY).unwrap();
    encoder.registers(&registers()).unwrap();
    assert!(matches!(
        encoder.identity(&IDENTITY),
        Err(EncodeError::Order { .. })
    ));
    encoder.layout(&Layout::default()).unwrap();
    encoder.task(&TASK).unwrap();
    assert_eq!(encoder.chunk(1), Err(EncodeError::Order { what: "VMAs" }));
    encoder.vma(&PROGRAM).unwrap();
    for _ in 1..SIGNALS {
        encoder.action(&SignalAction::default()).unwrap();
    }
    assert_eq!(
        encoder.finish(),
        Err(EncodeError::Order {
            what: "signal actions"
        })
    );
}

/// What would let a child out of user mode, or a kernel into what is not its own.
#[test]
fn registers_that_no_program_has_are_refused() {
    for (what, change) in [
        ("cs", (|r| r.cs = 0x10) as fn(&mut Registers)),
        ("cs", |r| r.cs = 0x23),
        ("ss", |r| r.ss = 0),
        ("rip", |r| r.rip = 0x8000_0000_0000),
        ("rip", |r| r.rip = 0x7fff_ffff_f000),
        ("rip", |r| r.rip = 0xffff_ffff_8100_0000),
        ("rsp", |r| r.rsp = 0xffff_8880_0000_0000),
        ("fs_base", |r| r.fs_base = 0xffff_8880_0000_0000),
        ("gs_base", |r| r.gs_base = 0x8000_0000_0000),
        ("eflags", |r| r.eflags = 0x046),
        ("eflags", |r| r.eflags = 0x3246),
        ("eflags", |r| r.eflags = 0x4246),
        ("eflags", |r| r.eflags = 0x2_0246),
    ] {
        let mut parts = Parts::new();
        change(&mut parts.registers);
        assert_eq!(parts.refused(), what);
    }
}

#[test]
fn records_that_make_no_sense_are_refused() {
    let anonymous = mapping(0x1000, 0x2000);
    let shared = VmaFlags::READ.with(VmaFlags::SHARED);
    for (what, vma) in [
        ("VMA start", mapping(0x1001, 0x2000)),
        ("VMA end", mapping(0x1000, 0x1000)),
        ("VMA end", mapping(0x1000, 0x2001)),
        ("VMA end", mapping(0x1000, 0x7fff_ffff_f000 + PAGE)),
        (
            "VMA page offset",
            Vma {
                page_offset: 1,
                ..anonymous
            },
        ),
        (
            "length of the path of a VMA",
            Vma {
                path: Some(b"/"),
                ..anonymous
            },
        ),
        (
            "VMA flags",
            Vma {
                flags: shared,
                ..anonymous
            },
        ),
        (
            "VMA flags",
            Vma {
                flags: VmaFlags(256),
                ..anonymous
            },
        ),
        (
            "VMA flags",
            Vma {
                flags: shared.with(VmaFlags::WRITE),
                ..PROGRAM
            },
        ),
        (
            "VMA flags",
            Vma {
                flags: VmaFlags::GROWSDOWN,
                ..PROGRAM
            },
        ),
        (
            "byte of a path",
            Vma {
                path: Some(b"/a\0b"),
                ..PROGRAM
            },
        ),
        (
            "length of a path",
            Vma {
                path: Some(&[b'a'; 4096]),
                ..PROGRAM
            },
        ),
    ] {
        let mut parts = Parts::new();
        parts.vmas[0] = vma;
        assert_eq!(parts.refused(), what);
    }
    let mut parts = Parts::new();
    parts.vmas[1] = mapping(0x40_2000, 0x40_4000);
    assert_eq!(parts.refused(), "VMA start");
    let mut parts = Parts::new();
    parts.chunks = vec![3, 3];
    assert_eq!(parts.refused(), "chunk");
    parts.chunks = vec![1 << 26];
    assert_eq!(parts.refused(), "chunk");
    let mut parts = Parts::new();
    parts.files = vec![LOG, LOG];
    assert_eq!(parts.refused(), "number of an open file");
    let mut parts = Parts::new();
    parts.actions[8].handler = 1;
    assert_eq!(parts.refused(), "handler of SIGKILL or SIGSTOP");
    let mut parts = Parts::new();
    parts.identity.comm = b"sixteen letters!";
    assert_eq!(parts.refused(), "name of the program");
    for task in [
        Task {
            rseq: 0x2121,
            ..TASK
        },
        Task { rseq: 0, ..TASK },
        Task {
            robust_list_len: 23,
            ..TASK
        },
        Task {
            clear_child_tid: u64::MAX,
            ..TASK
        },
        Task {
            altstack: 0x7fff_0000_0000,
            altstack_len: u64::MAX,
            ..TASK
        },
    ] {
        let mut parts = Parts::new();
        parts.task = task;
        parts.refused();
    }
}

#[test]
fn features_that_are_lacking_are_named() {
    let seed = CpuFeatures([1, 0, 6, 0, 0, 0, 7]);
    assert_eq!(seed.lacks(&seed), None);
    assert_eq!(CpuFeatures([u32::MAX; 7]).lacks(&seed), None);
    let here = CpuFeatures([1, 0, 2, 0, 0, 0, 7]);
    assert_eq!(here.lacks(&seed), Some((2, 4)));
}

#[test]
fn a_capability_is_not_printed() {
    let bytes = Parts::new().bytes();
    let printed = format!("{:?}", Descriptor::parse(&bytes).unwrap());
    assert!(
        !printed.contains("ca") || !printed.contains("202"),
        "{printed}"
    );
}

fn path() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::of(prop_oneof![
        Just(b"/lib/libc.so.6".to_vec()),
        proptest::collection::vec(1..=255u8, 1..40),
    ])
}

proptest! {
    #[test]
    fn what_is_encoded_is_what_is_read_back(
        words: [u64; 23],
        vmas in proptest::collection::vec(
            ((0..5u64, 1..5000u64), 0..64u32, 0..3u8, 0..1u64 << 40, path()), 1..40),
        chunks in proptest::collection::btree_set(0..1u64 << 26, 0..60),
        files in proptest::collection::btree_map(0..1u32 << 31,
            (1..=6u8, any::<u32>(), any::<bool>(), 0..1u64 << 62, path()), 0..20),
        actions in proptest::collection::vec((0..1u64 << 46, any::<u64>()), 64),
        mask: u64,
    ) {
        let small = words.map(|word| word >> 18);
        let mut start = 0x1000;
        let chunks: Vec<_> = chunks.into_iter().filter(|chunk| *chunk < 0x3ff_ffff).collect();
        let files: BTreeMap<_, _> = files;
        let parts = Parts {
            registers: Registers {
                r15: words[0], rax: words[1], rip: small[2], rsp: small[3], cs: 0x33, ss: 0x2b,
                eflags: 0x202 | words[4] & 0x25_0dd5, fs_base: small[5], ..Registers::default()
            },
            layout: Layout {
                vdso: small[6] & !0xfff, start_brk: small[7], brk: small[7], ..Layout::default()
            },
            task: Task { blocked: words[8], clear_child_tid: small[9], ..TASK },
            vmas: vmas.iter().map(|((gap, pages), flags, kind, page_offset, path)| {
                start += gap * PAGE;
                let (from, to) = (start, start + pages * PAGE);
                start = to;
                let kind = VmaKind::from_u8(kind + 1).unwrap();
                let file = kind == VmaKind::File;
                let anonymous = kind == VmaKind::Anonymous;
                Vma {
                    start: from,
                    end: to,
                    flags: VmaFlags(if anonymous { *flags } else { flags & !8 }),
                    kind,
                    page_offset: if file { *page_offset } else { 0 },
                    path: path.as_deref().filter(|_| file),
                }
            }).collect(),
            chunks,
            files: files.iter().map(|(fd, (kind, flags, close_on_exec, position, path))| OpenFile {
                fd: *fd,
                kind: FileKind::from_u8(*kind).unwrap(),
                status_flags: flags & descriptor::file::STATUS_FLAGS,
                close_on_exec: *close_on_exec,
                position: *position,
                path: path.as_deref(),
            }).collect(),
            actions: std::array::from_fn(|signal| {
                let (handler, flags) = actions[signal];
                SignalAction {
                    handler: if [8, 18].contains(&signal) { 0 } else { handler },
                    flags: flags & 0xdc00_0807,
                    restorer: handler,
                    mask,
                }
            }),
            ..Parts::new()
        };
        let bytes = parts.bytes();
        verify([&bytes[..]]).unwrap();
        let parsed = Descriptor::parse(&bytes).unwrap();
        let back = Parts::of(&parsed);
        prop_assert_eq!(back.identity, parts.identity);
        prop_assert_eq!(back.registers, parts.registers);
        prop_assert_eq!(back.layout, parts.layout);
        prop_assert_eq!(back.task, parts.task);
        prop_assert_eq!(&back.vmas, &parts.vmas);
        prop_assert_eq!(&back.chunks, &parts.chunks);
        prop_assert_eq!(&back.files, &parts.files);
        prop_assert_eq!(back.actions, parts.actions);
        for (index, vma) in parts.vmas.iter().enumerate() {
            prop_assert_eq!(parsed.vma(index), Some(*vma));
            prop_assert_eq!(parsed.vma_at(vma.start), Some(index));
            prop_assert_eq!(parsed.vma_at(vma.end - 1), Some(index));
        }
        for address in small {
            prop_assert_eq!(parsed.has_chunk(address), parts.chunks.contains(&(address >> 21)));
            let at = parts.vmas.iter().position(|vma| (vma.start..vma.end).contains(&address));
            prop_assert_eq!(parsed.vma_at(address), at);
        }
        // The least buffer is as good as a large one.
        let mut exact = vec![0xee; bytes.len()];
        prop_assert_eq!(parts.encode(&mut exact), Ok(bytes.len()));
        prop_assert_eq!(exact, bytes);
    }
}
