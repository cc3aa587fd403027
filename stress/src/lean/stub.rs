//! The process that becomes a container: it is born into its namespaces and its control group, arranges its mounts, says
//! that it is ready, and waits to be told what to become.
//!
//! It is forked out of a program of several threads, one of which may just hold the allocator's lock: nothing here
//! allocates, panics or unwinds. All that needs memory is made before, in [`Plan`].

use std::cell::UnsafeCell;
use std::ffi::{c_char, CStr, CString};
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use mitosis_fork::Resumption;
use nix::errno::Errno;
use nix::libc;
use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{chdir, dup2, pivot_root, sethostname, setsid};

/// Where the stub keeps the socket on which it is told what to become, and what comes with it.
const CONTROL: RawFd = 3;
const SUBJECT: RawFd = 4;
/// Above all of these.
const ASIDE: RawFd = 16;
/// libc's constant of this name is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// What a stub does before it becomes a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    /// All is done: the stub waits to be told what to become.
    Ready,
    /// Its standard streams.
    Streams,
    /// To end with the program that started it.
    Leash,
    /// Its control-group namespace.
    GroupNamespace,
    /// Its mounts, apart from everybody else's.
    PrivateMounts,
    /// The root file system.
    BindRoot,
    /// `/proc`.
    MountProc,
    /// `/tmp`.
    MountTmp,
    /// The root file system, made its own.
    PivotRoot,
    /// Its name.
    HostName,
    /// Being told what to become.
    Order,
    /// Becoming a program.
    Execute,
    /// Becoming a seed's continuation.
    Resume,
}

const STEPS: &[(Step, &str)] = &[
    (Step::Ready, "be ready"),
    (Step::Streams, "set up its standard streams"),
    (Step::Leash, "arrange to end with its program"),
    (Step::GroupNamespace, "make a cgroup namespace"),
    (Step::PrivateMounts, "make its mounts private"),
    (Step::BindRoot, "bind the root file system"),
    (Step::MountProc, "mount /proc"),
    (Step::MountTmp, "mount /tmp"),
    (Step::PivotRoot, "pivot_root"),
    (Step::HostName, "set its host name"),
    (Step::Order, "be told what to become"),
    (Step::Execute, "execute the program"),
    (Step::Resume, "resume the seed (MITOSIS_RESUME)"),
];

/// What a stub says on its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it did, or could not do.
    pub step: Step,
    /// Why not; 0 if it could.
    pub errno: i32,
}

impl Report {
    /// Of this length.
    pub const LEN: usize = 8;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&(self.step as u32).to_ne_bytes());
        bytes[4..].copy_from_slice(&self.errno.to_ne_bytes());
        bytes
    }

    /// Reads what a stub said. `None` where that makes no sense.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (step, errno) = bytes.split_at_checked(4)?;
        let step = u32::from_ne_bytes(step.try_into().ok()?);
        let errno = i32::from_ne_bytes(errno.try_into().ok()?);
        let (step, _) = STEPS.iter().find(|(known, _)| *known as u32 == step)?;
        Some(Self { step: *step, errno })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = STEPS.iter().find(|(step, _)| *step == self.step);
        let what = what.map_or("", |(_, what)| what);
        write!(
            f,
            "cannot {what}: {}",
            io::Error::from_raw_os_error(self.errno)
        )
    }
}

/// What a stub is to become; the subject's file descriptor comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The program that the subject is open on.
    Execute,
    /// The child of this number, of the image that the subject is.
    Resume {
        /// For the child to know itself by.
        child: u32,
    },
}

impl Order {
    /// Its number; that of a program begun anew is 0.
    pub fn child(self) -> u64 {
        match self {
            Order::Execute => 0,
            Order::Resume { child } => u64::from(child),
        }
    }

    const LEN: usize = 16;

    /// As it is sent.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let (kind, child) = match self {
            Order::Execute => (0u64, 0),
            Order::Resume { child } => (1, u64::from(child)),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&kind.to_ne_bytes());
        bytes[8..].copy_from_slice(&child.to_ne_bytes());
        bytes
    }

    fn parse(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let (kind, child) = bytes.split_at(8);
        let child = u64::from_ne_bytes(child.try_into().ok()?);
        match u64::from_ne_bytes(kind.try_into().ok()?) {
            0 => Some(Order::Execute),
            1 => Some(Order::Resume {
                child: u32::try_from(child).ok()?,
            }),
            _ => None,
        }
    }
}

/// All that stubs need and must not allocate.
pub struct Plan {
    root: CString,
    namespaces: CloneFlags,
    // Owns what `argv` points at.
    _arguments: Vec<CString>,
    argv: Vec<*const c_char>,
    /// Made here once, and used up by each stub in its own copy of this memory.
    resumption: UnsafeCell<Option<Resumption>>,
}

// SAFETY: the pointers are to the heap buffers of `_arguments`, which nobody changes and which live as long.
unsafe impl Send for Plan {}
// SAFETY: as above; what is in the cell is changed only by stubs, each of which has one thread and memory of its own.
unsafe impl Sync for Plan {}

