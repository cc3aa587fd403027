//! Any scribbles over the memory that two processes share: `mitosis::shm::shm_ring` says what must hold.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mitosis::shm::shm_ring(bytes));
