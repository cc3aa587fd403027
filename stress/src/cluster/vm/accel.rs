//! Whether KVM works here, found out by booting.
//!
//! A host can have a /dev/kvm that opens, answers its ioctls, and still cannot run a stock kernel (some nested
//! hypervisors); QEMU then prints `KVM internal error` and hangs. So the kernel in question is booted once, up to its
//! init, and the answer kept until the next boot of this machine.

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use serde::Serialize;

use super::machine::{Event, Machine, Plan};
use crate::interrupt::Interrupt;

/// A kernel that runs under KVM has said something by then, and started init by [`INIT_BY`].
const FIRST_WORD_BY: Duration = Duration::from_secs(5);
const INIT_BY: Duration = Duration::from_secs(20);

/// What runs the guests' instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor.
    Kvm,
    /// QEMU's emulation: right, and many times slower.
    Tcg,
}

impl Accel {
    fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [Self::Kvm, Self::Tcg]
            .into_iter()
            .find(|accel| accel.as_str() == name)
    }
}

/// Chooses for machines like `plan`: what `ACCEL` says, or what `file` remembers, or what a trial shows.
pub(super) fn choose(
    plan: &Plan,
    file: &Path,
    interrupt: &Interrupt,
    progress: &dyn Fn(&str),
) -> Result<Accel> {
    match std::env::var("ACCEL").as_deref() {
        Err(_) | Ok("") => {}
        Ok(name) => {
            return Accel::from_name(name)
                .with_context(|| format!("ACCEL is '{name}': say kvm or tcg"))
        }
    }
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(Accel::Tcg);
    }
    let key = key(plan)?;
    let memory = fs::read_to_string(file).unwrap_or_default();
    let remembered = memory
        .lines()
        .find_map(|line| Accel::from_name(line.strip_prefix(&key)?.trim()));
    if let Some(accel) = remembered {
        return Ok(accel);
    }
    progress("trying KVM");
    let accel = match try_kvm(plan, interrupt)? {
        None => Accel::Kvm,
        Some(why) => {
            progress(&format!(
                "KVM does not run this kernel here ({why}): emulating, which is slower"
            ));
            Accel::Tcg
        }
    };
    // Only this boot's answers are worth keeping.
    let boot = key.split(' ').next().unwrap_or_default();
    let mut memory: String = memory
        .lines()
        .filter(|line| line.starts_with(boot))
        .map(|line| format!("{line}\n"))
        .collect();
    memory += &format!("{key} {}\n", accel.as_str());
    fs::write(file, memory).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(accel)
}

/// What the answer depends on: the boot of this machine, the user's access and the kernel.
fn key(plan: &Plan) -> Result<String> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .context("cannot read this boot's id")?;
    Ok(format!("{} {}", boot.trim(), plan.kernel.display()))
}

/// Why KVM does not work, if so.
fn try_kvm(plan: &Plan, interrupt: &Interrupt) -> Result<Option<String>> {
    let plan = Plan {
        name: "kvm-trial".into(),
        accel: Accel::Kvm,
        network: false,
        ..plan.clone()
    };
    let plan = Plan {
        console: plan.console.with_file_name("kvm-trial.console.log"),
        ..plan
    };
    let (sender, events) = mpsc::channel();
    let started = Instant::now();
    let mut deadline = started + FIRST_WORD_BY;
    let machine = Machine::start(plan, sender)?;
    loop {
        if interrupt.is_raised() {
            bail!(crate::interrupt::Interrupted);
        }
        // QEMU's own words are no sign of life, and it hangs after these.
        let said = machine.last_lines();
        if said.contains("KVM internal error") {
            return Ok(Some("KVM internal error".into()));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Some(format!(
                "no sign of life after {} s",
                started.elapsed().as_secs()
            )));
        }
        match events.recv_timeout(left.min(Duration::from_millis(200))) {
            Ok((_, Event::Alive)) => deadline = started + INIT_BY,
            Ok((_, Event::Booting | Event::Ready { .. } | Event::Failed(_))) => return Ok(None),
            Ok((_, Event::Ended)) => {
                let said = machine.last_lines();
                let complaint = said
                    .lines()
                    .find(|line| line.contains("error"))
                    .or(said.lines().last());
                return Ok(Some(complaint.unwrap_or("QEMU ended").trim().to_string()));
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(Some("QEMU ended".into())),
        }
    }
}
