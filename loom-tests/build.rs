//! Makes the core's source take its atomics from loom.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(rdma_loom)");
    println!("cargo::rustc-cfg=rdma_loom");
}
