//! One container, from its stub to its end.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    recv, sendmsg, socketpair, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType,
};
use nix::sys::wait::{waitid, Id, WaitPidFlag, WaitStatus};
use nix::unistd::{pipe2, read, write};

use super::cgroup::{Group, Groups};
use super::stub::{self, Ends, Order, Plan, Report, Step};

/// A child says no more than a few short lines.
const MOST_SAID: usize = 4096;

/// Why there is no container, or no proof.
#[derive(Debug)]
pub enum Failure {
    /// This machine has not got what it takes.
    Make(&'static str, io::Error),
    /// The stub's own words.
    Stub(Report),
    /// The subject could not be had.
    Subject(String),
    /// Nothing came within this time.
    Silent(&'static str, Duration),
    /// It ended before it had proved anything; its status.
    Ended(String),
    /// It said this, which is not what its parent's memory gives.
    Unproven {
        /// The line.
        said: String,
        /// What it should have been.
        expected: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Make(what, error) => write!(f, "cannot make {what}: {error}"),
            Failure::Stub(report) => report.fmt(f),
            Failure::Subject(reason) => f.write_str(reason),
            Failure::Silent(what, time) => {
                write!(f, "no {what} within {} s", time.as_secs_f64())
            }
            Failure::Ended(status) => write!(f, "the child ended without a proof: {status}"),
            Failure::Unproven { said, expected } => write!(
                f,
                "the child is not its parent's continuation: it said {said:?}, and {expected:?} is right"
            ),
        }
    }
}

/// A stub that is in its namespaces, or what became of it. Dropping it ends it, and removes its group.
pub struct Container {
    pidfd: OwnedFd,
    control: OwnedFd,
    stdin: OwnedFd,
    stdout: OwnedFd,
    group: Group,
    reaped: bool,
    deadline: Duration,
    said: Vec<u8>,
}

impl Container {
    /// Makes the container of this number, and returns once it is ready. Nothing that it has to do takes longer than
    /// `deadline`.
    pub fn prepare(
        plan: &Plan,
        groups: &Groups,
        number: u64,
        deadline: Duration,
    ) -> Result<Self, Failure> {
        let make = |what: &'static str| move |error: Errno| Failure::Make(what, error.into());
        let name = format!("lean-{number}");
        let group = groups
            .group(&name)
            .map_err(|error| Failure::Make("a control group", error))?;
        let (its_stdin, stdin) = pipe2(OFlag::O_CLOEXEC).map_err(make("a pipe"))?;
        let (stdout, its_stdout) = pipe2(OFlag::O_CLOEXEC).map_err(make("a pipe"))?;
        let (control, its_control) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .map_err(make("a socket"))?;
        let ends = Ends {
            stdin: its_stdin.as_fd(),
            stdout: its_stdout.as_fd(),
            control: its_control.as_fd(),
        };
        let name = CString::new(name).unwrap_or_default();
        let (_, pidfd) = stub::spawn(plan, &name, &ends, group.as_fd())
            .map_err(|error| Failure::Make("a process in new namespaces (as root)", error))?;
        drop((its_stdin, its_stdout, its_control));
        let container = Self {
            pidfd,
            control,
            stdin,
            stdout,
            group,
            reaped: false,
            deadline,
            said: Vec::new(),
        };
        container.await_ready()?;
        Ok(container)
    }

    fn await_ready(&self) -> Result<(), Failure> {
        await_one(&[self.control.as_fd()], Instant::now(), self.deadline)?
            .ok_or(Failure::Silent("container", self.deadline))?;
        match self.report() {
            Some(Report {
                step: Step::Ready, ..
            }) => Ok(()),
            Some(report) => Err(Failure::Stub(report)),
            None => Err(Failure::Ended("it said nothing".into())),
        }
    }

    fn report(&self) -> Option<Report> {
        let mut bytes = [0; Report::LEN];
        let length = recv(self.control.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).ok()?;
        Report::parse(bytes.get(..length)?)
    }

