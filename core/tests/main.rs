//! The core as its users see it: both endpoints, every message, descriptors. One program, so that it is linked once.

mod call_whole;
mod calls;
mod counts;
mod descriptor;
mod grants;
mod handshakes;
mod keys;
mod messages;
mod network;
mod repeated;
mod serve_whole;
mod sessions;
mod texts;
mod timers;
mod turns;
mod wire;
