//! Follows the kernel logs of all hosts at once, runs what the run starts on them, and waits for what they say.
//!
//! Order: [`Watch::start`] marks and follows each log; [`Watch::spawn`] starts commands; [`Watch::wait`] shows, reads and
//! audits what arrives until a condition holds; [`Watch::settle`] marks the end, so that the audit misses nothing that
//! was printed before. Dropping it ends all that is still running.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use super::audit::{self, Finding, Kind};
use super::lines;
pub use super::log::{HostLog, Said};
use super::record::{self, Record};
use crate::cluster::{Fallen, Host};
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;

/// Ends with the ssh session that it runs in: its standard input is a lifeline, and `cat` has the shell's process id.
/// A log is followed from its oldest record; what comes before the mark is skipped.
const FOLLOW: &str =
    "exec 3<&0; { cat <&3; kill $$; } >/dev/null 2>&1 & exec 3<&-; exec cat /dev/kmsg";

/// Around a program: it is told to end when its lifeline does, and then ends in its own time, with its own status. Nothing
/// is left that keeps the session open when it ends by itself.
const LIFELINE: [&str; 2] = [
    "exec 3<&0; ",
    " 3<&- & p=$!; { read -r end; kill $p; } <&3 >/dev/null 2>&1 & l=$!; exec 3<&-; wait $p; s=$?; kill $l 2>/dev/null; exit $s",
];

/// How often a wait looks at the interrupt.
const TICK: Duration = Duration::from_millis(50);

/// How long a process may take to end once it is told to: a dozen emulated machines that end theirs at once are slow, and a
/// session that is killed instead may take the next one on its connection with it.
const PARTING: Duration = Duration::from_secs(20);

/// Names a command that [`Watch::spawn`] started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task(usize);

/// How a task ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Whether with exit status 0.
    pub success: bool,
    /// What it said on standard error, or its status where it said nothing.
    pub complaint: String,
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waited {
    /// What it waited for is so.
    Done,
    /// Its deadline came first.
    Late,
    /// A finding came first: there is nothing left to wait for.
    Broken,
}

/// What ends a wait before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// A finding, or an interrupt.
    Eager,
    /// Nothing: for cleaning up, which a failed or interrupted run needs as well.
    Stubborn,
}

enum Event {
    Line {
        stream: usize,
        at: Instant,
        text: String,
    },
    Closed {
        stream: usize,
        complaint: String,
    },
}

#[derive(Clone, Copy)]
enum Purpose {
    Log,
    /// A command, whose output is shown.
    Task,
    /// A program, whose output is part of the host's log.
    Program,
}

struct Stream {
    host: usize,
    purpose: Purpose,
    child: Child,
    lifeline: Option<ChildStdin>,
    /// Of a task: what it printed.
    said: Vec<Said>,
    ended: Option<Ended>,
}

/// Tells which machines ended by themselves. A machine that is gone says nothing more,
/// and ssh takes a minute to notice.
pub type LookForFallen<'a> = &'a dyn Fn() -> Vec<Fallen>;

/// See the module's front comment.
pub struct Watch<'a> {
    /// One for each host, in the order that [`Watch::start`] was given.
    pub logs: Vec<HostLog>,
    /// What was found so far.
    pub findings: Vec<Finding>,
    hosts: &'a [Host],
    progress: &'a Progress,
    interrupt: &'a Interrupt,
    fallen: LookForFallen<'a>,
    expected: Vec<String>,
    token: String,
    grace: Duration,
    broken_since: Option<Instant>,
    streams: Vec<Stream>,
    events: Receiver<Event>,
    sender: Sender<Event>,
}

