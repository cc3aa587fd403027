//! Hosts: what a run is given to work on.
//!
//! A host is something reached by ssh. [`vm`] boots one's own on this machine; [`remote`] takes those that the user's
//! `makefile` names. Nothing above this module knows which of the two it was given.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use self::vm::{Accel, VmCluster, VmConfig, Wire};
use crate::interrupt::Interrupt;
use crate::settings::{Gid, Machines, MemoryDebugging, Settings};

pub mod remote;
pub mod shell;
pub mod vm;

/// What a host does in a run.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the RPC server; the parent of remote forks.
    Parent,
    /// Runs RPC clients; remote forks appear here.
    Child,
}

/// A machine of the cluster.
#[derive(Clone, Debug)]
pub struct Host {
    /// The name shown before each of its lines, `val02`.
    pub name: String,
    /// What it does in a run.
    pub role: Role,
    /// By which the other hosts reach it over TCP: an IP address or a name.
    pub address: String,
    /// The words that, followed by one shell command, run it there as root: `ssh -o … root@10.73.0.2 --`.
    pub ssh: Vec<String>,
    /// A directory there for modules and other files; exists or can be made.
    pub directory: PathBuf,
}

/// As the last word of [`Host::ssh`]: the command becomes one argument of a second shell, which runs it as root. The
/// first shell, which is that of ssh's account, takes the argument's quotes away.
pub const SUDO_SHELL: &str = "sudo -n sh -c";

/// insmod and its kin are not on everybody's path.
const PATHS: &str = "PATH=$PATH:/usr/sbin:/sbin; ";

impl Host {
    /// A command that runs `script` on this host through its shell.
    pub fn command(&self, script: &str) -> Command {
        let script = format!("{PATHS}{script}");
        let mut command = Command::new(&self.ssh[0]);
        command.args(&self.ssh[1..]);
        if self.ssh.last().is_some_and(|word| word == SUDO_SHELL) {
            command.arg(shell::quote(&script));
        } else {
            command.arg(script);
        }
        command
    }
}

/// The machines of a run, however they came about. Dropping it ends those that were booted for it.
pub struct Cluster {
    hosts: Vec<Host>,
    machines: Option<VmCluster>,
    /// Holds the consoles.
    directory: PathBuf,
}

impl Cluster {
    /// Boots what `settings` ask for, or takes the machines that they name. Booting tells `progress` how far it is and
    /// leaves consoles in `directory`.
    pub fn start(
        settings: &Settings,
        directory: &Path,
        interrupt: &Interrupt,
        progress: &dyn Fn(&str),
    ) -> Result<Self> {
        let directory = directory.to_path_buf();
        match &settings.machines {
            Machines::Real(real) => Ok(Self {
                hosts: remote::hosts(real),
                machines: None,
                directory,
            }),
            Machines::Virtual(machines) => {
                let cluster = VmCluster::boot(&VmConfig {
                    kernel: machines.kernel.clone(),
                    clients: machines.clients as usize,
                    cpus: machines.cpus as usize,
                    memory_mib: machines.memory_mib as usize,
                    mtu: machines.mtu,
                    debugging: machines.debugging.unwrap_or(MemoryDebugging::On),
                    log_dir: directory.clone(),
                    interrupt,
                    progress,
                })?;
                Ok(Self {
                    hosts: cluster.hosts().to_vec(),
                    machines: Some(cluster),
                    directory,
                })
            }
        }
    }

    /// The parent, then its children.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Whether it ends with the run.
    pub fn is_virtual(&self) -> bool {
        self.machines.is_some()
    }

    /// What runs the instructions of virtual machines.
    pub fn accel(&self) -> Option<Accel> {
        self.machines.as_ref().map(VmCluster::accel)
    }

    /// The server's GID where the cluster itself knows it.
    pub fn parent_gid(&self) -> Option<Gid> {
        self.machines.as_ref()?.parent_gid().parse().ok()
    }

    /// The virtual machines that ended by themselves.
    pub fn fallen(&mut self) -> Vec<Fallen> {
        let fallen = self
            .machines
            .as_mut()
            .map(VmCluster::fallen)
            .unwrap_or_default();
        fallen
            .into_iter()
            .map(|(name, last)| self.console_of(name, last))
            .collect()
    }

    /// Ends one virtual machine as a power cut would.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.virtual_machines()?.kill_host(name)
    }

    /// Boots one virtual machine anew, and waits until it takes ssh.
    pub fn restart(&mut self, name: &str, interrupt: &Interrupt) -> Result<()> {
        self.virtual_machines()?.restart_host(name, interrupt)
    }

    /// The virtual machines that do not run, for whatever reason.
    pub fn absent(&mut self) -> Vec<String> {
        self.machines
            .as_mut()
            .map(VmCluster::absent)
            .unwrap_or_default()
    }

    /// What goes to a virtual machine and comes from it.
    pub fn wire(&mut self, name: &str) -> Result<Wire> {
        self.virtual_machines()?.wire(name)
    }

    /// Takes a virtual machine's wire to all others that are cut off away, or puts it back.
    pub fn cut_off(&mut self, name: &str, cut: bool) -> Result<()> {
        self.virtual_machines()?.cut_off(name, cut)
    }

    fn virtual_machines(&mut self) -> Result<&mut VmCluster> {
        self.machines
            .as_mut()
            .context("only a virtual cluster's machines can be ended and booted")
    }

    fn console_of(&self, name: String, last: String) -> Fallen {
        let path = self.directory.join(format!("{name}.console.log"));
        // A trace is longer than the lines that the machine itself remembers. What it said until it was up is not
        // looked at, as in a log.
        let console = std::fs::read(&path).map_or(last, |bytes| {
            let text = String::from_utf8_lossy(&bytes);
            text.rsplit("mitosis-guest: ready")
                .next()
                .unwrap_or_default()
                .to_string()
        });
        Fallen {
            name,
            path,
            console,
        }
    }
}

/// A machine that ended by itself.
#[derive(Clone, Debug)]
pub struct Fallen {
    /// Its name.
    pub name: String,
    /// Its console's file.
    pub path: PathBuf,
    /// What its console said since it was up.
    pub console: String,
}
