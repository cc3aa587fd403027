//! `mitosis describe`: a descriptor, for people or for programs.

use std::io;

use mitosis_core::descriptor::{Descriptor, FileKind, Vma, VmaFlags, VmaKind};
use mitosis_fork::resume::files::{fate, Fate};
use serde_json::{json, Value};

use crate::print::{printable, Output};

/// Prints what a seed is. The capability is left out.
pub fn print(descriptor: &Descriptor<'_>, out: &Output) -> io::Result<()> {
    let identity = descriptor.identity();
    let name = format!("{}.{}", identity.seed.id, identity.seed.generation);
    let comm = printable(identity.comm);
    let release = printable(identity.kernel_release);
    let version = printable(identity.kernel_version);
    let registers = descriptor.registers();
    if out.json {
        let vmas: Vec<_> = descriptor.vmas().map(|vma| mapping(&vma)).collect();
        let files: Vec<_> = descriptor
            .files()
            .map(|file| {
                json!({
                    "fd": file.fd,
                    "kind": kind(file.kind),
                    "path": file.path.map(printable),
                    "position": file.position,
                    "status_flags": file.status_flags,
                    "close_on_exec": file.close_on_exec,
                    "fate": fate_name(fate(&file)),
                })
            })
            .collect();
        let value = json!({
            "id": identity.seed.id,
            "generation": identity.seed.generation,
            "comm": comm,
            "uid": identity.owner_uid,
            "kernel_release": release,
            "kernel_version": version,
            "rip": registers.rip,
            "rsp": registers.rsp,
            "chunks": descriptor.chunk_count(),
            "vmas": vmas,
            "files": files,
        });
        return out.put(&value, "");
    }
    let line = |text: &str| out.put(&Value::Null, text);
    line(&format!(
        "seed {name}: {comm}, of user {}",
        identity.owner_uid
    ))?;
    line(&format!("kernel {release} ({version})"))?;
    line(&format!(
        "rip {:#x}, rsp {:#x}",
        registers.rip, registers.rsp
    ))?;
    line(&format!(
        "{} mappings, pages in {} chunks of 2 MiB",
        descriptor.vma_count(),
        descriptor.chunk_count()
    ))?;
    for vma in descriptor.vmas() {
        line(&format!(
            "  {:012x}-{:012x} {} {:>12} KiB  {}",
            vma.start,
            vma.end,
            rights(vma.flags),
            (vma.end - vma.start) >> 10,
            behind(&vma)
        ))?;
    }
    for file in descriptor.files() {
        line(&format!(
            "  open file {:>4}: {}{}, {}",
            file.fd,
            kind(file.kind),
            file.path
                .map(|path| format!(" {}", printable(path)))
                .unwrap_or_default(),
            fate_name(fate(&file))
        ))?;
    }
    Ok(())
}

fn mapping(vma: &Vma<'_>) -> Value {
    json!({
        "start": vma.start,
        "end": vma.end,
        "rights": rights(vma.flags),
        "kind": match vma.kind {
            VmaKind::Anonymous => "anonymous",
            VmaKind::File => "file",
            VmaKind::Special => "special",
        },
        "page_offset": vma.page_offset,
        "path": vma.path.map(printable),
    })
}

/// As /proc/PID/maps has them.
fn rights(flags: VmaFlags) -> String {
    [
        (VmaFlags::READ, 'r', '-'),
        (VmaFlags::WRITE, 'w', '-'),
        (VmaFlags::EXEC, 'x', '-'),
        (VmaFlags::SHARED, 's', 'p'),
    ]
    .iter()
    .map(|(flag, set, unset)| if flags.contains(*flag) { *set } else { *unset })
    .collect()
}

fn behind(vma: &Vma<'_>) -> String {
    match (vma.kind, vma.path) {
        (VmaKind::Special, _) => "[vdso]".to_owned(),
        (VmaKind::Anonymous, _) if vma.flags.contains(VmaFlags::GROWSDOWN) => "[stack]".to_owned(),
        (VmaKind::Anonymous, _) => String::new(),
        (VmaKind::File, Some(path)) => printable(path),
        (VmaKind::File, None) => "(a file without a path)".to_owned(),
    }
}

fn kind(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::CharDevice => "device",
        FileKind::Pipe => "pipe",
        FileKind::Socket => "socket",
        FileKind::Other => "other",
    }
}

fn fate_name(fate: Fate) -> &'static str {
    match fate {
        Fate::Resumers => "the resumer's",
        Fate::Reopened => "opened again",
        Fate::Closed => "stays closed",
    }
}