impl<'a> Watch<'a> {
    /// Marks the log of each host and follows it from there. After a finding, waits go on for `grace`, so that a trace
    /// or a reason that follows it is still shown.
    pub fn start(
        hosts: &'a [Host],
        grace: Duration,
        timeout: Duration,
        progress: &'a Progress,
        interrupt: &'a Interrupt,
        fallen: LookForFallen<'a>,
    ) -> Result<Self> {
        let (sender, events) = mpsc::channel();
        let mut watch = Self {
            logs: hosts.iter().map(|host| HostLog::of(&host.name)).collect(),
            findings: Vec::new(),
            hosts,
            progress,
            interrupt,
            fallen,
            expected: Vec::new(),
            token: format!("{:016x}", rand::random::<u64>()),
            grace,
            broken_since: None,
            streams: Vec::new(),
            events,
            sender,
        };
        for host in 0..hosts.len() {
            watch.follow(host)?;
        }
        watch.await_marks(timeout)?;
        Ok(watch)
    }

    fn follow(&mut self, host: usize) -> Result<()> {
        let script = format!("{} || exit 1; {FOLLOW}", self.mark("begin"));
        let stream = self.stream(host, Purpose::Log, &script)?;
        self.logs[host].stream = Some(stream);
        Ok(())
    }

    fn await_marks(&mut self, timeout: Duration) -> Result<()> {
        let all = |watch: &Self| watch.logs.iter().all(|log| log.begun || log.lost);
        if self.wait(timeout, Patience::Eager, all)? == Waited::Done && self.findings.is_empty() {
            return Ok(());
        }
        let silent: Vec<&str> = self
            .logs
            .iter()
            .filter(|log| !log.begun)
            .map(|log| log.name.as_str())
            .collect();
        let reason = self
            .findings
            .first()
            .map_or(String::new(), |finding| format!(": {}", finding.line));
        bail!("{}: cannot follow /dev/kmsg{reason}", silent.join(", "))
    }

    /// Expects nothing more of a host, whose machine is about to be ended: that its log ends is no finding.
    pub fn forgo(&mut self, host: usize) {
        self.logs[host].lost = true;
    }

    /// Follows the log of a host again, whose machine was forgone and has been booted anew. What it said before stays.
    pub fn rejoin(&mut self, host: usize, timeout: Duration) -> Result<()> {
        // What it still said before its end was read in time and belongs to the log that ended.
        while let Ok(event) = self.events.try_recv() {
            self.handle(event);
        }
        self.logs[host].begin_anew();
        self.follow(host)?;
        self.await_marks(timeout)
    }

    fn mark(&self, what: &str) -> String {
        format!("echo '<6>mitosis-stress: {what} {}' >/dev/kmsg", self.token)
    }

    /// Starts `script` on a host; its output is shown as that host's.
    pub fn spawn(&mut self, host: usize, script: &str) -> Result<Task> {
        self.stream(host, Purpose::Task, script).map(Task)
    }

    /// Starts the program of the command `script` on a host. What it prints is part of the host's log.
    pub fn spawn_program(&mut self, host: usize, script: &str) -> Result<Task> {
        let [before, after] = LIFELINE;
        let script = format!("{before}{script}{after}");
        self.stream(host, Purpose::Program, &script).map(Task)
    }

    /// Tells a program to end.
    pub fn end_program(&mut self, task: Task) {
        if let Some(stream) = self.streams.get_mut(task.0) {
            stream.lifeline = None;
        }
    }

    /// How `task` ended, once it has.
    pub fn ended(&self, task: Task) -> Option<&Ended> {
        self.streams.get(task.0)?.ended.as_ref()
    }

    /// From now on, log lines with one of these texts are no findings.
    pub fn expect(&mut self, texts: &[String]) {
        self.expected.extend_from_slice(texts);
    }

    /// What `task` has printed so far.
    pub fn said(&self, task: Task) -> &[Said] {
        self.streams.get(task.0).map_or(&[], |stream| &stream.said)
    }

    /// Writes a line to the standard input of `task`.
    pub fn tell(&mut self, task: Task, line: &str) -> Result<()> {
        let lifeline = self
            .streams
            .get_mut(task.0)
            .map(|stream| &mut stream.lifeline);
        let stdin = lifeline.and_then(Option::as_mut);
        let stdin = stdin.context("it has been told to end")?;
        writeln!(stdin, "{line}").with_context(|| format!("cannot tell it {line:?}"))
    }

    /// Ends the standard input of `task`, which tells it to end.
    pub fn dismiss(&mut self, task: Task) {
        if let Some(stream) = self.streams.get_mut(task.0) {
            stream.lifeline = None;
        }
    }