    /// Lets the stub become what `order` says of `subject`, and gives it `line` to read.
    pub fn begin(&self, order: Order, subject: BorrowedFd<'_>, line: &str) -> Result<(), Failure> {
        let tell = |error: Errno| Failure::Make("its order", error.into());
        // A pipe holds far more than a line: this does not wait.
        write(&self.stdin, line.as_bytes()).map_err(tell)?;
        let bytes = order.to_bytes();
        let fds = [subject.as_raw_fd()];
        sendmsg::<()>(
            self.control.as_raw_fd(),
            &[io::IoSlice::new(&bytes)],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(tell)?;
        Ok(())
    }

    /// The next line that the child writes.
    pub fn next_line(&mut self, what: &'static str) -> Result<String, Failure> {
        let started = Instant::now();
        let mut control_open = true;
        loop {
            if let Some(end) = self.said.iter().position(|&byte| byte == b'\n') {
                let rest = self.said.split_off(end + 1);
                let line = std::mem::replace(&mut self.said, rest);
                return Ok(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            let fds = [
                self.stdout.as_fd(),
                self.pidfd.as_fd(),
                self.control.as_fd(),
            ];
            let watched = if control_open { &fds[..] } else { &fds[..2] };
            match await_one(watched, started, self.deadline)? {
                None => return Err(Failure::Silent(what, self.deadline)),
                Some(0) => {
                    let mut buffer = [0; 256];
                    let length = read(self.stdout.as_raw_fd(), &mut buffer)
                        .map_err(|error| Failure::Make("out its words", error.into()))?;
                    self.said.extend_from_slice(&buffer[..length]);
                    if length == 0 || self.said.len() > MOST_SAID {
                        return Err(self.ended());
                    }
                }
                Some(1) => return Err(self.ended()),
                Some(_) => match self.report() {
                    Some(report) => return Err(Failure::Stub(report)),
                    // It became what it was to become.
                    None => control_open = false,
                },
            }
        }
    }

    fn ended(&mut self) -> Failure {
        match self.report() {
            Some(report) => Failure::Stub(report),
            None => match self.wait() {
                Ok(status) => Failure::Ended(describe(status)),
                Err(failure) => failure,
            },
        }
    }

    /// Waits for the child's end, and says whether it was a success.
    pub fn finish(&mut self) -> Result<(), Failure> {
        match self.wait()? {
            WaitStatus::Exited(_, 0) => Ok(()),
            status => Err(Failure::Ended(describe(status))),
        }
    }

    fn wait(&mut self) -> Result<WaitStatus, Failure> {
        await_one(&[self.pidfd.as_fd()], Instant::now(), self.deadline)?
            .ok_or(Failure::Silent("end of the child", self.deadline))?;
        self.reap()
    }

    fn reap(&mut self) -> Result<WaitStatus, Failure> {
        let status = waitid(Id::PIDFd(self.pidfd.as_fd()), WaitPidFlag::WEXITED)
            .map_err(|error| Failure::Make("an end", error.into()))?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if !self.reaped {
            self.group.kill();
            let _ = self.reap();
        }
    }
}

/// The index of the first descriptor that has something to read, or has ended; `None` once `deadline` is over.
fn await_one(
    fds: &[BorrowedFd<'_>],
    started: Instant,
    deadline: Duration,
) -> Result<Option<usize>, Failure> {
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
        .collect();
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, timeout) {
            Ok(0) if left.is_zero() => return Ok(None),
            Ok(0) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Failure::Make("a wait", error.into())),
            Ok(_) => {
                let first = polled.iter().position(|fd| fd.any().unwrap_or(true));
                return Ok(first);
            }
        }
    }
}

fn describe(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, code) => format!("exit status {code}"),
        WaitStatus::Signaled(_, signal, dumped) => {
            let core = if dumped { ", core dumped" } else { "" };
            format!("{signal}{core}")
        }
        other => format!("{other:?}"),
    }
}
