//! Any bytes as a descriptor: `mitosis_core::fuzzing::descriptor_decode` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mitosis_core::fuzzing::descriptor_decode(bytes));
