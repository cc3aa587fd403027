//! One virtual machine: a QEMU process, its console in a file, and what it says about itself.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::network;
use super::Accel;
use crate::settings::MemoryDebugging;

/// Turns every oops and lockup into the machine's end. The kernel's own tests of its ciphers are left out: a sixth of an
/// emulated boot.
const KERNEL_PARAMETERS: &str =
    "console=ttyS0 loglevel=5 panic=-1 oops=panic softlockup_panic=1 hung_task_panic=1 \
    sysctl.kernel.hung_task_timeout_secs=60 cryptomgr.notests=1";

/// Finds memory errors in a module when they happen: `slub_debug`'s checks, red zones and poison, KFENCE, poisoned pages.
/// Each allocation and each packet pays for it, several times over; as much again where the stack of each is kept.
fn memory_debugging(debugging: MemoryDebugging) -> &'static str {
    match debugging {
        MemoryDebugging::Off => "",
        MemoryDebugging::On => {
            " slub_debug=FZP kfence.sample_interval=50 page_poison=1 init_on_free=1"
        }
        MemoryDebugging::Owners => {
            " slub_debug=FZPU kfence.sample_interval=50 page_poison=1 init_on_free=1"
        }
    }
}

/// A processor with all that the emulator knows but two things. Fast strings: it says that it has them, and takes a byte at a
/// time. CMPXCHG16B: QEMU before 8.0 computes the flags after it from a note of the last operation that it has not brought
/// up to date; an interrupt right after it saves an address as flags, and returning to them is a double fault. Kernels
/// allocate with it where nothing debugs the allocator.
const EMULATED: &str = "max,cx16=off,erms=off,fsrm=off";

const QEMU: &str = "qemu-system-x86_64";

/// Of machines that give way: sixteen of them together weigh a fourth of one that does not.
const NICENESS: &str = "19";

/// How many lines of its console an error shows.
const LAST_LINES: usize = 15;

/// What a machine boots, and what with.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) name: String,
    /// From 1: its address, MAC and tap follow.
    pub(super) number: usize,
    pub(super) accel: Accel,
    pub(super) cpus: usize,
    /// Whether it leaves this machine's processors to others that want them.
    pub(super) gives_way: bool,
    pub(super) memory_mib: usize,
    /// Of its network device, in bytes.
    pub(super) link_mtu: u32,
    /// Whether its kernel looks for misuse of memory.
    pub(super) debugging: MemoryDebugging,
    pub(super) kernel: PathBuf,
    pub(super) image: PathBuf,
    /// Without one only the boot itself can be tried.
    pub(super) network: bool,
    pub(super) console: PathBuf,
}

impl Plan {
    fn command(&self) -> Command {
        let mut qemu = if self.gives_way {
            let mut nice = Command::new("nice");
            nice.args(["-n", NICENESS, QEMU]);
            nice
        } else {
            Command::new(QEMU)
        };
        qemu.args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-serial",
            "stdio",
        ]);
        // No disk, no USB, no SMBus: nothing that the kernel would probe in vain.
        qemu.args(["-M", "q35,sata=off,usb=off,smbus=off"]);
        match self.accel {
            Accel::Kvm => qemu.args(["-accel", "kvm", "-cpu", "host"]),
            Accel::Tcg => qemu.args(["-accel", "tcg,thread=multi", "-cpu", EMULATED]),
        };
        qemu.arg("-name").arg(format!("mitosis-{}", self.name));
        qemu.arg("-smp").arg(self.cpus.to_string());
        qemu.arg("-m").arg(self.memory_mib.to_string());
        qemu.arg("-kernel").arg(&self.kernel);
        qemu.arg("-initrd").arg(&self.image);
        qemu.arg("-append").arg(format!(
            "{KERNEL_PARAMETERS}{}{} guest_name={} guest_address={}/24",
            memory_debugging(self.debugging),
            match self.accel {
                Accel::Kvm => String::new(),
                Accel::Tcg => emulated_clock(),
            },
            self.name,
            network::address(self.number)
        ));
        qemu.args([
            "-object",
            "rng-random,id=random,filename=/dev/urandom",
            "-device",
            "virtio-rng-pci,rng=random",
        ]);
        if self.network {
            let tap = network::tap(self.number);
            qemu.arg("-netdev")
                .arg(format!("tap,id=net,ifname={tap},script=no,downscript=no"));
            // The longest ring that there is: datagrams that find no place in it are lost.
            let (mac, mtu) = (network::mac(self.number), self.link_mtu);
            qemu.arg("-device").arg(format!(
                "virtio-net-pci,netdev=net,rx_queue_size=1024,mac={mac},host_mtu={mtu},speed=10000,duplex=full,\
                 romfile="
            ));
        }
        qemu
    }
}

/// Tells the kernel the rate of its time-stamp counter, which under emulation is that of this machine.
///
/// Left to itself it measures the rate, against timers that an emulator on a busy machine serves late: the clock then
/// runs wrong by whole percents, or is given up for a slower one with a warning.
fn emulated_clock() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    tsc_khz(&cpuinfo)
        .map(|khz| format!(" tsc=reliable tsc_early_khz={khz}"))
        .unwrap_or_default()
}

