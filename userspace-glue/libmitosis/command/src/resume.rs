//! `mitosis resume`

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{anyhow, Context, Error};
use mitosis_fork::Error as Failure;

use crate::arguments::Resume;

/// How often a new process is tried where the last had something in the seed's way. One of some
/// hundred has.
const ATTEMPTS: u32 = 20;
/// Counts them, from one process to the next.
const ATTEMPT: &str = "MITOSIS_RESUME_ATTEMPT";

/// Continues a seed in place of this process. Returns only why not.
pub fn resume(wanted: &Resume) -> Error {
    let failure = match wanted.of.open() {
        Ok(image) => match image.resumption() {
            Ok(mut resumption) => {
                if wanted.skip_files {
                    resumption.skip_files();
                }
                // SAFETY: this process has one thread, and no file that matters if this fails.
                unsafe { resumption.run(image.fd(), wanted.child) }
            }
            Err(failure) => failure,
        },
        Err(failure) => failure,
    };
    match failure {
        Failure::InTheWay { .. } => again(failure),
        other => other.into(),
    }
}

/// Starts this command anew: its addresses are drawn at random.
fn again(failure: Failure) -> Error {
    let attempt = env::var(ATTEMPT).ok().and_then(|text| text.parse().ok());
    let attempt: u32 = attempt.unwrap_or(1);
    if attempt >= ATTEMPTS {
        return anyhow!("{failure} ({attempt} processes tried)");
    }
    let error = Command::new("/proc/self/exe")
        .args(env::args_os().skip(1))
        .env(ATTEMPT, (attempt + 1).to_string())
        .exec();
    Err::<(), _>(error)
        .context("cannot start mitosis anew")
        .unwrap_err()
}
