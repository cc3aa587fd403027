//! A cluster of virtual machines on this machine: the default where no cluster is configured.
//!
//! Each boots the distribution's own kernel with soft-RoCE and an ssh server, and is a [`Host`] like any other. They
//! live in [namespaces of their own](enter_namespace): nothing of this machine's network is touched, and nothing stays
//! behind. docs/cluster.md tells the whole story.

mod accel;
mod machine;
mod namespace;
mod network;
mod ssh;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, Context, Result};

pub use accel::Accel;
pub use namespace::{enter_namespace, inside_namespace};
pub use wire::Wire;

use self::machine::{Event, Machine, Plan};
use self::ssh::{Master, Ssh};
use super::{Host, Role};
use crate::interrupt::Interrupt;
use crate::settings::MemoryDebugging;

/// How often a wait looks at the interrupt.
const TICK: Duration = Duration::from_millis(100);

/// What to boot.
pub struct VmConfig<'a> {
    /// The kernel's series, `6.12` or `6.1`.
    pub kernel: String,
    /// Machines beside the server's.
    pub clients: usize,
    /// Virtual CPUs a machine.
    pub cpus: usize,
    /// Memory a machine; 384 does for the modules' own tests.
    pub memory_mib: usize,
    /// The RDMA path MTU in bytes.
    pub mtu: u32,
    /// Whether their kernels look for misuse of memory.
    pub debugging: MemoryDebugging,
    /// Where console logs go, `<name>.console.log`, and a script that opens a shell on a machine, `shell`.
    pub log_dir: PathBuf,
    /// Raised, it ends a boot.
    pub interrupt: &'a Interrupt,
    /// Told in a few words what is being done.
    pub progress: &'a dyn Fn(&str),
}

/// How long one machine may take from its start to its being ready: 6 s on an idle processor, emulated.
const BOOT_TIMEOUT: Duration = Duration::from_secs(150);

/// A machine that was started and is not ready yet.
struct Booting {
    index: usize,
    deadline: Instant,
}

/// A running cluster. Dropping it ends every machine.
pub struct VmCluster {
    hosts: Vec<Host>,
    // Connections first: fields are dropped in this order.
    masters: Vec<Option<Master>>,
    machines: Vec<Option<Machine>>,
    plans: Vec<Plan>,
    gids: Vec<String>,
    accel: Accel,
    release: String,
    ssh: Ssh,
    shell: PathBuf,
    sender: Sender<(usize, Event)>,
    events: Receiver<(usize, Event)>,
}

/// Brings the kernel and the guest's image into the cache, and returns the image's path.
///
/// The first time this fetches packages, so it must come before [`enter_namespace`]: there is no network inside.
/// Nothing is printed once they are there.
pub fn prepare(kernel: &str) -> Result<PathBuf> {
    let output = script("guest/image.sh", kernel)?;
    Ok(output.into())
}

impl VmCluster {
    /// Boots all machines and waits until each takes ssh.
    pub fn boot(config: &VmConfig<'_>) -> Result<Self> {
        let sockets = namespace::run_directory()?;
        let count = 1 + config.clients;
        if count > network::MAX_MACHINES {
            bail!(
                "{} clients: at most {} machines have an address",
                config.clients,
                network::MAX_MACHINES
            );
        }
        let image = prepare(&config.kernel)?;
        let kernel = PathBuf::from(script("kernels.sh", &config.kernel)?);
        let release = fs::read_to_string(kernel.join("release"))
            .context("the kernel's release")?
            .trim()
            .to_string();
        let cache = kernel
            .parent()
            .and_then(Path::parent)
            .context("the cache's path")?;
        let log_dir = &config.log_dir;
        fs::create_dir_all(log_dir)
            .with_context(|| format!("cannot make {}", log_dir.display()))?;
        remove_old_logs(log_dir)?;

        // All wait for the first machine, which serves: with a fair share beside sixteen clients it answers nobody in time.
        let crowded = count * config.cpus > processors();
        let plan = |number: usize, accel| {
            let name = format!("val{number:02}");
            Plan {
                console: log_dir.join(format!("{name}.console.log")),
                name,
                number,
                accel,
                cpus: config.cpus,
                gives_way: crowded && number > 1,
                memory_mib: config.memory_mib,
                link_mtu: network::link_mtu(config.mtu),
                debugging: config.debugging,
                kernel: kernel.join("vmlinuz"),
                image: image.clone(),
                network: true,
            }
        };
        let accel = accel::choose(
            &plan(1, Accel::Tcg),
            &cache.join("accel"),
            config.interrupt,
            config.progress,
        )?;
        let plans: Vec<Plan> = (1..=count).map(|number| plan(number, accel)).collect();
        network::create(count, network::link_mtu(config.mtu))?;

        let ssh = Ssh {
            keys: cache.join("ssh"),
            sockets,
        };
        let hosts = plans.iter().map(|plan| Host {
            name: plan.name.clone(),
            role: if plan.number == 1 {
                Role::Parent
            } else {
                Role::Child
            },
            address: network::address(plan.number),
            ssh: ssh.words(&network::address(plan.number)),
            directory: "/mitosis".into(),
        });
        let (sender, events) = mpsc::channel();
        let mut cluster = Self {
            hosts: hosts.collect(),
            masters: plans.iter().map(|_| None).collect(),
            machines: plans.iter().map(|_| None).collect(),
            gids: vec![String::new(); count],
            plans,
            accel,
            release,
            ssh,
            shell: log_dir.join("shell"),
            sender,
            events,
        };
        cluster.start_all(config.interrupt, config.progress)?;
        cluster.write_shell_script()?;
        Ok(cluster)
    }

