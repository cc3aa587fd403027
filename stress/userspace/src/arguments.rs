//! What both programs are told.

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use mitosis::{Address, ClusterKey};

/// The parameters that both ends have.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Where the server is: shm://name, or rdma://[gid]/service/hint.
    #[arg(long, default_value = "shm://peak-rpc")]
    pub address: Address,
    /// The function's id.
    #[arg(long, default_value_t = 778)]
    pub test_rpc_id: u32,
    /// Bytes that each request and each reply carries [default: 0, with checksums 2048].
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=(8 << 20) - 8))]
    pub payload_size: Option<u32>,
    /// Sends random payloads, each with a checksum that its receiver verifies.
    #[arg(long)]
    pub checksum: bool,
    /// The cluster's key: 32 hexadecimal digits.
    #[arg(long, env = "CLUSTER_KEY", hide_env_values = true, value_parser = key)]
    pub cluster_key: Option<ClusterKey>,
    /// Prints the result as JSON instead of lines.
    #[arg(long)]
    pub json: bool,
    /// Prints what this shell needs to complete the program's options, and ends.
    #[arg(long, value_name = "SHELL")]
    pub completions: Option<Shell>,
}

impl Common {
    /// Bytes of a payload.
    pub fn payload_size(&self) -> u32 {
        let default = if self.checksum { 2048 } else { 0 };
        self.payload_size.unwrap_or(default)
    }

    /// Prints completions, if they are asked for; whether they were.
    pub fn complete<P: CommandFactory>(&self) -> bool {
        let Some(shell) = self.completions else {
            return false;
        };
        let mut command = P::command();
        let name = command.get_name().to_string();
        clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
        true
    }
}

fn key(text: &str) -> Result<ClusterKey, String> {
    let digits = u128::from_str_radix(text, 16)
        .ok()
        .filter(|_| text.len() == 32);
    match digits {
        Some(key) => Ok(ClusterKey(key.to_be_bytes())),
        None => Err("a cluster key is 32 hexadecimal digits".into()),
    }
}
