//! What must not be in a kernel log while a run lasts.
//!
//! The audit begins at the mark that the runner writes into each log, so what a machine says while it boots is not
//! looked at.

use serde::Serialize;

use super::record::Record;

/// Something that makes a run's verdict `fail`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The machine; `-` for the run as a whole.
    pub host: String,
    /// What sort of thing it is.
    pub kind: Kind,
    /// The log line, or a sentence that says what happened.
    pub line: String,
}

/// The sorts of findings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A module's `[ERROR]` line.
    Error,
    /// `WARNING:`
    Warning,
    /// `BUG:`, `UBSAN:`, a corrupted list.
    Bug,
    /// `Oops`, a page fault in the kernel.
    Oops,
    /// `general protection fault`
    GeneralProtection,
    /// KASAN, KFENCE, SLUB, page poison.
    Memory,
    /// A CPU that did not schedule, or did not take interrupts.
    Lockup,
    /// A task that did not run for minutes.
    HungTask,
    /// RCU was held up.
    RcuStall,
    /// A stack trace, whatever its reason.
    CallTrace,
    /// The kernel gave up.
    Panic,
    /// A network device whose references were not given back.
    UnregisterNetdevice,
    /// insmod was given a name that the module does not know.
    UnknownParameter,
    /// Any other line at level error or above.
    Level,
    /// Log records were overwritten before they were read: nobody knows what they said.
    LostRecords,
    /// The host's log ended: the machine died, or ssh did.
    HostLost,
    /// The hosts are not fit for the run.
    Setup,
    /// A pass did not start.
    Load,
    /// A pass did not end.
    Unload,
    /// A host did not say in time what it had to say.
    Deadline,
    /// A client that did not report its figures.
    MissingClient,
    /// A client without one answered request.
    ZeroThroughput,
    /// Requests that were not answered.
    FailedRequests,
    /// Server and clients do not agree on what was done.
    Accounting,
    /// A program that could not do its part.
    Program,
    /// A container that could not be begun, or whose child did not prove what it is.
    FailedContainer,
    /// Throughput fell below what the test allows.
    Unsteady,
    /// Something is still there that was there for the run only.
    Left,
    /// The user stopped the run.
    Interrupted,
}

/// Texts, and what a line is that holds one of them. The first match counts, so the special comes before the general.
const PATTERNS: &[(Kind, &[&str])] = &[
    (Kind::Panic, &["Kernel panic"]),
    (
        Kind::Lockup,
        &["soft lockup", "hard LOCKUP", "workqueue lockup"],
    ),
    (
        Kind::Memory,
        &[
            "KASAN",
            "KFENCE",
            "KMSAN",
            "kmemleak:",
            "Poison overwritten",
            "Redzone",
            "Padding overwritten",
            "Slab",
            "slab",
            "Object already free",
            "Objects remaining",
            "pagealloc:",
            "Bad page state",
        ],
    ),
    (
        Kind::HungTask,
        &["hung task", "hung_task", "blocked for more than"],
    ),
    (
        Kind::UnregisterNetdevice,
        &["unregister_netdevice: waiting"],
    ),
    (
        Kind::Oops,
        &["Oops", "unable to handle", "Unable to handle"],
    ),
    (Kind::GeneralProtection, &["general protection"]),
    (Kind::Warning, &["WARNING:"]),
    (
        Kind::Bug,
        &[
            "BUG:",
            "BUG ",
            "kernel BUG at",
            "UBSAN:",
            "list_add corruption",
            "list_del corruption",
        ],
    ),
    (Kind::CallTrace, &["Call Trace", "Call trace"]),
    (Kind::Error, &["[ERROR]"]),
    (Kind::UnknownParameter, &["unknown parameter"]),
];

/// Lines that come with every module that the distribution did not sign.
const EXPECTED: &[&str] = &[
    "module verification failed: signature and/or required key missing - tainting kernel",
    "loading out-of-tree module taints kernel",
];

/// What is wrong with a record, if anything is.
pub fn classify(record: &Record) -> Option<Kind> {
    let text = record.text.as_str();
    if EXPECTED.iter().any(|expected| text.contains(expected)) {
        return None;
    }
    if is_rcu_stall(text) {
        return Some(Kind::RcuStall);
    }
    let matched = PATTERNS
        .iter()
        .find(|(_, texts)| texts.iter().any(|pattern| text.contains(pattern)));
    match matched {
        Some((kind, _)) => Some(*kind),
        None if record.level <= 3 => Some(Kind::Level),
        None => None,
    }
}

/// What is wrong with the lines of a machine's console, `[   12.345678] text`.
pub fn console(host: &str, console: &str) -> Vec<Finding> {
    let finding = |line: &str| {
        let line = line.trim();
        let text = line
            .strip_prefix('[')
            .and_then(|line| line.split_once("] "))
            .map_or(line, |(_, text)| text);
        let text = text.trim().to_string();
        let record = Record {
            level: 6,
            sequence: 0,
            time_us: 0,
            text,
        };
        let kind = classify(&record)?;
        Some(Finding {
            host: host.into(),
            kind,
            line: record.text,
        })
    };
    console.lines().filter_map(finding).collect()
}

