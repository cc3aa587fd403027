//! Any script of calls, faults, crashes and forged datagrams: `mitosis_testkit::fuzzing::session_script` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mitosis_testkit::fuzzing::session_script(bytes));
