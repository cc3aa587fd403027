//! Makes a table of the inputs of the fuzzer's corpus for datagrams, for the flood to begin with.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

const CORPUS: &str = "../fuzz/corpus/rpc_decode";

fn main() {
    println!("cargo::rerun-if-changed={CORPUS}");
    let directory = fs::read_dir(CORPUS).unwrap_or_else(|error| panic!("{CORPUS}: {error}"));
    // What a fuzzer has found on this machine has no extension, and is not everybody's.
    let mut inputs: Vec<_> = directory
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "bin"))
        .map(|path| fs::canonicalize(path).unwrap())
        .collect();
    inputs.sort();
    let mut table = format!("pub static CORPUS: [&[u8]; {}] = [\n", inputs.len());
    for input in inputs {
        writeln!(table, "    include_bytes!({input:?}),").unwrap();
    }
    table.push_str("];\n");
    let out = Path::new(&env::var_os("OUT_DIR").unwrap()).join("corpus.rs");
    fs::write(out, table).unwrap();
}