/// `rcu: INFO: rcu_preempt detected stalls`, `rcu_sched kthread starved`, `rcu_tasks … stall`.
fn is_rcu_stall(text: &str) -> bool {
    text.find("rcu").is_some_and(|at| {
        let rest = &text[at..];
        rest.contains("stall") || rest.contains("kthread starved")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(level: u8, text: &str) -> Option<Kind> {
        classify(&Record {
            level,
            sequence: 1,
            time_us: 1,
            text: text.into(),
        })
    }

    #[test]
    fn each_kind_is_recognised_in_what_kernels_really_print() {
        let cases = [
            (6, "src/client.rs@90: [ERROR] - stress test failed: no answer from fe80:…", Kind::Error),
            (4, "WARNING: CPU: 0 PID: 412 at drivers/infiniband/sw/rxe/rxe_qp.c:789 rxe_qp_do_cleanup+0x1b/0x20 [rdma_rxe]", Kind::Warning),
            (4, "WARNING: possible circular locking dependency detected", Kind::Warning),
            (1, "BUG: kernel NULL pointer dereference, address: 0000000000000008", Kind::Bug),
            (2, "kernel BUG at mm/slub.c:4023!", Kind::Bug),
            (2, "kernel BUG at net/core/skbuff.c:110!", Kind::Bug),
            (3, "BUG: scheduling while atomic: mitosis_client/512/0x00000002", Kind::Bug),
            (1, "BUG: unable to handle page fault for address: ffffc90000a00000", Kind::Oops),
            (4, "Oops: 0002 [#1] PREEMPT SMP NOPTI", Kind::Oops),
            (4, "Oops: general protection fault, probably for non-canonical address 0x6b6b6b6b6b6b6b6b: 0000 [#1] SMP", Kind::Oops),
            (4, "general protection fault, probably for non-canonical address 0x6b6b6b6b6b6b6b6b: 0000 [#1] SMP", Kind::GeneralProtection),
            (3, "BUG: KASAN: slab-use-after-free in rxe_completer+0x31/0x90", Kind::Memory),
            (3, "BUG: KFENCE: use-after-free read in mitosis_client_stop+0x44/0x90 [mitosis_rpc_client]", Kind::Memory),
            (3, "BUG kmalloc-64 (Tainted: G           OE     ): Poison overwritten", Kind::Memory),
            (3, "BUG kmalloc-1k (Not tainted): Right Redzone overwritten", Kind::Memory),
            (3, "BUG mitosis (Tainted: G OE): Objects remaining in mitosis on __kmem_cache_shutdown()", Kind::Memory),
            (3, "pagealloc: memory corruption", Kind::Memory),
            (0, "watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [mitosis_client:512]", Kind::Lockup),
            (0, "watchdog: Watchdog detected hard LOCKUP on cpu 3", Kind::Lockup),
            (3, "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 33s!", Kind::Lockup),
            (3, "INFO: task rmmod:731 blocked for more than 120 seconds.", Kind::HungTask),
            (3, "rcu: INFO: rcu_preempt self-detected stall on CPU", Kind::RcuStall),
            (3, "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:", Kind::RcuStall),
            (3, "rcu: rcu_preempt kthread starved for 5250 jiffies! g1425 f0x0 RCU_GP_WAIT_FQS(5) ->state=0x0", Kind::RcuStall),
            (4, "Call Trace:", Kind::CallTrace),
            (0, "Kernel panic - not syncing: Fatal exception in interrupt", Kind::Panic),
            (0, "unregister_netdevice: waiting for eth0 to become free. Usage count = 3", Kind::UnregisterNetdevice),
            (4, "mitosis_rpc_client: unknown parameter 'threads' ignored", Kind::UnknownParameter),
            (3, "infiniband rxe0: rxe_qp_from_init: unable to create qp", Kind::Level),
            (4, "UBSAN: array-index-out-of-bounds in drivers/x.c:3:1", Kind::Bug),
        ];
        for (level, text, want) in cases {
            assert_eq!(classified(level, text), Some(want), "{text}");
        }
    }

    #[test]
    fn a_normal_run_has_no_findings() {
        for (level, text) in [
            (5, "mitosis_rpc_client: module verification failed: signature and/or required key missing - tainting kernel"),
            (4, "mitosis_rpc_client: loading out-of-tree module taints kernel."),
            (6, "src/lib.rs@182: [INFO ] - starting rpc client"),
            (6, "src/lib.rs@221: [INFO ] - passed: 1024001us, thpt: 131063 requests/s"),
            (4, "src/lib.rs@60: [WARN ] - no cluster key: any peer can open a session"),
            (6, "krdma test framework dropped"),
            (6, "rdma_rxe: loaded"),
            (4, "perf: interrupt took too long (2502 > 2500), lowering kernel.perf_event_max_sample_rate to 79750"),
        ] {
            assert_eq!(classified(level, text), None, "{text}");
        }
    }

    #[test]
    fn a_console_tells_why_its_machine_ended() {
        let lines = "\n  [   12.5] rdma_rxe: loaded\n  [   13.0] Kernel panic - not syncing: Fatal exception\n";
        let findings = console("val02", lines);
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].kind, Kind::Panic);
        assert_eq!(
            findings[0].line,
            "Kernel panic - not syncing: Fatal exception"
        );
    }
}