    /// Notes something that no log says.
    pub fn find(&mut self, host: &str, kind: Kind, line: impl Into<String>) {
        let finding = Finding {
            host: host.to_string(),
            kind,
            line: line.into(),
        };
        self.broken_since.get_or_insert_with(Instant::now);
        self.findings.push(finding);
    }

    /// Takes what arrives until `done`, for at most `timeout`.
    pub fn wait(
        &mut self,
        timeout: Duration,
        patience: Patience,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<Waited, Interrupted> {
        let started = Instant::now();
        loop {
            if done(self) {
                return Ok(Waited::Done);
            }
            if patience == Patience::Eager {
                self.interrupt.check()?;
                if self
                    .broken_since
                    .is_some_and(|since| since.elapsed() >= self.grace)
                {
                    return Ok(Waited::Broken);
                }
            }
            let left = timeout.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Ok(Waited::Late);
            }
            match self.events.recv_timeout(left.min(TICK)) {
                Ok(event) => self.handle(event),
                // `self` holds a sender: the channel stays connected.
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.look_for_the_fallen();
                }
            }
        }
    }

    /// What the console of a machine that ended by itself says about why.
    fn look_for_the_fallen(&mut self) {
        for Fallen {
            name,
            path,
            console,
        } in (self.fallen)()
        {
            let log = self
                .logs
                .iter_mut()
                .find(|log| log.name == name && !log.lost);
            let Some(log) = log else { continue };
            log.lost = true;
            let line = format!(
                "the machine ended by itself; its console is in {}",
                path.display()
            );
            self.find(&name, Kind::HostLost, line);
            self.findings.extend(audit::console(&name, &console));
        }
    }

    /// Marks the end of each log and takes all that comes before the mark.
    pub fn settle(&mut self, timeout: Duration) {
        let mark = self.mark("end");
        for host in 0..self.hosts.len() {
            if !self.logs[host].lost {
                // A host that cannot be reached any more is one whose mark does not come.
                let _ = self.spawn(host, &mark);
            }
        }
        let all = |watch: &Self| watch.logs.iter().all(|log| log.settled || log.lost);
        if matches!(
            self.wait(timeout, Patience::Stubborn, all),
            Ok(Waited::Done)
        ) {
            return;
        }
        for host in 0..self.logs.len() {
            if !self.logs[host].settled && !self.logs[host].lost {
                let line = format!(
                    "the end of its log was not read within {} s",
                    timeout.as_secs()
                );
                let name = self.logs[host].name.clone();
                self.find(&name, Kind::HostLost, line);
            }
        }
    }

    fn stream(&mut self, host: usize, purpose: Purpose, script: &str) -> Result<usize> {
        let name = &self.hosts[host].name;
        let mut child = self.hosts[host]
            .command(script)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{name}: cannot start {:?}", self.hosts[host].ssh[0]))?;
        let stream = self.streams.len();
        let stdout = child.stdout.take().context("no stdout")?;
        let mut stderr = child.stderr.take().context("no stderr")?;
        let complaint = thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes)
                .lines()
                .map(str::trim)
                .collect::<Vec<_>>()
                .join("; ")
        });
        let sender = self.sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stdout).split(b'\n') {
                let Ok(line) = line else { break };
                let at = Instant::now();
                let text = String::from_utf8_lossy(&line).into_owned();
                if sender.send(Event::Line { stream, at, text }).is_err() {
                    return;
                }
            }
            let complaint = complaint.join().unwrap_or_default();
            let _ = sender.send(Event::Closed { stream, complaint });
        });
        let lifeline = child.stdin.take();
        self.streams.push(Stream {
            host,
            purpose,
            child,
            lifeline,
            said: Vec::new(),
            ended: None,
        });
        Ok(stream)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Line { stream, at, text } => {
                let Stream { host, purpose, .. } = self.streams[stream];
                match purpose {
                    Purpose::Program => self.program_line(host, at, &text),
                    Purpose::Log if self.logs[host].stream != Some(stream) => {}
                    Purpose::Log => self.log_line(host, at, &text),
                    Purpose::Task => {
                        // Shown in the form of a log line, and never mistaken for one.
                        let name = &self.logs[host].name;
                        let text = text.trim_end().to_string();
                        if !lines::is_buckets(&text) {
                            self.progress.line(&format!("@{name:<9} {text}"));
                        }
                        self.streams[stream].said.push(Said { at, text });
                    }
                }
            }
            Event::Closed {
                stream: index,
                complaint,
            } => {
                let stream = &mut self.streams[index];
                let status = end(&mut stream.child);
                let complaint = match (complaint.is_empty(), status) {
                    (false, _) => complaint,
                    (true, Some(status)) => status.to_string(),
                    (true, None) => "it could not be waited for".into(),
                };
                stream.ended = Some(Ended {
                    success: status.is_some_and(|status| status.success()),
                    complaint: complaint.clone(),
                });
                if let Purpose::Log = stream.purpose {
                    let log = &mut self.logs[stream.host];
                    if log.stream != Some(index) {
                        return;
                    }
                    if std::mem::replace(&mut log.lost, true) {
                        return;
                    }
                    let name = log.name.clone();
                    // What a full ring tells a reader that it has overtaken.
                    let kind = if complaint.contains("Broken pipe") {
                        Kind::LostRecords
                    } else {
                        Kind::HostLost
                    };
                    self.find(
                        &name,
                        kind,
                        format!("its kernel log is no longer read: {complaint}"),
                    );
                }
            }
        }
    }

    fn program_line(&mut self, host: usize, at: Instant, text: &str) {
        let record = Record::said(text);
        let log = &mut self.logs[host];
        if !lines::is_buckets(&record.text) {
            self.progress
                .line(&format!("@{:<9} {}", log.name, record.text));
        }
        log.take(at, &record.text);
        self.judge(host, record);
    }

    fn judge(&mut self, host: usize, record: Record) {
        let is_expected = |text: &String| record.text.contains(text.as_str());
        match audit::classify(&record) {
            Some(_) if self.expected.iter().any(is_expected) => {}
            Some(kind) => {
                let name = self.logs[host].name.clone();
                self.find(&name, kind, record.text);
            }
            None => self
                .progress
                .throughput(self.logs.iter().map(|log| log.latest_per_s()).sum()),
        }
    }

    fn log_line(&mut self, host: usize, at: Instant, line: &str) {
        let Some(record) = Record::parse(line) else {
            return;
        };
        let log = &mut self.logs[host];
        let before = log.sequence.replace(record.sequence);
        let missing = before.map_or(0, |before| record.sequence.saturating_sub(before + 1));
        let is_mark = |what: &str| {
            record
                .text
                .ends_with(&format!("mitosis-stress: {what} {}", self.token))
        };
        if !log.begun {
            log.begun = is_mark("begin");
            log.time_us = Some(record.time_us);
            return;
        }
        let name = log.name.clone();
        if is_mark("end") {
            log.settled = true;
        } else {
            let shown = record::show(&name, log.time_us.replace(record.time_us), &record);
            // Buckets are the modules' way of sending a histogram; their sum is in the table.
            if !lines::is_buckets(&record.text) {
                self.progress.line(&shown);
            }
            log.take(at, &record.text);
        }
        if missing > 0 {
            self.find(
                &name,
                Kind::LostRecords,
                format!("{missing} records before: {}", record.text),
            );
        }
        self.judge(host, record);
    }
}

/// Waits for a process that has closed its output, and kills it if it does not end.
fn end(child: &mut Child) -> Option<std::process::ExitStatus> {
    let started = Instant::now();
    while started.elapsed() < PARTING {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) => thread::sleep(Duration::from_millis(5)),
            Err(_) => break,
        }
    }
    let _ = child.kill();
    child.wait().ok()
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        // All lifelines first, so that the hosts end their sides at the same time.
        for stream in &mut self.streams {
            stream.lifeline = None;
        }
        for stream in &mut self.streams {
            if stream.ended.is_none() {
                end(&mut stream.child);
            }
        }
    }
}
