//! SIGTERM and Ctrl-C end a server in its own time: it still tells what it has done.

use std::sync::atomic::{AtomicBool, Ordering};

use mitosis::server::Shutdown;

static WANTED: AtomicBool = AtomicBool::new(false);

/// From now on a signal makes [`wanted`] true and ends the server's wait.
///
/// # Errors
///
/// If it is not the first call.
pub fn watch(server: Shutdown) -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(move || {
        WANTED.store(true, Ordering::Relaxed);
        server.shutdown();
    })
}

/// Whether it is time to end.
pub fn wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}
