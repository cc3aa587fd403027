//! What the descriptors of these tests are made of.

use mitosis_core::descriptor::*;

pub const IDENTITY: Identity<'static> = Identity {
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

pub fn registers() -> Registers {
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

pub const TASK: Task = Task {
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

pub const fn mapping(start: u64, end: u64) -> Vma<'static> {
    Vma {
        start,
        end,
        flags: VmaFlags::READ,
        kind: VmaKind::Anonymous,
        page_offset: 0,
        path: None,
    }
}

pub const PROGRAM: Vma<'static> = Vma {
    start: 0x40_1000,
    end: 0x40_3000,
    flags: VmaFlags::READ.with(VmaFlags::EXEC),
    kind: VmaKind::File,
    page_offset: 0x0605_0403_0201,
    path: Some(b"/bin/counter"),
};

pub const LOG: OpenFile<'static> = OpenFile {
    fd: 0x0403_0201,
    kind: FileKind::Regular,
    status_flags: 0x401,
    close_on_exec: true,
    position: 0x1817_1615_1413_1211,
    path: Some(b"/log"),
};

/// What a descriptor is made of.
pub struct Parts<'a> {
    pub identity: Identity<'a>,
    pub registers: Registers,
    pub layout: Layout,
    pub task: Task,
    pub vmas: Vec<Vma<'a>>,
    pub chunks: Vec<u64>,
    pub files: Vec<OpenFile<'a>>,
    pub actions: [SignalAction; SIGNALS],
}

impl<'a> Parts<'a> {
    pub fn new() -> Self {
        Self {
            identity: IDENTITY,
            registers: registers(),
            layout: Layout::default(),
            task: TASK,
            vmas: vec![
                PROGRAM,
                Vma {
                    start: 0x40_3000,
                    end: 0x40_4000,
                    flags: VmaFlags::READ,
                    ..PROGRAM
                },
                mapping(0x60_0000, 0x70_0000),
            ],
            chunks: vec![2, 3],
            files: vec![LOG],
            actions: [SignalAction::default(); SIGNALS],
        }
    }

    pub fn of(descriptor: &Descriptor<'a>) -> Self {
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

    pub fn encode(&self, buffer: &mut [u8]) -> Result<usize, EncodeError> {
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

    pub fn bytes(&self) -> Vec<u8> {
        let mut buffer = vec![0xaa; 1 << 16];
        let len = self.encode(&mut buffer).unwrap();
        buffer.truncate(len);
        buffer
    }

    /// Why it cannot be encoded: the field.
    pub fn refused(&self) -> &'static str {
        match self.encode(&mut vec![0; 1 << 18]) {
            Err(EncodeError::Field { what, .. }) => what,
            encoded => panic!("{encoded:?}"),
        }
    }
}
