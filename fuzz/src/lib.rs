//! The fuzz targets, each the body of one in the crate that it tests, and the test that replays their corpora.
//!
//! The kernel modules' crate is not made for a host. What of it reads outside input and needs no kernel is compiled here once
//! more, from the same files.

/// What of `mitosis.ko` runs on a host.
#[path = ""]
#[allow(missing_docs)]
pub mod module {
    #[path = "../../kmod-glue/src/fork/arguments.rs"]
    pub mod arguments;
    #[path = "../../kmod-glue/src/fork/fuzzing.rs"]
    pub mod fuzzing;
}
