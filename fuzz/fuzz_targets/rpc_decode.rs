//! Any bytes as a datagram, to both endpoints: `mitosis_core::fuzzing::rpc_decode` says what must
//! hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mitosis_core::fuzzing::rpc_decode(bytes));
