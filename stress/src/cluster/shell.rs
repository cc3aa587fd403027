//! Shell commands on a host, each with a deadline.

use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use nix::sys::signal::{killpg, Signal};
use nix::unistd::Pid;

use super::Host;
use crate::interrupt::Interrupt;

/// How often a wait looks at its process and at the interrupt.
pub const TICK: Duration = Duration::from_millis(10);

/// What a command says last on standard error, before its status: ssh may lose the status of a session that ends while
/// another one on the same connection does.
const STATUS: &str = "\nstatus of the command: ";
/// What ssh ends with then.
const LOST: i32 = 255;
/// How often something is tried whose end ssh lost.
const TRIED: u32 = 3;

/// `text` as one word of a POSIX shell command.
pub fn quote(text: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_-./:=,+@%".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        text.to_string()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// How long a command may take.
#[derive(Clone, Copy)]
pub struct Limit<'a> {
    /// From its start.
    pub timeout: Duration,
    /// Ends it early; `None` for cleaning up, which an interrupt asks for and must not stop.
    pub interrupt: Option<&'a Interrupt>,
}

/// A command that came to its end.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Finished {
    /// Takes the status that the command itself has told, if it came to its end, and its words away.
    fn hear_status(&mut self) {
        let Some((said, status)) = self.stderr.rsplit_once(STATUS) else {
            return;
        };
        if let Ok(code) = status.trim().parse::<u8>() {
            self.status = ExitStatus::from_raw(i32::from(code) << 8);
            self.stderr = said.to_string();
        }
    }

    /// Its complaint in one line, or its status where it had none.
    pub fn complaint(&self) -> String {
        let lines: Vec<&str> = self
            .stderr
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if lines.is_empty() {
            self.status.to_string()
        } else {
            lines.join("; ")
        }
    }
}

impl Host {
    /// Runs `script` to its end, with `input` on its standard input.
    pub fn execute(&self, script: &str, input: Vec<u8>, limit: Limit<'_>) -> Result<Finished> {
        let telling = format!(
            "(\n{script}\n)\ns=$?; printf '{}%s' $s >&2; exit $s",
            STATUS.replace('\n', "\\n")
        );
        let mut finished = finish(&mut self.command(&telling), input, limit)
            .with_context(|| format!("{}: {script:?}", self.name))?;
        finished.hear_status();
        Ok(finished)
    }

    /// Runs `script`, which does the same when it is run twice, again where ssh lost how it ended.
    fn repeat(&self, script: &str, input: &[u8], limit: Limit<'_>) -> Result<Finished> {
        for _ in 1..TRIED {
            let finished = self.execute(script, input.to_vec(), limit)?;
            if finished.status.code() != Some(LOST) {
                return Ok(finished);
            }
        }
        self.execute(script, input.to_vec(), limit)
    }

    /// Runs `script`, which does the same when it is run twice: a question, or a state that is brought about. `Err` also
    /// where it exits with anything but 0.
    pub fn ask(&self, script: &str, limit: Limit<'_>) -> Result<String> {
        let finished = self.repeat(script, &[], limit)?;
        self.said(script, finished)
    }

    fn said(&self, script: &str, finished: Finished) -> Result<String> {
        if !finished.status.success() {
            bail!("{}: {script:?} failed: {}", self.name, finished.complaint());
        }
        Ok(finished.stdout)
    }

    /// Runs `script`, once; `Err` also where it exits with anything but 0.
    pub fn run(&self, script: &str, limit: Limit<'_>) -> Result<String> {
        let finished = self.execute(script, Vec::new(), limit)?;
        self.said(script, finished)
    }

    /// Puts `contents` into the host's directory as `name`.
    pub fn copy(&self, contents: &[u8], name: &str, limit: Limit<'_>) -> Result<()> {
        self.put(contents, name, "644", limit)
    }

    /// Puts a program into the host's directory as `name`.
    pub fn copy_program(&self, contents: &[u8], name: &str, limit: Limit<'_>) -> Result<()> {
        self.put(contents, name, "755", limit)
    }

    fn put(&self, contents: &[u8], name: &str, mode: &str, limit: Limit<'_>) -> Result<()> {
        let directory = quote(&self.directory.to_string_lossy());
        let path = self.path(name);
        // All of it reached the host, or the file that is there stays: a session that ends early gives cat an end too.
        let script = format!(
            "mkdir -p {directory} && cat >{path}.new && {{ [ $(wc -c <{path}.new) = {} ] || \
             {{ echo \"it did not arrive whole\" >&2; exit 1; }}; }} && chmod {mode} {path}.new && mv {path}.new {path}",
            contents.len()
        );
        let finished = self.repeat(&script, contents, limit)?;
        if !finished.status.success() {
            bail!(
                "{}: cannot copy {name} to {directory}: {}",
                self.name,
                finished.complaint()
            );
        }
        Ok(())
    }

    /// The path of the file `name` in the host's directory, quoted for its shell.
    pub fn path(&self, name: &str) -> String {
        quote(&self.directory.join(name).to_string_lossy())
    }
}

