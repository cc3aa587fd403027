//! How the machines are reached: one ssh connection a machine, made at boot, that all commands share.
//!
//! Under emulation a key exchange takes longer than most commands. Without its master connection a command makes a
//! connection of its own, which is only slower.
//!
//! Sessions are to end by themselves wherever they can. OpenSSH forgets one whose client is killed while it opens or closes,
//! gives its channel number to the next one, and takes the end of the first, when it arrives, for the end of the second:
//! a command that worked then has status 255 and no complaint.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{bail, Context, Result};

/// Keys and sockets.
#[derive(Clone, Debug)]
pub(super) struct Ssh {
    /// `.cache/ssh`, which guest/image.sh fills.
    pub(super) keys: PathBuf,
    /// Where the masters listen; a short path.
    pub(super) sockets: PathBuf,
}

/// A master connection. Dropping it closes it.
pub(super) struct Master(Child);

impl Ssh {
    /// The words that, followed by one shell command, run it at `address`.
    pub(super) fn words(&self, address: &str) -> Vec<String> {
        let mut words = vec!["ssh".to_string()];
        let options = [
            // Nothing of the user's own configuration.
            "-F".into(),
            "none".into(),
            "-T".into(),
            // Never a question: there is nobody to answer.
            "-oBatchMode=yes".into(),
            "-oLogLevel=ERROR".into(),
            "-oConnectTimeout=20".into(),
            "-oServerAliveInterval=5".into(),
            "-oServerAliveCountMax=4".into(),
            "-oIdentitiesOnly=yes".into(),
            "-oIdentityAgent=none".into(),
            format!(
                "-oIdentityFile=\"{}\"",
                self.keys.join("id_ed25519").display()
            ),
            format!(
                "-oUserKnownHostsFile=\"{}\"",
                self.keys.join("known_hosts").display()
            ),
            "-oGlobalKnownHostsFile=none".into(),
            "-oHostKeyAlias=mitosis-guest".into(),
            "-oStrictHostKeyChecking=yes".into(),
            format!("-oControlPath={}", self.socket(address).display()),
        ];
        words.extend(options);
        words.extend([format!("root@{address}"), "--".into()]);
        words
    }

    /// Starts to connect to a machine that is ready.
    pub(super) fn connect(&self, address: &str) -> Result<Master> {
        // A machine that was killed leaves its socket behind.
        let _ = std::fs::remove_file(self.socket(address));
        let words = self.words(address);
        let child = Command::new(&words[0])
            .args([
                "-M",
                "-N",
                "-oPermitLocalCommand=yes",
                "-oLocalCommand=echo connected",
            ])
            .args(&words[1..words.len() - 1])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C is not for the connection: logs are still to come over it.
            .process_group(0)
            .spawn()
            .context("cannot start ssh; install openssh-client")?;
        Ok(Master(child))
    }

    fn socket(&self, address: &str) -> PathBuf {
        self.sockets.join(Path::new(address))
    }
}

impl Master {
    /// Waits until the connection stands.
    pub(super) fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        let stdout = self
            .0
            .stdout
            .take()
            .context("the connection was waited for before")?;
        BufReader::new(stdout)
            .read_line(&mut line)
            .context("cannot read from ssh")?;
        if line.is_empty() {
            let mut complaint = String::new();
            if let Some(stderr) = &mut self.0.stderr {
                stderr
                    .read_to_string(&mut complaint)
                    .context("cannot read from ssh")?;
            }
            bail!("ssh: {}", complaint.trim());
        }
        // From here on nobody reads what it complains about; commands that use it complain themselves.
        self.0.stderr = None;
        Ok(())
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
