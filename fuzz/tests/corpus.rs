//! Replays the committed corpora on a stable toolchain, and keeps the seeds up to date with the
//! messages.

use std::path::Path;
use std::{env, fs};

use mitosis_core::fuzzing;

/// Each seed is the message that its name says. After a change of the format, `BLESS=1 cargo test
/// -p mitosis-fuzz` writes them anew.
#[test]
fn seeds_are_messages_of_today() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/rpc_decode");
    fuzzing::rpc_decode_seeds(&mut |name, bytes| {
        let path = corpus.join(name).with_extension("bin");
        if env::var_os("BLESS").is_some() {
            fs::write(&path, bytes).unwrap();
        }
        let seed = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(seed, bytes, "{} is out of date", path.display());
    });
}

/// Every file, so also those that a fuzzing run on this machine has found.
#[test]
fn the_corpus_of_rpc_decode_replays() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/rpc_decode");
    let mut replayed = 0;
    for file in fs::read_dir(corpus).unwrap() {
        fuzzing::rpc_decode(&fs::read(file.unwrap().path()).unwrap());
        replayed += 1;
    }
    assert!(replayed >= 27, "{replayed} seeds");
}
