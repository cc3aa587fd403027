//! Where work takes place: modules are brought up to date, the cluster is started, the work is done, the cluster is left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;

use crate::build;
use crate::cluster::vm::{self, Accel};
use crate::cluster::{Cluster, Host};
use crate::interrupt::Interrupt;
use crate::klog::watch::Watch;
use crate::progress::Progress;
use crate::report::Report;
use crate::run::{self, Deadlines, Plan};
use crate::settings::{Machines, Settings};
use crate::template::{RunPass, Template};

/// What a stage is set up for.
pub struct Setting<'a> {
    /// Which cluster.
    pub settings: &'a Settings,
    /// What is to run there; says how its modules are made.
    pub template: &'a Template<RunPass>,
    /// Holds `modules/<release>/`.
    pub out: &'a Path,
    /// Where consoles and results go.
    pub directory: &'a Path,
    /// Where progress is told.
    pub progress: &'a Progress,
}

/// A cluster that stands.
pub struct Stage<'a> {
    setting: &'a Setting<'a>,
    cluster: RefCell<Cluster>,
    hosts: Vec<Host>,
    interrupt: Interrupt,
}

/// One run on a stage.
pub struct Act<'a> {
    /// The run's name.
    pub target: &'a str,
    /// The machines that take part, the parent first.
    pub hosts: &'a [Host],
    /// What happens.
    pub passes: &'a [RunPass],
    /// With which parameters.
    pub parameters: &'a BTreeMap<String, u64>,
    /// Holds `modules/<release>/`.
    pub out: &'a Path,
    /// Where its lines go.
    pub progress: &'a Progress,
}

/// Sets up a stage, does `work` there, and leaves it, whatever comes of the work.
pub fn on<T>(setting: &Setting<'_>, work: impl FnOnce(&Stage<'_>) -> Result<T>) -> Result<T> {
    prepare(setting)?;
    let interrupt = Interrupt::from_signals()?;
    let progress = setting.progress;
    progress.step("starting the cluster");
    let cluster = Cluster::start(setting.settings, setting.directory, &interrupt, &|what| {
        progress.step(what)
    });
    // A machine that Ctrl-C ended is no failure to boot.
    interrupt.check()?;
    let cluster = cluster?;
    let stage = Stage {
        setting,
        hosts: cluster.hosts().to_vec(),
        cluster: RefCell::new(cluster),
        interrupt,
    };
    let done = work(&stage);
    progress.step("leaving the cluster");
    drop(stage);
    done
}

impl Stage<'_> {
    /// The machines, the parent first.
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Whether the user asked to stop.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// What runs the instructions of virtual machines.
    pub fn accel(&self) -> Option<Accel> {
        self.cluster.borrow().accel()
    }

    /// Ends one virtual machine as a power cut would.
    pub fn kill(&self, name: &str) -> Result<()> {
        self.cluster.borrow_mut().kill(name)
    }

    /// Boots one virtual machine anew, and waits until it takes ssh.
    pub fn restart(&self, name: &str) -> Result<()> {
        self.cluster.borrow_mut().restart(name, &self.interrupt)
    }

    /// The virtual machines that do not run.
    pub fn absent(&self) -> Vec<String> {
        self.cluster.borrow_mut().absent()
    }

    /// Follows the kernel logs of `hosts` while `work` lasts.
    pub fn watch<T>(
        &self,
        hosts: &[Host],
        progress: &Progress,
        work: impl FnOnce(&mut Watch<'_>) -> Result<T>,
    ) -> Result<T> {
        let deadlines = Deadlines::default();
        let fallen = || self.cluster.borrow_mut().fallen();
        let mut watch = Watch::start(
            hosts,
            deadlines.grace,
            deadlines.command,
            progress,
            &self.interrupt,
            &fallen,
        )?;
        work(&mut watch)
    }

    /// Does one run.
    pub fn perform(&self, act: &Act<'_>) -> Report {
        let fallen = || self.cluster.borrow_mut().fallen();
        let (disposable, accel, known_gid) = {
            let cluster = self.cluster.borrow();
            (cluster.is_virtual(), cluster.accel(), cluster.parent_gid())
        };
        let plan = Plan {
            target: act.target.to_string(),
            hosts: act.hosts,
            disposable,
            passes: act.passes,
            parameters: act.parameters,
            cluster_key: &self.setting.settings.cluster_key,
            parent_gid: self.setting.settings.parent_gid.or(known_gid),
            out: act.out,
            deadlines: Deadlines::default(),
            fallen: &fallen,
        };
        let mut report = run::run(&plan, act.progress, &self.interrupt);
        report.cluster.kind = if disposable { "virtual" } else { "real" }.to_string();
        report.cluster.accel = accel;
        report
    }
}

/// Brings modules and machine images up to date, then goes where the machines are to live.
fn prepare(setting: &Setting<'_>) -> Result<()> {
    let Machines::Virtual(machines) = &setting.settings.machines else {
        return update(setting);
    };
    // Building and fetching take the network and the user's own rights: neither exists inside the namespace, where the
    // program starts a second time.
    if !vm::inside_namespace() {
        update(setting)?;
        vm::prepare(&machines.kernel)?;
    }
    vm::enter_namespace()
}

fn update(setting: &Setting<'_>) -> Result<()> {
    let template = setting.template;
    if let Some(path) = &template.build {
        let module = template
            .passes
            .iter()
            .find_map(|pass| pass.module.as_deref());
        let kernels = build::kernels(setting.settings)?;
        build::update(path, module, &kernels, setting.settings, setting.out)?;
    }
    match &template.programs {
        Some(path) => build::update_programs(path, setting.settings, setting.out),
        None => Ok(()),
    }
}
