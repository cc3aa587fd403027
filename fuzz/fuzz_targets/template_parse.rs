//! Any bytes as a template: `mitosis_stress::fuzzing::template_parse` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mitosis_stress::fuzzing::template_parse(bytes));