impl Plan {
    /// Stubs see `root`; one that becomes a program is given `arguments`, its name first, and one that becomes a seed's
    /// continuation does what `resumption` says.
    pub fn new(
        root: &CStr,
        net: bool,
        arguments: Vec<CString>,
        resumption: Option<Resumption>,
    ) -> Self {
        let mut namespaces = CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC;
        if net {
            namespaces |= CloneFlags::CLONE_NEWNET;
        }
        let argv = arguments
            .iter()
            .map(|argument| argument.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        Self {
            root: root.to_owned(),
            namespaces,
            _arguments: arguments,
            argv,
            resumption: UnsafeCell::new(resumption),
        }
    }
}

/// A stub's ends of its pipes and of its socket.
pub struct Ends<'a> {
    /// What it reads.
    pub stdin: BorrowedFd<'a>,
    /// What it writes.
    pub stdout: BorrowedFd<'a>,
    /// Where it is told what to become.
    pub control: BorrowedFd<'a>,
}

/// Forks a stub into its namespaces and into `group`. It ends with the calling thread.
pub fn spawn(
    plan: &Plan,
    name: &CStr,
    ends: &Ends<'_>,
    group: BorrowedFd<'_>,
) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    // SAFETY: zeros are valid for this struct of integers, and mean 'none' in each.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    let flags = libc::CLONE_PIDFD as u64 | CLONE_INTO_CGROUP;
    arguments.flags = flags | plan.namespaces.bits() as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.cgroup = group.as_raw_fd() as u64;
    // SAFETY: the arguments are of the length given, and `pidfd` lives beyond the call. Without CLONE_VM and without a
    // stack this is a fork: the child has a copy of the memory and goes on on its copy of this stack, in `run`, which
    // does not allocate and does not return.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw mut arguments,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => run(plan, name, ends),
        // SAFETY: the kernel has just opened it for this process, and nobody else knows of it.
        pid => Ok((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

fn run(plan: &Plan, name: &CStr, ends: &Ends<'_>) -> ! {
    let failed = |step: Step| {
        move |errno: Errno| Report {
            step,
            errno: errno as i32,
        }
    };
    let outcome = prepare(plan, name, ends, failed).and_then(|()| {
        say(Report {
            step: Step::Ready,
            errno: 0,
        });
        become_told(plan, failed)
    });
    if let Err(report) = outcome {
        say(report);
    }
    // SAFETY: ends the process without running what the program has registered for its own end.
    unsafe { libc::_exit(127) }
}

fn prepare<F: FnOnce(Errno) -> Report>(
    plan: &Plan,
    name: &CStr,
    ends: &Ends<'_>,
    failed: impl Fn(Step) -> F,
) -> Result<(), Report> {
    streams(ends).map_err(failed(Step::Streams))?;
    prctl::set_pdeathsig(Signal::SIGKILL).map_err(failed(Step::Leash))?;
    // So that a Ctrl-C on the program's terminal is the program's alone.
    setsid().map_err(failed(Step::Leash))?;
    // The handlers are the program's, and write to its pipes.
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGPIPE,
    ] {
        // SAFETY: sets the default action; no handler is involved.
        let set = unsafe { nix::sys::signal::signal(signal, nix::sys::signal::SigHandler::SigDfl) };
        set.map_err(failed(Step::Leash))?;
    }
    // CLONE_INTO_CGROUP comes too late for a namespace that is made at the same time: that would begin at the program's.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(failed(Step::GroupNamespace))?;

    let none: Option<&CStr> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, c"/", none, private, none).map_err(failed(Step::PrivateMounts))?;
    let root = plan.root.as_c_str();
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(root), root, none, bind, none).map_err(failed(Step::BindRoot))?;
    chdir(root).map_err(failed(Step::BindRoot))?;
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let proc = hardened | MsFlags::MS_NOEXEC;
    mount(Some(c"proc"), c"proc", Some(c"proc"), proc, none).map_err(failed(Step::MountProc))?;
    let size = Some(c"size=16m");
    mount(Some(c"tmp"), c"tmp", Some(c"tmpfs"), hardened, size).map_err(failed(Step::MountTmp))?;
    // The old root comes to lie over the new one, and is taken off: no directory has to be there for it.
    pivot_root(c".", c".").map_err(failed(Step::PivotRoot))?;
    umount2(c".", MntFlags::MNT_DETACH).map_err(failed(Step::PivotRoot))?;
    chdir(c"/").map_err(failed(Step::PivotRoot))?;
    let name = std::ffi::OsStr::from_encoded_bytes(name);
    sethostname(name).map_err(failed(Step::HostName))
}

/// An OS string of a C string's bytes, without a copy.
trait FromEncodedBytes {
    fn from_encoded_bytes(name: &CStr) -> &Self;
}

impl FromEncodedBytes for std::ffi::OsStr {
    fn from_encoded_bytes(name: &CStr) -> &Self {
        std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes())
    }
}

