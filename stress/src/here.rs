//! The RPC stress test on this machine: the same template, lines, table and verdict, with the template's programs as processes
//! that call each other through shared memory. No cluster, and nothing to set up.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use mitosis_core::histogram::Histogram;
use nix::sys::signal::{kill, Signal};
use nix::unistd::Pid;

use crate::cluster::Role;
use crate::interrupt::{Interrupt, Interrupted};
use crate::klog::audit::{Finding, Kind};
use crate::klog::log::HostLog;
use crate::parameters;
use crate::progress::Progress;
use crate::report::{table, Figures, HostFigures, HostInfo, Report, Verdict};
use crate::run::evaluate::cluster_latency;
use crate::run::evaluate::requests::{figures, totals};
use crate::run::finding_of;
use crate::settings::{Assignments, Machines};
use crate::template::{fill, Counts, RunPass, Template};

/// How long a program may take to be ready, and to report beyond the time that it runs.
const SLACK: Duration = Duration::from_secs(30);

/// How often an interrupt is looked for.
const TICK: Duration = Duration::from_millis(100);

/// What the command line says.
#[derive(clap::Args)]
pub struct Arguments {
    /// A file of templates-run/ whose passes run programs.
    template: PathBuf,
    /// Parameters of the template (thread_count=4), CLIENTS= and CLUSTER_KEY=.
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Where the result goes.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// The run.
pub fn main(arguments: &Arguments) -> Result<Verdict> {
    let started = Instant::now();
    let assignments = Assignments::parse(&arguments.assignments)?;
    let settings = assignments.settings()?;
    let clients = match &settings.machines {
        Machines::Virtual(machines) => machines.clients,
        Machines::Real(machines) => machines.children.len() as u32,
    };
    let template = Template::<RunPass>::load(&arguments.template)?;
    let parameters = parameters::of(&template, &assignments)?;
    let directory = arguments.out.join(template.target());
    // What an earlier run left there is not this one's.
    let _ = std::fs::remove_file(directory.join("result.json"));
    let interrupt = Interrupt::from_signals()?;
    let progress = Progress::new();
    let mut report = Report::of(template.target(), parameters.clone(), Counts::Requests);
    report.cluster.kind = "processes".into();
    let names = (0..=clients).map(|index| format!("val{:02}", index + 1));
    let (said, hear) = channel();
    let mut run = Run {
        processes: names.map(|name| Process::of(&name)).collect(),
        parameters: &parameters,
        cluster_key: &settings.cluster_key,
        address: format!("shm://{}-{}", template.target(), std::process::id()),
        said,
        hear,
        findings: Vec::new(),
        progress: &progress,
        interrupt: &interrupt,
    };
    if let Err(error) = run.perform(&template.passes) {
        run.findings.push(finding_of(&error, &[]));
    }
    run.end();
    progress.finish();
    run.evaluate(&mut report);
    report.seconds = started.elapsed().as_secs_f64();
    report.write(&directory)?;
    println!();
    print!("{}", table::render(&report));
    println!("{}", directory.join("result.json").display());
    if report.interrupted() {
        return Err(Interrupted.into());
    }
    Ok(report.verdict())
}

/// A process that stands for a machine.
struct Process {
    log: HostLog,
    child: Option<Child>,
    /// What it says when its part is done.
    done: Option<String>,
}

impl Process {
    fn of(name: &str) -> Self {
        Self {
            log: HostLog::of(name),
            child: None,
            done: None,
        }
    }
}

/// A line of a process, or its end.
type Said = (usize, Option<String>);

struct Run<'a> {
    /// The server first.
    processes: Vec<Process>,
    parameters: &'a BTreeMap<String, u64>,
    cluster_key: &'a str,
    address: String,
    said: Sender<Said>,
    hear: Receiver<Said>,
    findings: Vec<Finding>,
    progress: &'a Progress,
    interrupt: &'a Interrupt,
}

