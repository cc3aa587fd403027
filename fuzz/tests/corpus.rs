//! Replays the committed corpora on a stable toolchain, and keeps the seeds up to date with the
//! formats.

use std::path::{Path, PathBuf};
use std::{env, fs};

use mitosis_core::fuzzing;
use mitosis_fuzz::module::fuzzing::{ioctl_args, ioctl_args_seeds};
use mitosis_testkit::fuzzing::session_script;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target)
}

/// Compares a seed with its file. After a change of the format, `BLESS=1 cargo test -p
/// mitosis-fuzz` writes the files anew.
fn up_to_date(target: &str, name: &str, bytes: &[u8]) {
    let path = corpus(target).join(name).with_extension("bin");
    if env::var_os("BLESS").is_some() {
        fs::write(&path, bytes).unwrap();
    }
    let seed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(seed, bytes, "{} is out of date", path.display());
}

/// Every file, so also those that a fuzzing run on this machine has found. Returns how many.
fn replay(target: &str, body: fn(&[u8])) -> usize {
    let files = fs::read_dir(corpus(target)).unwrap();
    files
        .map(|file| body(&fs::read(file.unwrap().path()).unwrap()))
        .count()
}

/// Each seed is the message that its name says.
#[test]
fn seeds_are_messages_of_today() {
    fuzzing::rpc_decode_seeds(&mut |name, bytes| up_to_date("rpc_decode", name, bytes));
}

#[test]
fn the_corpus_of_rpc_decode_replays() {
    let replayed = replay("rpc_decode", fuzzing::rpc_decode);
    assert!(replayed >= 29, "{replayed} seeds");
}

/// Each seed is the descriptor that its name says.
#[test]
fn seeds_are_descriptors_of_today() {
    fuzzing::descriptor_decode_seeds(&mut |name, bytes| {
        up_to_date("descriptor_decode", name, bytes);
    });
}

#[test]
fn the_corpus_of_descriptor_decode_replays() {
    let replayed = replay("descriptor_decode", fuzzing::descriptor_decode);
    assert!(replayed >= 8, "{replayed} seeds");
}

/// Each seed is what its name says.
#[test]
fn seeds_of_handshakes_and_calls_are_those_of_today() {
    fuzzing::handshake_seeds(&mut |name, bytes| up_to_date("handshake", name, bytes));
    ioctl_args_seeds(&mut |name, bytes| up_to_date("ioctl_args", name, bytes));
}

#[test]
fn the_corpus_of_handshake_replays() {
    let replayed = replay("handshake", fuzzing::handshake);
    assert!(replayed >= 10, "{replayed} seeds");
}

#[test]
fn the_corpus_of_ioctl_args_replays() {
    let replayed = replay("ioctl_args", ioctl_args);
    assert!(replayed >= 20, "{replayed} seeds");
}

#[test]
fn the_corpus_of_session_script_replays() {
    let replayed = replay("session_script", session_script);
    assert!(replayed >= 16, "{replayed} inputs");
}

#[test]
fn the_corpus_of_shm_ring_replays() {
    let replayed = replay("shm_ring", mitosis::shm::shm_ring);
    assert!(replayed >= 16, "{replayed} inputs");
}

/// Whose seeds are, besides, the templates that there are.
#[test]
fn the_corpus_of_template_parse_replays() {
    let body = mitosis_stress::fuzzing::template_parse;
    assert!(replay("template_parse", body) >= 10);
    for templates in ["templates-run", "templates-build"] {
        assert!(replay(&format!("../../{templates}"), body) >= 3);
    }
}
