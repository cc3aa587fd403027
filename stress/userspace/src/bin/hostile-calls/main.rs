//! Calls `/dev/mitosis` as nobody should, and forks as everybody may. `make attack` runs it on its machines.
//!
//! - [`attack`] makes any number of bad calls, from several processes of several threads each. [`call`] composes them,
//!   [`pointers`] is memory in every state, [`counts`] is what all processes together have done.
//! - [`honest`] is one fork, on one machine, that must be right.

mod attack;
mod call;
mod counts;
mod honest;
mod pointers;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mitosis_fork::Machine;
use mitosis_userspace_programs::error;
use mitosis_userspace_programs::log::Log;

const LOG: Log = Log { quiet: false };

/// Makes bad calls on /dev/mitosis, or forks once.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes bad calls.
    Attack(attack::Arguments),
    /// Prepares a seed and resumes it on the same machine; exit status 0 if the child's memory is right.
    Fork(honest::Arguments),
}

/// The machine that this runs on, as others find it.
#[derive(clap::Args, Clone, Copy)]
struct Place {
    /// The GID of this machine's RDMA port.
    #[arg(long)]
    gid: std::net::Ipv6Addr,
    /// Where its module listens.
    #[arg(long, default_value_t = 2)]
    service: u32,
}

impl Place {
    fn machine(self) -> Machine {
        Machine {
            gid: self.gid.octets(),
            service: self.service,
            reserved: 0,
        }
    }
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Attack(arguments) => attack::run(&arguments),
        Command::Fork(arguments) => honest::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            error!(LOG, "{why}");
            ExitCode::FAILURE
        }
    }
}
