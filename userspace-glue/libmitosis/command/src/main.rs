//! `mitosis`: lists and ends seeds, connects machines, and continues seeds of other machines here.

mod arguments;
mod describe;
mod print;
mod resume;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use mitosis_fork::Device;

use arguments::{Arguments, Command};
use print::Output;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("mitosis: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let out = Output {
        json: arguments.json,
    };
    match &arguments.command {
        Command::List => out.seeds(&Device::open()?.list()?)?,
        Command::Query { seed } => out.seeds(&[Device::open()?.query(seed.0)?])?,
        Command::Unprepare { seed } => Device::open()?.unprepare(seed.0)?,
        Command::Connect { machine } => Device::open()?.connect(machine.machine())?,
        Command::Disconnect { machine } => Device::open()?.disconnect(machine.machine())?,
        Command::Ping { machine, count } => {
            let device = Device::open()?;
            for _ in 0..*count {
                out.ping(&machine.machine(), device.ping(machine.machine())?)?;
            }
        }
        Command::Stats => out.stats(&Device::open()?.stats()?)?,
        Command::Describe { of } => {
            let image = of.open()?;
            describe::print(&image.descriptor(), &out)?;
        }
        Command::Resume(wanted) => return Err(resume::resume(wanted)),
        Command::Completions { shell } => {
            clap_complete::generate(
                *shell,
                &mut Arguments::command(),
                "mitosis",
                &mut std::io::stdout(),
            );
        }
    }
    Ok(())
}
