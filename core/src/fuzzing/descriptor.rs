//! Any bytes as a descriptor.

use crate::descriptor::{
    chunks, verify, Capability, CpuFeatures, Descriptor, EncodeError, Encoder, FileKind, Identity,
    Layout, OpenFile, Registers, SeedId, SignalAction, Task, Vma, VmaFlags, VmaKind,
    MAX_DESCRIPTOR, PAGE, SIGNALS, USER_END,
};

/// What is written back; longer descriptors are only read.
const BUFFER: usize = 1 << 16;

/// Takes any bytes for a descriptor: what parses, is what docs/descriptor.md allows, answers
/// questions about itself consistently, and encodes to the identical bytes but for the checksum.
pub fn descriptor_decode(bytes: &[u8]) {
    let verified = verify([bytes]).is_ok();
    let (front, rest) = bytes.split_at_checked(bytes.len() / 3).unwrap_or_default();
    assert_eq!(verify([front, rest]).is_ok(), verified);
    let Ok(descriptor) = Descriptor::parse(bytes) else {
        return;
    };
    assert!(bytes.len() <= MAX_DESCRIPTOR);
    consistent(&descriptor);
    let mut buffer = [0; BUFFER];
    match encode(&descriptor, &mut buffer) {
        Ok(len) => {
            let again = buffer.get(..len).unwrap_or_default();
            assert_eq!(without_checksum(again), without_checksum(bytes));
            assert_eq!(again == bytes, verified);
        }
        Err(EncodeError::Full { .. }) => assert!(bytes.len() > BUFFER),
        Err(error) => panic!("what was read cannot be written: {error}"),
    }
}

fn without_checksum(bytes: &[u8]) -> (Option<&[u8]>, Option<&[u8]>) {
    (bytes.get(..8), bytes.get(16..))
}

fn consistent(descriptor: &Descriptor<'_>) {
    let mut after = 0;
    for (index, vma) in descriptor.vmas().enumerate() {
        assert_eq!(descriptor.vma(index), Some(vma));
        assert!(after <= vma.start && vma.start < vma.end && vma.end <= USER_END);
        assert!(vma.start % PAGE == 0 && vma.end % PAGE == 0);
        assert_eq!(descriptor.vma_at(vma.start), Some(index));
        assert_eq!(descriptor.vma_at(vma.end.saturating_sub(1)), Some(index));
        assert_ne!(descriptor.vma_at(vma.end), Some(index));
        if after < vma.start {
            assert_eq!(descriptor.vma_at(after), None);
        }
        assert!(vma.path.is_none_or(|path| !path.contains(&0)));
        after = vma.end;
    }
    assert_eq!(descriptor.vma(descriptor.vma_count()), None);
    let mut next = 0;
    for chunk in descriptor.chunks() {
        let address = chunk << chunks::SHIFT;
        assert!(chunk >= next && address < USER_END);
        assert!(descriptor.has_chunk(address));
        assert!(chunk == next || !descriptor.has_chunk(address.saturating_sub(1)));
        next = chunk.saturating_add(1);
    }
    let registers = descriptor.registers();
    assert!(registers.cs == 0x33 && registers.ss == 0x2b && registers.rip < USER_END);
    assert_eq!(
        registers.eflags & 0x3202,
        0x0202,
        "user mode cannot change IF and IOPL"
    );
    let numbers = descriptor.files().map(|file| file.fd);
    assert!(numbers.clone().zip(numbers.skip(1)).all(|(a, b)| a < b));
}

fn encode(descriptor: &Descriptor<'_>, buffer: &mut [u8]) -> Result<usize, EncodeError> {
    let mut encoder = Encoder::new(buffer);
    encoder.identity(&descriptor.identity())?;
    encoder.registers(&descriptor.registers())?;
    encoder.layout(&descriptor.layout())?;
    encoder.task(&descriptor.task())?;
    for vma in descriptor.vmas() {
        encoder.vma(&vma)?;
    }
    for chunk in descriptor.chunks() {
        encoder.chunk(chunk)?;
    }
    for file in descriptor.files() {
        encoder.file(&file)?;
    }
    for action in descriptor.actions() {
        encoder.action(&action)?;
    }
    encoder.finish()
}