impl Run<'_> {
    fn perform(&mut self, passes: &[RunPass]) -> Result<()> {
        for pass in passes {
            let Some(program) = &pass.program else {
                bail!(
                    "the pass '{}' runs no program: this template wants a cluster",
                    pass.name
                );
            };
            self.progress.step(&format!("starting {}", pass.name));
            let of_role = match pass.role {
                Role::Parent => 0..1,
                Role::Child => 1..self.processes.len(),
            };
            for index in of_role.clone() {
                self.start(index, pass, program)?;
            }
            if let Some(ready) = &pass.ready {
                self.wait(SLACK, |run| {
                    of_role
                        .clone()
                        .all(|index| run.processes[index].log.said(ready))
                })?;
            }
            if let Some(done) = &pass.done {
                let running_secs = self.parameters.get("client_running_secs").copied();
                let limit = Duration::from_secs(running_secs.unwrap_or(0)) + SLACK;
                self.wait(limit, |run| {
                    of_role
                        .clone()
                        .all(|index| run.processes[index].log.said(done))
                })?;
            }
        }
        Ok(())
    }

    fn start(&mut self, index: usize, pass: &RunPass, program: &str) -> Result<()> {
        let arguments = fill(&pass.arguments, |name| match name {
            "address" => Some(self.address.clone()),
            name => self.parameters.get(name).map(u64::to_string),
        })
        .map_err(anyhow::Error::msg)?;
        let optional = pass.optional.iter().filter_map(|name| {
            let value = self.parameters.get(name)?;
            Some([format!("--{}", name.replace('_', "-")), value.to_string()])
        });
        // Programs lie beside this one: cargo has made both.
        let path = std::env::current_exe()?.with_file_name(program);
        let mut command = Command::new(&path);
        command
            .args(arguments.split_whitespace())
            .args(optional.flatten());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if !self.cluster_key.is_empty() {
            command.env("CLUSTER_KEY", self.cluster_key);
        }
        let mut child = command.spawn().with_context(|| {
            format!(
                "cannot start {}: `make peak-rpc` builds it first",
                path.display()
            )
        })?;
        let lines = child.stdout.take().map(BufReader::new);
        self.processes[index].child = Some(child);
        self.processes[index].done.clone_from(&pass.done);
        let said = self.said.clone();
        std::thread::spawn(move || {
            let lines = lines
                .into_iter()
                .flat_map(BufRead::lines)
                .map_while(Result::ok);
            for line in lines {
                if said.send((index, Some(line))).is_err() {
                    return;
                }
            }
            let _ = said.send((index, None));
        });
        Ok(())
    }

    /// Takes in what the processes say until `over`, or one of them has ended too early.
    fn wait(&mut self, limit: Duration, over: impl Fn(&Self) -> bool) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !over(self) {
            self.interrupt.check()?;
            if Instant::now() >= deadline {
                bail!("nothing came of it within {} s", limit.as_secs());
            }
            match self.hear.recv_timeout(TICK) {
                Ok(said) => self.take(said),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("all programs have ended"),
            }
            let ended = |process: &Process| {
                let done = process.done.as_ref();
                process.log.is_lost() && !done.is_some_and(|done| process.log.said(done))
            };
            if let Some(process) = self.processes.iter().find(|process| ended(process)) {
                if !over(self) {
                    bail!("{}: its program has ended too early", process.log.name);
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, (index, line): Said) {
        let process = &mut self.processes[index];
        let Some(line) = line else {
            process.log.lose();
            return;
        };
        // The programs write the time since their last line themselves.
        let text = line
            .split_once("] ")
            .map_or(line.as_str(), |(_, text)| text);
        process.log.take(Instant::now(), text);
        let name = &process.log.name;
        if !crate::klog::lines::is_buckets(text) {
            self.progress.line(&format!("@{name:<9} {line}"));
        }
        if text.contains("[ERROR]") {
            self.findings.push(Finding {
                host: name.clone(),
                kind: Kind::Error,
                line: text.to_string(),
            });
        }
        let running = self
            .processes
            .iter()
            .map(|process| process.log.latest_per_s())
            .sum();
        self.progress.throughput(running);
    }

    /// Ends what still runs, the server last, and takes in what it says at its end.
    fn end(&mut self) {
        for index in (0..self.processes.len()).rev() {
            let Some(mut child) = self.processes[index].child.take() else {
                continue;
            };
            let pid = i32::try_from(child.id()).unwrap_or(0);
            let asked = kill(Pid::from_raw(pid), Signal::SIGTERM).is_ok();
            let deadline = Instant::now() + SLACK;
            while asked && !self.processes[index].log.is_lost() && Instant::now() < deadline {
                if let Ok(said) = self.hear.recv_timeout(TICK) {
                    self.take(said);
                }
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn evaluate(&mut self, report: &mut Report) {
        let mut histogram = Histogram::new();
        let mut latencies = Vec::new();
        let mut answered = 0;
        let kernel = nix::sys::utsname::uname().ok();
        for (index, process) in self.processes.iter().enumerate() {
            let log = &process.log;
            report.cluster.hosts.push(HostInfo {
                name: log.name.clone(),
                role: if index == 0 {
                    Role::Parent
                } else {
                    Role::Child
                },
                kernel: kernel.map(|it| it.release().to_string_lossy().into_owned()),
                slub_debug: None,
                device: None,
                mtu: None,
            });
            let mut find = |kind, line: String| {
                self.findings.push(Finding {
                    host: log.name.clone(),
                    kind,
                    line,
                });
            };
            if index == 0 {
                continue;
            }
            let Some(total) = log.total else {
                find(Kind::MissingClient, "it did not report its figures".into());
                continue;
            };
            histogram.merge(&log.histogram);
            latencies.extend(log.latency);
            answered += total.requests;
            report.hosts.push(HostFigures {
                name: log.name.clone(),
                figures: Figures::Requests(figures(total, log.latency)),
            });
            if total.requests == 0 {
                find(
                    Kind::ZeroThroughput,
                    "not one of its requests was answered".into(),
                );
            }
            if total.errors > 0 {
                find(
                    Kind::FailedRequests,
                    format!("{} of its threads failed", total.errors),
                );
            }
            let counted = log.histogram.count();
            if counted != total.requests {
                let requests = total.requests;
                let line =
                    format!("it reports {requests} answered requests and {counted} latencies");
                find(Kind::Accounting, line);
            }
        }
        let server = &self.processes[0].log;
        let complaint = match server.stopped.last() {
            None => Some((
                Kind::Accounting,
                "the server did not report its figures".into(),
            )),
            Some(stopped) if stopped.errors > 0 => {
                let errors = stopped.errors;
                Some((
                    Kind::FailedRequests,
                    format!("the server counted {errors} errors"),
                ))
            }
            Some(stopped) if stopped.requests < answered => {
                let requests = stopped.requests;
                let line = format!(
                    "the server executed {requests} requests, the clients count {answered}"
                );
                Some((Kind::Accounting, line))
            }
            Some(_) => None,
        };
        self.findings.extend(complaint.map(|(kind, line)| Finding {
            host: server.name.clone(),
            kind,
            line,
        }));
        let sum = totals(&report.hosts, cluster_latency(&histogram, &latencies));
        report.totals = Figures::Requests(sum);
        report.findings.append(&mut self.findings);
    }
}