    /// The machines: the parent, `val01`, then its children.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// What runs their instructions.
    pub fn accel(&self) -> Accel {
        self.accel
    }

    /// Their kernel, as `uname -r` says it.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The first GID of the parent's RDMA device, link-local, all digits written.
    pub fn parent_gid(&self) -> &str {
        &self.gids[0]
    }

    /// The machines that ended by themselves (an oops ends one), each with the end of its console.
    pub fn fallen(&mut self) -> Vec<(String, String)> {
        let running = self.machines.iter_mut().flatten();
        running
            .filter_map(|machine| {
                (!machine.is_running()).then(|| (machine.plan.name.clone(), machine.last_lines()))
            })
            .collect()
    }

    /// The machines that do not run: they ended by themselves, or were killed.
    pub fn absent(&mut self) -> Vec<String> {
        let mut absent = Vec::new();
        for (machine, plan) in self.machines.iter_mut().zip(&self.plans) {
            if !machine.as_mut().is_some_and(Machine::is_running) {
                absent.push(plan.name.clone());
            }
        }
        absent
    }

    /// Ends one machine as a power cut would.
    pub fn kill_host(&mut self, name: &str) -> Result<()> {
        let index = self.index(name)?;
        self.masters[index] = None;
        self.machines[index] = None;
        Ok(())
    }

    /// Boots one machine anew, and waits until it takes ssh. Nothing of it survives but its name and addresses.
    pub fn restart_host(&mut self, name: &str, interrupt: &Interrupt) -> Result<()> {
        self.kill_host(name)?;
        let index = self.index(name)?;
        // What was said by the machine that is gone now.
        while self.events.try_recv().is_ok() {}
        self.start(&[index], interrupt, &|_| {})
    }

    /// What goes to a machine and comes from it.
    pub fn wire(&self, name: &str) -> Result<Wire> {
        Wire::of(self.plans[self.index(name)?].number)
    }

    /// Takes a machine's wire to all others that are cut off away, or puts it back.
    pub fn cut_off(&self, name: &str, cut: bool) -> Result<()> {
        network::cut_off(self.plans[self.index(name)?].number, cut)
    }

    /// Ends all machines; `Err` where one had ended by itself.
    pub fn shutdown(mut self) -> Result<()> {
        match self.fallen().first() {
            None => Ok(()),
            Some((name, console)) => {
                bail!("{name} ended by itself; its console's last lines:{console}")
            }
        }
    }

    fn index(&self, name: &str) -> Result<usize> {
        let index = self.hosts.iter().position(|host| host.name == name);
        index.with_context(|| format!("the cluster has no host {name}"))
    }

    fn start_all(&mut self, interrupt: &Interrupt, progress: &dyn Fn(&str)) -> Result<()> {
        let all: Vec<usize> = (0..self.plans.len()).collect();
        self.start(&all, interrupt, progress)
    }

