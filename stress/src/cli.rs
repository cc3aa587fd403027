//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::interrupt::Interrupted;
use crate::refusal::Refusal;
use crate::report::{table, Report, Verdict};
use crate::run;
use crate::settings::Assignments;
use crate::stage::{self, Act, Setting};
use crate::template::counts;
use crate::{attack, bench, build, check, faults, forks, here, interop};

/// Runs MITOSIS's stress tests on a cluster, virtual or real, and passes a verdict.
///
/// Exit status: 0 pass, 1 fail, 2 refused, 130 interrupted.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Subject,
}

#[derive(Subcommand)]
enum Subject {
    /// Do what a build template says: make the kernel modules, or clean up.
    Build(OneTemplate),
    /// Do what a run template says on the cluster, and write out/<target>/result.json.
    Run(OneTemplate),
    /// Do what a run template of programs says on this machine, through shared memory.
    RunHere(here::Arguments),
    /// Compare the empty RPC's round trip with perftest's, on one pair of machines in one run.
    BenchRpc(bench::Arguments),
    /// Compare remote fork with fork(), perftest and CRIU, on one pair of machines in one run.
    BenchFork(forks::bench::Arguments),
    /// Load, unload and misuse the modules, and look for what they leave behind.
    Check(check::Arguments),
    /// Spoil the network, end modules and machines, flood the server while clients call it, and be refused by it.
    Faults(faults::Arguments),
    /// Make bad calls on /dev/mitosis, give modules what they must refuse, and let their allocations fail.
    Attack(attack::Arguments),
    /// Take away what children of remote forks need, ask for what is not to be had, and fork again.
    ForkFaults(forks::faults::Arguments),
    /// Let processes and kernel modules call each other, and processes read each other's memory.
    Interop(interop::Arguments),
}

#[derive(clap::Args)]
struct OneTemplate {
    /// A file of templates-build/ or templates-run/.
    template: PathBuf,
    /// Parameters of the template (thread_count=4) and settings of the cluster (KERNEL=6.1, CLIENTS=10, VM_CPUS=,
    /// VM_MEMORY=, VM_MTU=, VM_DEBUG=, PARENT_GID=; for a real cluster USER=, PROJECT_PATH=, PARENT_HOST=, CHILD_HOSTS=, STR_CHILD_HOSTS=).
    #[arg(value_name = "NAME=VALUE")]
    assignments: Vec<String>,
    /// Where modules and results go.
    #[arg(long, default_value = "out")]
    out: PathBuf,
}

/// The program.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Subject::Build(arguments) => build(&arguments).map(|()| Verdict::Pass),
        Subject::Run(arguments) => run(&arguments),
        Subject::RunHere(arguments) => here::main(&arguments),
        Subject::BenchRpc(arguments) => bench::main(&arguments),
        Subject::BenchFork(arguments) => forks::bench::main(&arguments),
        Subject::Check(arguments) => check::main(&arguments),
        Subject::Faults(arguments) => faults::main(&arguments),
        Subject::Attack(arguments) => attack::main(&arguments),
        Subject::ForkFaults(arguments) => forks::faults::main(&arguments),
        Subject::Interop(arguments) => interop::main(&arguments),
    };
    match result {
        Ok(Verdict::Pass) => ExitCode::SUCCESS,
        Ok(Verdict::Fail) => ExitCode::FAILURE,
        Err(error) if error.downcast_ref::<Interrupted>().is_some() => ExitCode::from(130),
        Err(error) => {
            let refused = error.downcast_ref::<Refusal>().is_some();
            for line in format!("{error:#}").lines() {
                eprintln!("mitosis-stress: {line}");
            }
            ExitCode::from(if refused { 2 } else { 1 })
        }
    }
}

fn build(arguments: &OneTemplate) -> Result<()> {
    let assignments = Assignments::parse(&arguments.assignments)?;
    let settings = assignments.settings()?;
    build::execute(&arguments.template, &assignments, &settings, &arguments.out)
}

fn run(arguments: &OneTemplate) -> Result<Verdict> {
    let started = Instant::now();
    let setting = Setting::read(
        None,
        &arguments.assignments,
        &[],
        &arguments.template,
        &arguments.out,
    )?;
    setting.forget_result();
    let directory = setting.directory();
    let mut report = Report::of(
        setting.target.clone(),
        setting.parameters.clone(),
        counts(&setting.template.passes),
    );
    let outcome = stage::on(&setting, |stage| {
        Ok(stage.perform(&Act {
            target: &setting.target,
            hosts: stage.hosts(),
            passes: &setting.template.passes,
            parameters: &setting.parameters,
            out: &setting.out,
            progress: &setting.progress,
        }))
    });
    match outcome {
        Ok(finished) => report = finished,
        Err(error) => report.findings.push(run::finding_of(&error, &[])),
    }
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