fn finish(command: &mut Command, input: Vec<u8>, limit: Limit<'_>) -> Result<Finished> {
    let started = Instant::now();
    // A group of its own: a Ctrl-C on the terminal is the runner's to handle.
    let mut child = command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {:?}", command.get_program()))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    // A command that does not read its input ends all the same; its status tells.
    thread::spawn(move || stdin.write_all(&input));
    let stdout = collect(child.stdout.take().context("no stdout")?);
    let stderr = collect(child.stderr.take().context("no stderr")?);

    let reason = loop {
        if let Some(status) = child.try_wait().context("cannot wait")? {
            // Whatever the command left behind may hold its pipes open; what it said itself is there by now.
            let text = |pipe: mpsc::Receiver<Vec<u8>>| {
                let bytes = pipe
                    .recv_timeout(Duration::from_secs(1))
                    .unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            return Ok(Finished {
                status,
                stdout: text(stdout),
                stderr: text(stderr),
            });
        }
        if let Some(Err(interrupted)) = limit.interrupt.map(Interrupt::check) {
            break anyhow::Error::new(interrupted);
        }
        if started.elapsed() >= limit.timeout {
            break anyhow::anyhow!("no end after {} s", limit.timeout.as_secs_f32());
        }
        thread::sleep(TICK);
    };
    // With all that it has begun: its group is its own.
    if let Ok(group) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
    Err(reason)
}

fn collect(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Role;

    fn here() -> (tempfile::TempDir, Host) {
        let directory = tempfile::tempdir().unwrap();
        let host = Host {
            name: "val02".into(),
            role: Role::Child,
            address: String::new(),
            ssh: vec!["sh".into(), "-c".into()],
            directory: directory.path().join("it's here"),
        };
        (directory, host)
    }

    const LIMIT: Limit<'static> = Limit {
        timeout: Duration::from_secs(20),
        interrupt: None,
    };

    #[test]
    fn a_quoted_word_survives_the_shell() {
        let (_directory, host) = here();
        for word in [
            "plain", "", "a b", "it's", "$(false)", "`x`", "a\"b", "a\nb", "*",
        ] {
            let out = host
                .run(&format!("printf %s {}", quote(word)), LIMIT)
                .unwrap();
            assert_eq!(out, word);
        }
    }

    #[test]
    fn a_copied_file_is_the_same() {
        let (_directory, host) = here();
        let contents: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        host.copy(&contents, "m.ko", LIMIT).unwrap();
        assert_eq!(
            std::fs::read(host.directory.join("m.ko")).unwrap(),
            contents
        );
    }

    #[test]
    fn a_copied_program_runs() {
        let (_directory, host) = here();
        host.copy_program(b"#!/bin/sh\necho runs\n", "program", LIMIT)
            .unwrap();
        assert_eq!(host.run(&host.path("program"), LIMIT).unwrap(), "runs\n");
    }

    #[test]
    fn half_a_copy_leaves_the_old_file() {
        let (_directory, host) = here();
        host.copy(b"old", "m.ko", LIMIT).unwrap();
        let cutting = Host {
            ssh: vec!["sh".into(), "-c".into(), "head -c 2 | sh -c \"$0\"".into()],
            directory: host.directory.clone(),
            ..here().1
        };
        let error = cutting.copy(b"new", "m.ko", LIMIT).unwrap_err().to_string();
        assert!(error.ends_with("it did not arrive whole"), "{error}");
        assert_eq!(std::fs::read(host.directory.join("m.ko")).unwrap(), b"old");
    }

    #[test]
    fn a_failure_names_the_host_and_the_complaint() {
        let (_directory, host) = here();
        let error = host
            .run("echo no >&2; exit 3", LIMIT)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("val02: ") && error.ends_with("failed: no"),
            "{error}"
        );
    }

    #[test]
    fn the_commands_own_status_counts() {
        let (_directory, host) = here();
        // As ssh does that lost it.
        let lossy = Host {
            ssh: vec!["sh".into(), "-c".into(), "sh -c \"$0\"; exit 255".into()],
            ..host
        };
        assert_eq!(lossy.run("echo yes; echo why >&2", LIMIT).unwrap(), "yes\n");
        let finished = lossy
            .execute("echo why >&2; exit 3", Vec::new(), LIMIT)
            .unwrap();
        assert_eq!(
            (finished.status.code(), finished.stderr.as_str()),
            (Some(3), "why\n")
        );
    }

    #[test]
    fn what_may_be_repeated_is_tried_again() {
        let (directory, host) = here();
        let asked = directory.path().join("asked");
        let copied = host.directory.join("m.ko");
        let forgetful = Host {
            ssh: vec![
                "sh".into(),
                "-c".into(),
                format!(
                    "echo >>{0}; [ $(wc -l <{0}) = 1 ] && exit 255; sh -c \"$0\"",
                    asked.display()
                ),
            ],
            ..host
        };
        assert_eq!(forgetful.ask("echo yes", LIMIT).unwrap(), "yes\n");
        std::fs::remove_file(&asked).unwrap();
        forgetful.copy(b"module", "m.ko", LIMIT).unwrap();
        assert_eq!(std::fs::read(copied).unwrap(), b"module");
        std::fs::remove_file(&asked).unwrap();
        assert!(forgetful.run("echo yes", LIMIT).is_err());
    }

    #[test]
    fn deadlines_and_interrupts_end_a_command() {
        let (_directory, host) = here();
        let limit = Limit {
            timeout: Duration::from_millis(30),
            interrupt: None,
        };
        let error = format!(
            "{:#}",
            host.run("exec cat /dev/zero >/dev/null", limit)
                .unwrap_err()
        );
        assert!(error.contains("no end after 0.03 s"), "{error}");
        let interrupt = Interrupt::default();
        interrupt.raise();
        let limit = Limit {
            interrupt: Some(&interrupt),
            ..LIMIT
        };
        let error = host
            .run("exec cat /dev/zero >/dev/null", limit)
            .unwrap_err();
        assert!(
            error
                .downcast_ref::<crate::interrupt::Interrupted>()
                .is_some(),
            "{error:#}"
        );
    }
}
