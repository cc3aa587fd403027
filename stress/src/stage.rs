//! Where work takes place: modules are brought up to date, the cluster is started, the work is done, the cluster is left.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::build;
use crate::cluster::shell::Limit;
use crate::cluster::vm::{self, Accel, Wire};
use crate::cluster::{Cluster, Host};
use crate::interrupt::Interrupt;
use crate::klog::watch::Watch;
use crate::parameters;
use crate::progress::Progress;
use crate::report::{ClusterInfo, Report};
use crate::run::plan::{Deadlines, Plan};
use crate::run::{self, Inspected};
use crate::settings::{Assignments, Machines, Settings};
use crate::template::{RunPass, Template};

/// What a stage is set up for, as a command line says it.
pub struct Setting {
    /// Which cluster.
    pub settings: Settings,
    /// What is to run there; says how its modules are made.
    pub template: Template<RunPass>,
    /// The template's, with the command line's over them.
    pub parameters: BTreeMap<String, u64>,
    /// The run's name.
    pub target: String,
    /// Holds `modules/<release>/`.
    pub out: PathBuf,
    /// Where progress is told.
    pub progress: Progress,
}

impl Setting {
    /// Reads `words`, each `name=value`. Parameters have the values in `defaults`, as far as the
    /// template knows them, unless they are given others.
    pub fn read(
        target: Option<&str>,
        words: &[String],
        defaults: &[(&str, &str)],
        template: &Path,
        out: &Path,
    ) -> Result<Self> {
        let mut assignments = Assignments::parse(words)?;
        let template = Template::<RunPass>::load(template)?;
        let defaults: Vec<(String, String)> = defaults
            .iter()
            .filter(|(name, _)| {
                let mut given = assignments.parameters.iter();
                template.knows(name) && given.all(|(given, _)| given != name)
            })
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        assignments.parameters.extend(defaults);
        let settings = assignments.settings()?;
        Ok(Self {
            settings,
            parameters: parameters::of(&template, &assignments)?,
            target: target.map_or_else(|| template.target(), str::to_string),
            template,
            out: out.to_path_buf(),
            progress: Progress::new(),
        })
    }

    /// Where consoles and results go.
    pub fn directory(&self) -> PathBuf {
        self.out.join(&self.target)
    }

    /// The result of an earlier run is not this one's.
    pub fn forget_result(&self) {
        let _ = std::fs::remove_file(self.directory().join("result.json"));
    }
}

/// A cluster that stands.
pub struct Stage<'a> {
    setting: &'a Setting,
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
pub fn on<T>(setting: &Setting, work: impl FnOnce(&Stage<'_>) -> Result<T>) -> Result<T> {
    let done = prepare(setting).and_then(|()| play(setting, work));
    setting.progress.finish();
    done
}

fn play<T>(setting: &Setting, work: impl FnOnce(&Stage<'_>) -> Result<T>) -> Result<T> {
    let interrupt = Interrupt::from_signals()?;
    let progress = &setting.progress;
    progress.step("starting the cluster");
    let cluster = Cluster::start(
        &setting.settings,
        &setting.directory(),
        &interrupt,
        &|what| progress.step(what),
    );
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

    /// What the machines are, and the same as `result.json` has it.
    pub fn inspect(&self) -> Result<(Vec<Inspected>, ClusterInfo)> {
        let hosts = self.hosts.iter();
        let inspected: Vec<Inspected> = hosts
            .map(|host| run::inspect(host, self.deadlines().command, &self.interrupt))
            .collect::<Result<_>>()?;
        let info =
            |(host, inspected): (&Host, &Inspected)| inspected.info(host, inspected.ports.first());
        let cluster = self.cluster.borrow();
        let kind = if cluster.is_virtual() {
            "virtual"
        } else {
            "real"
        };
        let info = ClusterInfo {
            kind: kind.into(),
            accel: cluster.accel(),
            hosts: self.hosts.iter().zip(&inspected).map(info).collect(),
        };
        Ok((inspected, info))
    }

    /// Queue pairs, completion queues, protection domains and the rest on all machines.
    pub fn resources(&self) -> Result<String> {
        let limit = Limit {
            timeout: self.deadlines().command,
            interrupt: Some(&self.interrupt),
        };
        let hosts = self.hosts.iter();
        let counts: Result<Vec<String>> = hosts
            .map(|host| Ok(host.ask("rdma resource", limit)?.trim().to_string()))
            .collect();
        Ok(counts?.join("; "))
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

    /// What goes to one virtual machine and comes from it.
    pub fn wire(&self, name: &str) -> Result<Wire> {
        self.cluster.borrow_mut().wire(name)
    }

    /// Takes the wire between one virtual machine and all others that are cut off away, or puts it back. ssh goes on.
    pub fn cut_off(&self, name: &str, cut: bool) -> Result<()> {
        self.cluster.borrow_mut().cut_off(name, cut)
    }

    /// The virtual machines that do not run.
    pub fn absent(&self) -> Vec<String> {
        self.cluster.borrow_mut().absent()
    }

    /// Virtual machines share this machine's processors, and any of them may be at work.
    fn deadlines(&self) -> Deadlines {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        if self.cluster.borrow().is_virtual() {
            Deadlines::of_shared_processors(self.hosts.len(), processors)
        } else {
            Deadlines::default()
        }
    }

    /// Follows the kernel logs of `hosts` while `work` lasts.
    pub fn watch<T>(
        &self,
        hosts: &[Host],
        progress: &Progress,
        work: impl FnOnce(&mut Watch<'_>) -> Result<T>,
    ) -> Result<T> {
        let deadlines = self.deadlines();
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
            deadlines: self.deadlines(),
            fallen: &fallen,
        };
        let mut report = run::run(&plan, act.progress, &self.interrupt);
        report.cluster.kind = if disposable { "virtual" } else { "real" }.to_string();
        report.cluster.accel = accel;
        report
    }
}

/// Brings modules and machine images up to date, then goes where the machines are to live.
fn prepare(setting: &Setting) -> Result<()> {
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

fn update(setting: &Setting) -> Result<()> {
    let (template, settings) = (&setting.template, &setting.settings);
    if let Some(path) = &template.build {
        let kernels = build::kernels(settings)?;
        build::update(
            path,
            template.first_module(),
            &kernels,
            settings,
            &setting.out,
        )?;
    }
    match &template.programs {
        Some(path) => build::update_programs(path, settings, &setting.out),
        None => Ok(()),
    }
}
