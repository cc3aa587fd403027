//! The header and the Python module say the same as the library: what they declare is compiled and
//! loaded here.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a compiler over a source that is given as text.
fn compiles(compiler: &str, language: &str, source: &str) {
    let directory = env::temp_dir().join(format!(
        "mitosis-bindings-{}-{language}",
        std::process::id()
    ));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("source");
    fs::write(&file, source).unwrap();
    let output = Command::new(compiler)
        .args([
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-x",
            language,
        ])
        .arg("-I")
        .arg(here("include"))
        .arg("-I")
        .arg(here("../../kmod-glue/uapi"))
        .arg(&file)
        .output()
        .unwrap();
    fs::remove_dir_all(&directory).unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{compiler}: {complaint}");
}

/// Where C has the fields that Rust has there, and how long the structures are.
#[test]
fn the_header_has_the_librarys_structures() {
    compiles(
        "cc",
        "c",
        r#"
        #include "mitosis_fork.h"
        #define SAME(structure, field, at) \
            _Static_assert(offsetof(struct structure, field) == (at), #field)
        _Static_assert(sizeof(struct mitosis_prepare_options) == 16, "options");
        _Static_assert(sizeof(struct mitosis_seed) == 48, "seed");
        SAME(mitosis_seed, capability, 8);
        SAME(mitosis_seed, descriptor_len, 24);
        SAME(mitosis_seed, chunks, 36);
        SAME(mitosis_seed, pid, 40);
        SAME(mitosis_seed, child, 44);
        _Static_assert(sizeof(struct mitosis_seed_info) == 72, "info");
        _Static_assert(sizeof(struct mitosis_stats) == 160, "stats");
        _Static_assert(MITOSIS_FREEZE == 0x4010b501, "freeze");
        _Static_assert(MITOSIS_RESUME == 0x4010b507, "resume");
        "#,
    );
}

#[test]
fn the_example_compiles_without_a_warning() {
    let example = fs::read_to_string(here("examples/counter.c")).unwrap();
    compiles("cc", "c", &example);
}

#[test]
fn the_header_is_one_for_cplusplus_too() {
    compiles(
        "c++",
        "c++",
        r#"
        #include "mitosis_fork.h"
        int prepared(mitosis_seed &seed) { return ::mitosis_prepare(nullptr, &seed); }
        "#,
    );
}

/// Loads the library that was built for these tests, and sees its errors arrive as exceptions.
#[test]
fn python_loads_the_library() {
    // Beside the test, where cargo puts it for this build; elsewhere there may be none, or an older one.
    let library = env::current_exe().unwrap();
    let library = library.with_file_name("libmitosis_fork.so");
    assert!(library.exists(), "{} was not built", library.display());
    let output = Command::new("python3")
        .args([
            "-c",
            "import ctypes, mitosis\n\
             assert ctypes.sizeof(mitosis._Seed) == 48 and ctypes.sizeof(mitosis._SeedInfo) == 72\n\
             assert ctypes.sizeof(mitosis._Stats) == 160 and len(mitosis._STATS) == 16\n\
             assert bytes(mitosis._gid('10.0.0.1')).hex() == '00000000000000000000ffff0a000001'\n\
             try:\n    mitosis.stats()\n\
             except mitosis.MitosisError as error:\n    print(error.errno, error.strerror)\n\
             try:\n    mitosis.ping('val01')\n\
             except ValueError as error:\n    print(error)\n",
        ])
        .env("PYTHONPATH", here("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("MITOSIS_FORK_LIBRARY", &library)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (said, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{complaint}");
    assert!(said.contains("'val01' is neither"), "{said}");
    if !Path::new("/dev/mitosis").exists() {
        assert!(said.contains("load mitosis.ko"), "{said}");
    }
}
