//! Descriptors through the public face: what is encoded is what is read back.

use mitosis_core::descriptor::{
    self, Capability, CpuFeatures, Descriptor, Encoder, FileKind, Identity, Layout, OpenFile,
    Registers, SeedId, SignalAction, Task, Vma, VmaFlags, VmaKind, SIGNALS,
};

fn identity() -> Identity<'static> {
    Identity {
        seed: SeedId {
            id: 7,
            generation: 3,
        },
        capability: Capability([0xca; 16]),
        server_epoch: 0x0807_0605_0403_0201,
        owner_uid: 1000,
        comm: b"counter",
        kernel_release: b"6.12.117+deb12-amd64",
        kernel_version: b"#1 SMP PREEMPT_DYNAMIC Debian 6.12.117-1~bpo12+1",
        cpu_features: CpuFeatures([1, 2, 3, 4, 5, 6, 7]),
    }
}

fn registers() -> Registers {
    Registers {
        rip: 0x7f00_0000_1000,
        rsp: 0x7ffc_0000_1000,
        cs: 0x33,
        ss: 0x2b,
        eflags: 0x246,
        ..Registers::default()
    }
}

#[test]
fn what_is_encoded_is_what_is_read_back() {
    let vmas = [
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
            end: 0x40_4000,
            flags: VmaFlags::READ,
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
    ];
    let files = [
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
            kind: FileKind::Pipe,
            status_flags: 0,
            close_on_exec: true,
            position: 0,
            path: None,
        },
    ];
    let mut buffer = vec![0xaa; 65536];
    let mut encoder = Encoder::new(&mut buffer);
    encoder.identity(&identity()).unwrap();
    encoder.registers(&registers()).unwrap();
    encoder.layout(&Layout::default()).unwrap();
    encoder.task(&Task::default()).unwrap();
    for vma in &vmas {
        encoder.vma(vma).unwrap();
    }
    encoder.chunk(2).unwrap();
    encoder.chunk(3).unwrap();
    for file in &files {
        encoder.file(file).unwrap();
    }
    for _ in 0..SIGNALS {
        encoder.action(&SignalAction::default()).unwrap();
    }
    let len = encoder.finish().unwrap();
    assert_eq!(
        len,
        descriptor::len_without_paths(3, 2, 2) + "/usr/bin/counter/dev/pts/0".len()
    );
    let bytes = &buffer[..len];
    descriptor::verify([bytes]).unwrap();
    for cut in [0, 1, 8, 15, 16, 17, len] {
        descriptor::verify([&bytes[..cut], &bytes[cut..]]).unwrap();
    }
    let parsed = Descriptor::parse(bytes).unwrap();
    assert_eq!(parsed.identity(), identity());
    assert_eq!(parsed.registers(), registers());
    assert!(parsed.vmas().eq(vmas));
    assert!(parsed.files().eq(files));
    assert!(parsed.chunks().eq([2, 3]));
    assert!(parsed.has_chunk(0x40_0000) && parsed.has_chunk(0x7f_ffff));
    assert!(!parsed.has_chunk(0x3f_ffff) && !parsed.has_chunk(0x80_0000));
    assert_eq!(parsed.vma_at(0x40_2000), Some(1));
    assert_eq!(parsed.vma_at(0x50_0000), None);
    assert_eq!(parsed.vma_at(0x70_0000), None);
}
