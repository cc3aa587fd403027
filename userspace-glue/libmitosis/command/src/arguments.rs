//! The command line.

use std::str::FromStr;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use mitosis_fork::uapi::SeedId;
use mitosis_fork::{Capability, Image, Machine, OpenOptions};

/// Seeds of this machine and of others.
///
/// A seed is a process that was frozen to go on elsewhere, as often as wanted. It is named ID.GENERATION by the machine
/// that it is on. Machines are named by the GID of their RDMA port, or by its IP address.
#[derive(Debug, Parser)]
#[command(name = "mitosis", version)]
pub struct Arguments {
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the seeds of this machine: your own, or as root all.
    List,
    /// Show one seed of this machine.
    Query {
        /// ID.GENERATION
        seed: SeedName,
    },
    /// End a seed of this machine.
    ///
    /// Its children go on as long as they need no page that they do not have.
    Unprepare {
        /// ID.GENERATION
        seed: SeedName,
    },
    /// Connect to a machine before that is needed.
    Connect {
        #[command(flatten)]
        machine: MachineName,
    },
    /// Drop the connections to a machine.
    Disconnect {
        #[command(flatten)]
        machine: MachineName,
    },
    /// Measure how long a machine takes to answer.
    Ping {
        #[command(flatten)]
        machine: MachineName,
        /// How often.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        count: u32,
    },
    /// Show what the module on this machine has and has done.
    Stats,
    /// Show what a seed is: its mappings, its open files, what would become of them here.
    #[command(visible_alias = "open")]
    Describe {
        #[command(flatten)]
        of: SeedThere,
    },
    /// Continue a seed here, in place of this process.
    ///
    /// Standard input, output and error are this command's, and so are user, groups, directory and limits. Regular files,
    /// directories and the usual devices that the seed had open are opened again; pipes and sockets stay closed.
    Resume(Resume),
    /// Print completions for a shell.
    Completions {
        /// Which.
        shell: Shell,
    },
}

/// A machine.
#[derive(Clone, Debug, Args)]
pub struct MachineName {
    /// GID or IP address of the machine's RDMA port.
    #[arg(value_name = "MACHINE", value_parser = gid)]
    gid: [u8; 16],
    /// Where its module listens: its parameter service_id.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=255))]
    service: u32,
}

impl MachineName {
    /// As the module takes it.
    pub fn machine(&self) -> Machine {
        Machine {
            gid: self.gid,
            service: self.service,
            reserved: 0,
        }
    }
}

fn gid(text: &str) -> Result<[u8; 16], String> {
    mitosis_fork::gid::parse(text).ok_or_else(|| {
        "neither a GID (fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c) nor an IP address".into()
    })
}

/// A seed's name.
#[derive(Clone, Copy, Debug)]
pub struct SeedName(pub SeedId);

impl FromStr for SeedName {
    type Err = &'static str;

    /// ID.GENERATION, or ID for whichever has it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, generation) = text.split_once('.').unwrap_or((text, "0"));
        let number = |text: &str| text.parse().map_err(|_| "not ID.GENERATION, as 3.1");
        Ok(Self(SeedId {
            id: number(id)?,
            generation: number(generation)?,
        }))
    }
}

/// A seed of another machine, or of this one.
#[derive(Clone, Debug, Args)]
pub struct SeedThere {
    #[command(flatten)]
    machine: MachineName,
    /// ID.GENERATION; as root also ID, for whichever has it.
    seed: SeedName,
    /// The seed's capability, 32 hexadecimal digits; not needed by root of an authenticated machine.
    ///
    /// Others can see a command's arguments: better is the environment.
    #[arg(long, env = "MITOSIS_CAPABILITY", hide_env_values = true, value_parser = capability)]
    capability: Option<Capability>,
    /// Fetch all pages at once.
    #[arg(long)]
    eager: bool,
    /// Give the child pages of its own, instead of sharing with its siblings until it writes.
    #[arg(long)]
    private: bool,
    /// How many pages are read with one that was touched; 0: the module's default.
    #[arg(long, default_value_t = 0)]
    prefetch: u32,
}

impl SeedThere {
    /// Fetches the descriptor.
    pub fn open(&self) -> Result<Image, mitosis_fork::Error> {
        let options = OpenOptions {
            eager: self.eager,
            private: self.private,
            prefetch: self.prefetch,
        };
        Image::open(
            self.machine.machine(),
            self.seed.0,
            self.capability,
            &options,
        )
    }
}

fn capability(text: &str) -> Result<Capability, &'static str> {
    let digits = "not 32 hexadecimal digits";
    if text.len() != 32 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(digits);
    }
    let number = u128::from_str_radix(text, 16).map_err(|_| digits)?;
    Ok(Capability(number.to_be_bytes()))
}

/// How a seed is continued.
#[derive(Clone, Debug, Args)]
pub struct Resume {
    #[command(flatten)]
    pub of: SeedThere,
    /// A number for the child to know itself by.
    #[arg(long, default_value_t = 0)]
    pub child: u32,
    /// Leave files closed that cannot be opened here, instead of failing.
    #[arg(long)]
    pub skip_files: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn names_of_seeds_and_machines() {
        let parsed = Arguments::try_parse_from([
            "mitosis",
            "resume",
            "10.0.0.1",
            "3.1",
            "--capability",
            "000102030405060708090a0b0c0d0e0f",
            "--child",
            "7",
        ]);
        let Command::Resume(resume) = parsed.unwrap().command else {
            panic!("another command")
        };
        assert_eq!((resume.of.seed.0.id, resume.of.seed.0.generation), (3, 1));
        assert_eq!(resume.of.machine.machine().service, 2);
        assert_eq!(
            resume.of.capability.unwrap().0,
            std::array::from_fn(|byte| byte as u8)
        );
        for wrong in [
            vec!["query", "x"],
            vec!["query", "1.2.3"],
            vec!["ping", "val01"],
            vec!["describe", "10.0.0.1", "1", "--capability", "12"],
            vec![
                "describe",
                "10.0.0.1",
                "1",
                "--capability",
                "+00102030405060708090a0b0c0d0e0f",
            ],
        ] {
            let words = [vec!["mitosis"], wrong].concat();
            assert!(Arguments::try_parse_from(&words).is_err(), "{words:?}");
        }
    }
}