/// Puts the stub's ends where they belong and closes all else, among it the ends of other containers.
fn streams(ends: &Ends<'_>) -> Result<(), Errno> {
    let aside = |fd: BorrowedFd<'_>| {
        nix::fcntl::fcntl(fd.as_raw_fd(), nix::fcntl::FcntlArg::F_DUPFD(ASIDE))
    };
    let (stdin, stdout) = (aside(ends.stdin)?, aside(ends.stdout)?);
    let control = aside(ends.control)?;
    dup2(stdin, 0)?;
    dup2(stdout, 1)?;
    dup2(control, CONTROL)?;
    close_from(CONTROL + 1)
}

fn close_from(first: RawFd) -> Result<(), Errno> {
    // SAFETY: the descriptors belong to this process alone, and nothing in it uses one of these any more.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    Errno::result(closed).map(drop)
}

fn say(report: Report) {
    let bytes = report.to_bytes();
    // SAFETY: the buffer is valid for its length. If it cannot be sent, nobody is left to be told.
    let _ = unsafe {
        libc::send(
            CONTROL,
            bytes.as_ptr().cast(),
            bytes.len(),
            libc::MSG_NOSIGNAL,
        )
    };
}

fn become_told<F: FnOnce(Errno) -> Report>(
    plan: &Plan,
    failed: impl Fn(Step) -> F,
) -> Result<(), Report> {
    let order = receive().map_err(failed(Step::Order))?;
    // The program learns by the socket's end that nothing failed.
    for fd in [CONTROL, SUBJECT] {
        let close = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
        nix::fcntl::fcntl(fd, close).map_err(failed(Step::Order))?;
    }
    match order {
        Order::Execute => {
            let environment = [std::ptr::null::<c_char>()];
            // SAFETY: the path is a C string, and both lists are arrays of C strings that end with a null pointer.
            unsafe {
                libc::syscall(
                    libc::SYS_execveat,
                    SUBJECT,
                    c"".as_ptr(),
                    plan.argv.as_ptr(),
                    environment.as_ptr(),
                    libc::AT_EMPTY_PATH,
                )
            };
            Err(failed(Step::Execute)(Errno::last()))
        }
        Order::Resume { child } => {
            // SAFETY: this is a stub, whose memory nobody else sees; the reference is the only one.
            let resumption = unsafe { &mut *plan.resumption.get() };
            let Some(resumption) = resumption else {
                return Err(failed(Step::Resume)(Errno::EBADMSG));
            };
            // SAFETY: the process has one thread, and none of its files matters any more.
            let error = unsafe { resumption.run(SUBJECT, child) };
            Err(failed(Step::Resume)(Errno::from_raw(error.errno())))
        }
    }
}

/// Waits for an order, and leaves what comes with it in `SUBJECT`.
fn receive() -> Result<Order, Errno> {
    let mut bytes = [0u8; Order::LEN];
    // As aligned as a control message's header must be.
    let mut ancillary = [0u64; 8];
    let mut part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: zeros are valid for this struct: no name, no buffers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = ancillary.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&ancillary);
    let received = loop {
        // SAFETY: all that the message points at lives, and is as long as it says.
        let received = unsafe { libc::recvmsg(CONTROL, &raw mut message, 0) };
        match Errno::result(received) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    if received == 0 {
        // The program has gone, or has no use for this container.
        // SAFETY: as in `run`.
        unsafe { libc::_exit(0) }
    }
    let order = Order::parse(&bytes).ok_or(Errno::EBADMSG)?;
    // SAFETY: the kernel has filled the buffer; the header, if there is one, lies within it.
    let header = unsafe { libc::CMSG_FIRSTHDR(&message).as_ref() }.ok_or(Errno::EBADMSG)?;
    if header.cmsg_level != libc::SOL_SOCKET || header.cmsg_type != libc::SCM_RIGHTS {
        return Err(Errno::EBADMSG);
    }
    // SAFETY: a message of this type carries at least one descriptor.
    let fd = unsafe { libc::CMSG_DATA(header).cast::<RawFd>().read_unaligned() };
    if fd != SUBJECT {
        dup2(fd, SUBJECT)?;
    }
    close_from(SUBJECT + 1)?;
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for (step, _) in STEPS {
            let report = Report {
                step: *step,
                errno: 13,
            };
            assert_eq!(Report::parse(&report.to_bytes()), Some(report));
        }
        assert_eq!(Report::parse(&[0xff; Report::LEN]), None);
        assert_eq!(Report::parse(&[0; 3]), None);
        for order in [Order::Execute, Order::Resume { child: u32::MAX }] {
            assert_eq!(Order::parse(&order.to_bytes()), Some(order));
        }
        assert_eq!(Order::parse(&[7; Order::LEN]), None);
    }

    #[test]
    fn a_report_says_what_failed_and_why() {
        let report = Report {
            step: Step::PivotRoot,
            errno: libc::EINVAL,
        };
        assert_eq!(
            report.to_string(),
            "cannot pivot_root: Invalid argument (os error 22)"
        );
    }
}
