//! One fork: a process prepares a seed of itself, spoils its own memory, and resumes the seed in a process beside it, which
//! must find what was there before.

use mitosis_fork::{prepare, Device, Image, OpenOptions, PrepareOptions, Prepared};
use mitosis_userspace_programs::info;

use super::{Place, LOG};

/// Words of memory that the child verifies: 2 MiB.
const WORDS: usize = 1 << 18;
/// Exit statuses of a child: all is right, something is wrong, there was no child.
const RIGHT: i32 = 42;
const WRONG: i32 = 43;
const NONE: i32 = 44;

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Place,
    /// Leaves the connection to the machine that is there already, instead of making a new one. Root's privilege.
    #[arg(long)]
    keep: bool,
}

fn word(index: usize) -> u64 {
    (index as u64 ^ 0x5eed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Forks once.
pub fn run(arguments: &Arguments) -> Result<(), String> {
    let machine = arguments.place.machine();
    let device = Device::open().map_err(|error| error.to_string())?;
    if !arguments.keep {
        // There may be none.
        let _ = device.disconnect(machine);
    }
    let mut memory: Vec<u64> = (0..WORDS).map(word).collect();
    // SAFETY: this process has one thread.
    let prepared = unsafe { prepare(&PrepareOptions::default()) };
    let seed = match prepared.map_err(|error| format!("cannot prepare: {error}"))? {
        Prepared::Child(_) => {
            let right = memory
                .iter()
                .enumerate()
                .all(|(index, found)| *found == word(index));
            // SAFETY: ends the process, whose handlers are the original's.
            unsafe { libc::_exit(if right { RIGHT } else { WRONG }) }
        }
        Prepared::Parent(seed) => seed,
    };
    memory.fill(0);
    // SAFETY: this process has one thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        let options = OpenOptions::default();
        let outcome =
            Image::open(machine, seed.id, Some(seed.capability), &options).and_then(|image| {
                let mut resumption = image.resumption()?;
                // SAFETY: this is a copy of one thread, which ends if it does not become the child.
                Err::<(), _>(unsafe { resumption.run(image.fd(), 1) })
            });
        if let Err(error) = outcome {
            info!(LOG, "cannot resume: {error}");
        }
        // SAFETY: as above.
        unsafe { libc::_exit(NONE) }
    }
    let mut status = 0;
    // SAFETY: `status` is valid during the call.
    let waited = unsafe { libc::waitpid(pid, &mut status, 0) };
    let unprepared = seed.unprepare();
    if pid < 0 || waited != pid {
        return Err(format!("cannot fork: {}", std::io::Error::last_os_error()));
    }
    if !libc::WIFEXITED(status) {
        return Err(format!(
            "a signal ended the child: {}",
            libc::WTERMSIG(status)
        ));
    }
    match libc::WEXITSTATUS(status) {
        RIGHT => {}
        WRONG => return Err("the child's memory is wrong".into()),
        NONE => return Err("there is no child".into()),
        other => return Err(format!("the child ended with status {other}")),
    }
    unprepared.map_err(|error| format!("cannot end the seed: {error}"))?;
    info!(LOG, "forked: {WORDS} words verified");
    Ok(())
}
