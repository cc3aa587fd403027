//! Any call on `/dev/mitosis` with anything in the caller's memory: `ioctl_args` in `kmod-glue/src/fork/fuzzing.rs` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mitosis_fuzz::module::fuzzing::ioctl_args(bytes));