    /// Boots some machines, and connects to each as soon as it is ready.
    fn start(
        &mut self,
        indices: &[usize],
        interrupt: &Interrupt,
        progress: &dyn Fn(&str),
    ) -> Result<()> {
        let total = indices.len();
        // A boot is nearly all computing: more at a time than this only get into each other's way. Eleven machines on
        // two busy processors took 95 s at once, and 47 s by threes.
        let at_once = 1 + processors();
        let mut queue = indices.iter().copied();
        let mut booting: Vec<Booting> = Vec::new();
        let mut up = 0;
        progress(&format!("booting, {up} of {total} machines are up"));
        while up < total {
            for index in queue.by_ref().take(at_once - booting.len()) {
                self.machines[index] = Some(Machine::start(
                    self.plans[index].clone(),
                    self.sender.clone(),
                )?);
                booting.push(Booting {
                    index,
                    deadline: Instant::now() + BOOT_TIMEOUT,
                });
            }
            let (number, event) = self.next_event(interrupt, &booting)?;
            let index = number - 1;
            let name = &self.plans[index].name;
            match event {
                Event::Alive | Event::Booting => {}
                Event::Ready { gid } => {
                    self.gids[index] = gid;
                    self.masters[index] = Some(self.ssh.connect(&network::address(number))?);
                    booting.retain(|other| other.index != index);
                    up += 1;
                    progress(&format!("booting, {up} of {total} machines are up"));
                }
                Event::Failed(why) => bail!("{name} cannot start: {why}{}", self.console_of(index)),
                Event::Ended => bail!("{name} ended while booting{}", self.console_of(index)),
            }
        }
        for &index in indices {
            interrupt.check()?;
            if let Some(master) = &mut self.masters[index] {
                master.wait().with_context(|| {
                    format!("{} is up but does not take ssh", self.plans[index].name)
                })?;
            }
        }
        Ok(())
    }

    fn next_event(&self, interrupt: &Interrupt, booting: &[Booting]) -> Result<(usize, Event)> {
        loop {
            interrupt.check()?;
            match self.events.recv_timeout(TICK) {
                Ok(event) => return Ok(event),
                Err(RecvTimeoutError::Timeout) => {}
                // Not while this cluster holds a sender itself.
                Err(RecvTimeoutError::Disconnected) => bail!("no machine can be heard"),
            }
            let now = Instant::now();
            if let Some(late) = booting.iter().find(|booting| booting.deadline <= now) {
                let (name, seconds) = (&self.plans[late.index].name, BOOT_TIMEOUT.as_secs());
                bail!(
                    "{name} is not up after {seconds} s{}",
                    self.console_of(late.index)
                );
            }
        }
    }

    fn console_of(&self, index: usize) -> String {
        let lines = self.machines[index]
            .as_ref()
            .map(Machine::last_lines)
            .unwrap_or_default();
        format!(
            "; all of it is in {}, its last lines:{lines}",
            self.plans[index].console.display()
        )
    }

    /// A person's way into a machine, from outside the namespace.
    fn write_shell_script(&self) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        // As /proc shows it, which was mounted outside: this process's id there.
        let pid = fs::read_link("/proc/self").context("this process's id")?;
        let pid = pid.display();
        let words = self.ssh.words("ADDRESS");
        let options: Vec<String> = words[1..words.len() - 2]
            .iter()
            .filter(|word| *word != "-T" && !word.starts_with("-oControlPath"))
            .map(|word| super::shell::quote(word))
            .collect();
        let script = format!(
            "#!/bin/sh\n\
             # usage: shell [val01|val02|…] [COMMAND]: a shell on a machine of the cluster that runs now.\n\
             name=${{1-val01}}\n\
             [ $# = 0 ] || shift\n\
             number=${{name#val}}\n\
             [ \"$(id -u)\" = 0 ] || user='-U --preserve-credentials'\n\
             [ -e /proc/{pid} ] || {{ echo 'this cluster runs no more' >&2; exit 1; }}\n\
             exec nsenter $user -n -t {pid} ssh {} -oConnectTimeout=5 \"root@10.73.0.${{number#0}}\" \"$@\"\n",
            options.join(" ")
        );
        fs::write(&self.shell, script)
            .with_context(|| format!("cannot write {}", self.shell.display()))?;
        fs::set_permissions(&self.shell, fs::Permissions::from_mode(0o755))
            .context("cannot set permissions")
    }
}

impl Drop for VmCluster {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.shell);
    }
}

/// Of this machine, that its virtual machines share.
fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from)
}

fn remove_old_logs(directory: &Path) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?
    {
        let path = entry.context("cannot read a directory")?.path();
        if path.to_string_lossy().ends_with(".console.log") {
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Runs one of this folder's scripts for `kernel`; what it prints is its answer, what it complains of is for the user.
fn script(name: &str, kernel: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let output = Command::new(&path)
        .arg(kernel)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {}", path.display()))?;
    if !output.status.success() {
        return Err(anyhow!(
            "{name} {kernel} failed; `make setup` brings all that it needs"
        ));
    }
    Ok(String::from_utf8(output.stdout)
        .context("a path that is not UTF-8")?
        .trim_end()
        .to_string())
}
