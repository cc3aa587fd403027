//! What is no descriptor, and what no descriptor holds.

use mitosis_core::descriptor::{self, *};

use super::parts::*;
use super::VMAS_AT;

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