/// The rate of the time-stamp counter: on x86 half of what the kernel prints as BogoMIPS, to 5 kHz.
fn tsc_khz(cpuinfo: &str) -> Option<u64> {
    let value = |line: &str| {
        line.strip_prefix("bogomips")?
            .split_once(':')?
            .1
            .trim()
            .parse::<f64>()
            .ok()
    };
    let bogomips = cpuinfo.lines().find_map(value)?;
    // Anything else is not the rate of a counter.
    (1_000.0..20_000.0)
        .contains(&bogomips)
        .then_some((bogomips * 500.0) as u64)
}

/// What a machine says about itself; the guest's init writes these lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Anything at all, for the first time.
    Alive,
    /// The kernel runs and has started init.
    Booting,
    /// It takes ssh; its first GID, as the kernel prints it.
    Ready { gid: String },
    /// It gave up, and why.
    Failed(String),
    /// QEMU ended.
    Ended,
}

/// A running machine. Dropping it ends it.
pub(super) struct Machine {
    pub(super) plan: Plan,
    qemu: Child,
    reader: Option<JoinHandle<()>>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
}

impl Machine {
    /// Starts it; what it says goes to `events` with its number.
    pub(super) fn start(plan: Plan, events: Sender<(usize, Event)>) -> Result<Self> {
        let console = open_log(&plan.console)?;
        // One pipe for the console and for QEMU's own complaints, in the order in which they come.
        let (read, write) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
        let mut command = plan.command();
        command
            .stdin(Stdio::null())
            .stdout(write.try_clone().context("cannot share a pipe")?)
            .stderr(write);
        // A group of its own: Ctrl-C is for the runner, which has logs to fetch before the machine ends.
        command.process_group(0);
        let qemu = command
            .spawn()
            .context("cannot start qemu-system-x86_64; install qemu-system-x86")?;
        // The command holds the pipe's other end open.
        drop(command);
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let (number, lines) = (plan.number, Arc::clone(&last_lines));
        let reader =
            thread::spawn(move || follow(File::from(read), console, number, &events, &lines));
        Ok(Self {
            plan,
            qemu,
            reader: Some(reader),
            last_lines,
        })
    }

    /// Whether QEMU still runs.
    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.qemu.try_wait(), Ok(None))
    }

    /// The end of its console, indented, for an error.
    pub(super) fn last_lines(&self) -> String {
        let lines = self
            .last_lines
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("\n    {line}")).collect()
    }

    /// Ends it and waits until it is gone. Can be repeated.
    pub(super) fn stop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

fn open_log(path: &Path) -> Result<File> {
    // Appended to: a machine that is started again goes on in the same file. Boot removes old ones.
    File::options()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Copies the console to its file and picks out what the guest's init says.
fn follow(
    pipe: File,
    mut console: File,
    number: usize,
    events: &Sender<(usize, Event)>,
    last_lines: &Mutex<VecDeque<String>>,
) {
    // Nobody listens any more once the cluster is up; that is no reason to stop reading.
    let tell = |event| drop(events.send((number, event)));
    let mut pipe = BufReader::new(pipe);
    let mut bytes = Vec::new();
    let mut alive = false;
    while matches!(pipe.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
        if !alive {
            tell(Event::Alive);
            alive = true;
        }
        // A full disk must not stop the machine.
        let _ = console.write_all(&bytes);
        let line = String::from_utf8_lossy(&bytes).trim_end().to_string();
        bytes.clear();
        if let Some(event) = parse(&line) {
            tell(event);
        }
        let mut lines = last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    tell(Event::Ended);
}

fn parse(line: &str) -> Option<Event> {
    // The kernel may have written half a line before it.
    let (_, said) = line.split_once("mitosis-guest: ")?;
    match said.split_once([' ', ':']) {
        None if said == "booting" => Some(Event::Booting),
        Some(("ready", facts)) => {
            let gid = facts
                .split(' ')
                .find_map(|fact| fact.strip_prefix("gid="))?;
            Some(Event::Ready {
                gid: gid.to_string(),
            })
        }
        Some(("failed", why)) => Some(Event::Failed(why.trim().to_string())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counters_rate_is_half_the_bogomips() {
        let cpuinfo =
            "processor\t: 0\nbogomips\t: 5192.24\n\nprocessor\t: 1\nbogomips\t: 5192.30\n";
        assert_eq!(tsc_khz(cpuinfo), Some(2_596_120));
        assert_eq!(tsc_khz("bogomips\t: 48.00\n"), None);
        assert_eq!(tsc_khz(""), None);
    }

    #[test]
    fn the_guests_lines_are_understood() {
        assert_eq!(parse("mitosis-guest: booting"), Some(Event::Booting));
        let ready = Event::Ready {
            gid: "fe80:0000:0000:0000:5054:00ff:fe49:0001".into(),
        };
        assert_eq!(
            parse("[ 1.0] x mitosis-guest: ready gid=fe80:0000:0000:0000:5054:00ff:fe49:0001"),
            Some(ready)
        );
        assert_eq!(
            parse("mitosis-guest: failed: modprobe x"),
            Some(Event::Failed("modprobe x".into()))
        );
        assert_eq!(parse("mitosis-guest: other"), None);
        assert_eq!(parse("[    0.1] Linux version 6.12"), None);
    }
}
