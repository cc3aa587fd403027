//! Any doings of a client, a server and the network at their handshake: `mitosis_core::fuzzing::handshake` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mitosis_core::fuzzing::handshake(bytes));