/// Calls `each` with the name and the bytes of each seed of `descriptor_decode`'s corpus.
pub fn descriptor_decode_seeds(each: &mut dyn FnMut(&str, &[u8])) {
    let mut buffer = [0; 8192];
    for (name, vmas, chunks, files) in [
        ("least", VMAS.get(2..3), &[][..], &[][..]),
        ("whole", VMAS.get(..), &[2, 3, 0x3f_ffff][..], FILES),
        ("files-only", VMAS.get(2..3), &[][..], FILES),
    ] {
        let len = write(&mut buffer, vmas.unwrap_or_default(), chunks, files);
        let Some(bytes) = len.ok().and_then(|len| buffer.get_mut(..len)) else {
            panic!("{name} cannot be written")
        };
        each(name, bytes);
        if name == "whole" {
            each(
                "truncated",
                bytes.get(..bytes.len() / 2).unwrap_or_default(),
            );
            for (name, at, value) in [
                ("version-2", 4, 2),
                ("many-vmas", 38, 0x7f),
                ("kernel-code-segment", 56 + 208 + 17 * 8, 0x10),
                ("writable-shared", 56 + 208 + 184 + 96 + 72 + 24, 0x83),
            ] {
                let before = bytes.get(at).copied().unwrap_or(0);
                super::spoil(bytes, at, value);
                each(name, bytes);
                super::spoil(bytes, at, before);
            }
        }
    }
}

fn write(
    buffer: &mut [u8],
    vmas: &[Vma<'_>],
    chunks: &[u64],
    files: &[OpenFile<'_>],
) -> Result<usize, EncodeError> {
    let mut encoder = Encoder::new(buffer);
    encoder.identity(&Identity {
        seed: SeedId {
            id: 7,
            generation: 3,
        },
        capability: Capability([0xca; 16]),
        server_epoch: 0x0807_0605_0403_0201,
        owner_uid: 1000,
        comm: b"counter",
        kernel_release: b"6.12.0-amd64",
        kernel_version: b"#1 SMP",
        cpu_features: CpuFeatures([1, 2, 3, 4, 5, 6, 7]),
    })?;
    encoder.registers(&Registers {
        rax: 16,
        rip: 0x40_1000,
        rsp: 0x7ffc_0000_1000,
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x246,
        fs_base: 0x60_0000,
        ..Registers::default()
    })?;
    encoder.layout(&Layout {
        start_brk: 0x60_0000,
        brk: 0x70_0000,
        start_stack: 0x7ffc_0000_2000,
        ..Layout::default()
    })?;
    encoder.task(&Task {
        blocked: 4,
        rseq: 0x60_0080,
        rseq_len: 32,
        rseq_signature: 0x5305_3053,
        robust_list: 0x60_0010,
        robust_list_len: 24,
        altstack_flags: 2,
        ..Task::default()
    })?;
    for vma in vmas {
        encoder.vma(vma)?;
    }
    for chunk in chunks {
        encoder.chunk(*chunk)?;
    }
    for file in files {
        encoder.file(file)?;
    }
    for signal in 1..=SIGNALS {
        let handler = if signal == 2 { 0x40_1100 } else { 0 };
        encoder.action(&SignalAction {
            handler,
            ..SignalAction::default()
        })?;
    }
    encoder.finish()
}

const VMAS: &[Vma<'_>] = &[
    Vma {
        start: 0x40_0000,
        end: 0x40_2000,
        flags: VmaFlags::READ.with(VmaFlags::EXEC),
        kind: VmaKind::File,
        page_offset: 1,
        path: Some(b"/usr/bin/counter"),
    },
    Vma {
        start: 0x40_2000,
        end: 0x40_3000,
        flags: VmaFlags::READ.with(VmaFlags::SHARED),
        kind: VmaKind::File,
        page_offset: 3,
        path: Some(b"/usr/bin/counter"),
    },
    Vma {
        start: 0x60_0000,
        end: 0x70_0000,
        flags: VmaFlags::READ.with(VmaFlags::WRITE),
        kind: VmaKind::Anonymous,
        page_offset: 0,
        path: None,
    },
    Vma {
        start: 0x7ffc_0000_0000,
        end: 0x7ffc_0000_2000,
        flags: VmaFlags::READ
            .with(VmaFlags::WRITE)
            .with(VmaFlags::GROWSDOWN),
        kind: VmaKind::Anonymous,
        page_offset: 0,
        path: None,
    },
    Vma {
        start: 0x7ffc_0000_2000,
        end: 0x7ffc_0000_4000,
        flags: VmaFlags::READ.with(VmaFlags::EXEC),
        kind: VmaKind::Special,
        page_offset: 0,
        path: None,
    },
];

const FILES: &[OpenFile<'_>] = &[
    OpenFile {
        fd: 0,
        kind: FileKind::CharDevice,
        status_flags: 2,
        close_on_exec: false,
        position: 0,
        path: Some(b"/dev/pts/0"),
    },
    OpenFile {
        fd: 3,
        kind: FileKind::Regular,
        status_flags: 0o2001,
        close_on_exec: true,
        position: 77,
        path: Some(b"/var/log/counter"),
    },
    OpenFile {
        fd: 9,
        kind: FileKind::Socket,
        status_flags: 2,
        close_on_exec: false,
        position: 0,
        path: None,
    },
];
