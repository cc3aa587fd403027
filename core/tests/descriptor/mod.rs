//! Descriptors through the public face (docs/descriptor.md).

mod bounds;
mod parts;
mod refused;

use std::collections::BTreeMap;

use mitosis_core::descriptor::{self, *};
use proptest::prelude::*;

use parts::*;

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
        assert_eq!(descriptor.chunk_count(), chunks);
        let shown = format!("{descriptor:?}");
        assert!(shown.contains(&format!("vmas: {vmas}, chunks: {chunks}, files: {files}")));
        assert!(descriptor.has_chunk(((chunks as u64) << 21) - 1));
        assert!(!descriptor.has_chunk((chunks as u64) << 21));
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
