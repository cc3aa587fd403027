//! The whole flow on hosts that are directories: `/dev/kmsg`, `/sys`, `insmod` and `rmmod` are shell scripts' work.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

mod containers;

use super::plan::Deadlines;
use super::*;
use crate::cluster::{Fallen, Role};
use crate::klog::watch::{LookForFallen, Patience, Waited};
use crate::modules::tests::module_for;
use crate::report::Verdict;
use crate::template::{RunPass, Template};

const GID: &str = "fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c";
const RELEASE: &str = "6.12.9-test";

/// Runs a script as ssh would on a machine whose kernel is the directory `$1`.
const FAKE_HOST: &str = r#"#!/bin/sh
export FAKE="$1" PATH="${0%/*}:$PATH"
[ ! -e "$FAKE/unreachable" ] || { echo "ssh: connect to host: No route to host" >&2; exit 255; }
exec sh -c "$(printf '%s' "$2" |
  sed "s#>/dev/kmsg#| kmsg#g; s#cat /dev/kmsg#tail -s 0.01 -n +1 -f $1/kmsg#; s#/sys/#$1/sys/#g")"
"#;

const SHIMS: &[(&str, &str)] = &[
    ("host", FAKE_HOST),
    ("id", "#!/bin/sh\necho 0\n"),
    ("uname", "#!/bin/sh\ncat \"$FAKE/release\"\n"),
    ("modprobe", "#!/bin/sh\necho \"$*\" >>\"$FAKE/modprobed\"\n"),
    (
        "kmsg",
        r#"#!/bin/sh
exec 9>>"$FAKE/lock"
flock 9
while IFS= read -r line; do
  level=6
  case $line in '<'?'>'*) level=${line#<} level=${level%%>*} line=${line#<?>} ;; esac
  number=$(wc -l <"$FAKE/kmsg")
  echo "$level,$number,$((number * 1000)),-;$line" >>"$FAKE/kmsg"
done
"#,
    ),
    (
        "insmod",
        r#"#!/bin/sh
file=$1 name=${1##*/} name=${name%.ko}
shift
cmp -s "$file" "$FAKE/../out/modules/$(uname -r)/$name.ko" || { echo "another file" >&2; exit 1; }
mkdir -p "$FAKE/sys/module/$name"
echo "$name $*" >>"$FAKE/loaded"
say() { echo "src/lib.rs@1: $1" | kmsg; }
. "$FAKE/behaviour"
"#,
    ),
    (
        "rmmod",
        r#"#!/bin/sh
[ ! -e "$FAKE/busy" ] || { echo "rmmod: ERROR: Module $1 is in use" >&2; exit 1; }
rmdir "$FAKE/sys/module/$1" || exit 1
case $1 in *server) echo "src/lib.rs@1: [INFO ] - $(cat "$FAKE/stopped")" | kmsg ;; esac
echo "krdma test framework dropped" | kmsg
"#,
    ),
];

const SERVER: &str = r#"
say "[INFO ] - starting rpc server"
say "[INFO ] - rpc server ready: service 0, hint 73, device rxe0, gid fe80::1, mtu 2048, 512 receive buffers"
"#;

const CLIENT: &str = r#"
say "[INFO ] - starting rpc client"
say "[INFO ] - passed: 1000000us, thpt: 1000 requests/s"
say "[INFO ] - total: requests 1000, errors 0, elapsed_us 500000, threads 4"
say "[INFO ] - latency_ns: p50 31, p99 31, p999 31, max 30"
say "[INFO ] - latency buckets: 30:400 31:600"
say "[INFO ] - stress test done"
"#;

struct Fake {
    directory: tempfile::TempDir,
    hosts: Vec<Host>,
    template: Template<RunPass>,
    parameters: BTreeMap<String, u64>,
    deadlines: Deadlines,
    given_gid: Option<Gid>,
    interrupt: Interrupt,
}

impl Fake {
    /// A server and two clients that do all that is asked of them.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().to_path_buf();
        for (name, script) in SHIMS {
            write(&root.join("bin").join(name), script);
            fs::set_permissions(
                root.join("bin").join(name),
                fs::Permissions::from_mode(0o755),
            )
            .unwrap();
        }
        for module in ["mitosis_rpc_server", "mitosis_rpc_client"] {
            let path = root
                .join("out/modules")
                .join(RELEASE)
                .join(format!("{module}.ko"));
            write(&path, module_for(RELEASE));
        }
        let roles = [
            ("val01", Role::Parent),
            ("val02", Role::Child),
            ("val03", Role::Child),
        ];
        let hosts = roles.map(|(name, role)| {
            let home = root.join(name);
            let port = home.join("sys/class/infiniband/rxe0/ports/1");
            write(&port.join("state"), "4: ACTIVE\n");
            write(&port.join("gids/0"), format!("{GID}\n"));
            write(&port.join("gid_attrs/ndevs/0"), "eth0\n");
            write(&home.join("sys/class/net/eth0/mtu"), "4200\n");
            write(&home.join("release"), RELEASE);
            write(
                &home.join("kmsg"),
                "3,0,0,-;BUG: something before the run began\n",
            );
            write(
                &home.join("stopped"),
                "rpc server stopped: sessions 8, requests 2000, replayed 0, rejected 0, errors 0",
            );
            write(
                &home.join("behaviour"),
                if role == Role::Parent { SERVER } else { CLIENT },
            );
            Host {
                name: name.into(),
                role,
                address: String::new(),
                ssh: vec![
                    root.join("bin/host").display().to_string(),
                    home.display().to_string(),
                ],
                directory: home.join("modules"),
            }
        });
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../templates-run/peak-rpc-kernel-module.toml");
        let template = Template::<RunPass>::load(&path).unwrap();
        let parameters = template.parameters.clone();
        let deadlines = Deadlines {
            grace: Duration::ZERO,
            ..Deadlines::default()
        };
        let interrupt = Interrupt::default();
        Self {
            directory,
            hosts: hosts.into(),
            template,
            parameters,
            deadlines,
            given_gid: None,
            interrupt,
        }
    }

    fn home(&self, host: &str) -> PathBuf {
        self.directory.path().join(host)
    }

    fn behave(&self, host: &str, script: &str) {
        write(&self.home(host).join("behaviour"), script);
    }

    fn run(&self) -> Report {
        let report = self.run_with(&Vec::new);
        let idle = |host: &&&str| !self.home(host).join("busy").exists();
        for host in ["val01", "val02", "val03"].iter().filter(idle) {
            let modules = fs::read_dir(self.home(host).join("sys/module"));
            let count = modules.map_or(0, Iterator::count);
            assert_eq!(count, 0, "{host} still has a module: {:?}", report.findings);
        }
        report
    }

    fn run_with(&self, fallen: LookForFallen<'_>) -> Report {
        let plan = Plan {
            target: self.template.target(),
            hosts: &self.hosts,
            disposable: false,
            passes: &self.template.passes,
            parameters: &self.parameters,
            cluster_key: "",
            parent_gid: self.given_gid,
            out: &self.directory.path().join("out"),
            deadlines: self.deadlines,
            fallen,
        };
        run(&plan, &Progress::silent(), &self.interrupt)
    }

    /// Runs, and expects a finding of this kind on this host that says so; others may come with it.
    #[track_caller]
    fn fails(&self, host: &str, kind: Kind, says: &str) -> Report {
        let report = self.run();
        assert_eq!(report.verdict(), Verdict::Fail);
        let found = |finding: &Finding| {
            finding.host == host && finding.kind == kind && finding.line.contains(says)
        };
        assert!(report.findings.iter().any(found), "{:#?}", report.findings);
        report
    }
}

fn write(path: &Path, contents: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, contents).unwrap();
}

#[test]
fn machines_that_share_processors_have_more_time() {
    let alone = Deadlines::default();
    for (machines, processors, share) in [(2, 2, 1), (3, 2, 2), (11, 2, 6), (11, 16, 1), (3, 0, 3)]
    {
        let deadlines = Deadlines::of_shared_processors(machines, processors);
        assert_eq!(deadlines.command, alone.command * share);
        assert_eq!(deadlines.unload, alone.unload * share);
        assert_eq!(deadlines.grace, alone.grace);
    }
}

#[test]
fn a_good_run_passes_with_the_sums_of_its_clients() {
    let fake = Fake::new();
    let report = fake.run();
    assert_eq!(report.findings, []);
    assert_eq!(report.verdict(), Verdict::Pass);
    assert_eq!(
        (
            report.totals.done(),
            report.totals.done_per_s(),
            report.totals.errors()
        ),
        (2000, 4000.0, 0)
    );
    let latency = report.totals.latency_ns().unwrap();
    assert_eq!((latency.p50, latency.p999, latency.max), (31, 31, 30));
    let names: Vec<&str> = report.hosts.iter().map(|host| host.name.as_str()).collect();
    assert_eq!(names, ["val02", "val03"]);
    // The server's own word on the MTU goes before what its network device suggests.
    let mtus: Vec<_> = report.cluster.hosts.iter().map(|host| host.mtu).collect();
    assert_eq!(mtus, [Some(2048), Some(4096), Some(4096)]);

    let loaded = |host: &str| fs::read_to_string(fake.home(host).join("loaded")).unwrap();
    assert_eq!(
        loaded("val01"),
        "mitosis_rpc_server running_secs=80 test_rpc_id=778 qd_hint=73 service_id=0\n"
    );
    let client = loaded("val02");
    let (before, base) = client.split_once(" session_id_base=").unwrap();
    assert_eq!(
        before,
        "mitosis_rpc_client server_qd_hint=73 client_qd_hint=75 server_service_id=0 client_service_id_base=1 \
         test_rpc_id=778 running_secs=60 report_interval=1 thread_count=12"
    );
    let (base, gid) = base.split_once(" gid=").unwrap();
    assert_eq!(base.parse::<u64>().unwrap() % 64, 0);
    assert_eq!(gid.trim(), GID);
    assert!(
        !loaded("val03").contains(base),
        "two machines have the session base {base}"
    );
    let modprobed = fs::read_to_string(fake.home("val02").join("modprobed")).unwrap();
    assert_eq!(modprobed, "-q rdma_cm\n-q ib_core\n");
}

#[test]
fn an_error_line_ends_the_run_at_once() {
    let fake = Fake::new();
    fake.behave(
        "val03",
        "say '[ERROR] - stress test failed: no server there'",
    );
    let report = fake.fails("val03", Kind::Error, "no server there");
    assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
    // The others' work is still told.
    assert_eq!(report.totals.done(), 1000);
}

#[test]
fn what_the_kernel_says_while_unloading_counts() {
    let fake = Fake::new();
    write(
        &fake.home("val01").join("stopped"),
        "done\nWARNING: CPU: 0 PID: 7 at drivers/infiniband/core/cq.c:315",
    );
    let report = fake.fails("val01", Kind::Warning, "cq.c:315");
    assert_eq!(report.findings.len(), 1);
    assert_eq!(report.totals.done(), 2000);
}

#[test]
fn a_client_without_figures_is_missing() {
    let fake = Fake::new();
    fake.behave("val02", "say '[INFO ] - stress test done'");
    fake.fails("val02", Kind::MissingClient, "did not report its figures");
}

#[test]
fn a_client_without_throughput_fails_the_run() {
    let fake = Fake::new();
    fake.behave(
        "val02",
        "say '[INFO ] - total: requests 0, errors 0, elapsed_us 500000, threads 4'; say '[INFO ] - stress test done'",
    );
    fake.fails("val02", Kind::ZeroThroughput, "not one of its requests");
}

#[test]
fn failed_requests_and_wrong_counts_fail_the_run() {
    let fake = Fake::new();
    fake.behave("val02", &CLIENT.replace("errors 0", "errors 3"));
    fake.behave("val03", &CLIENT.replace("31:600", "31:599"));
    write(
        &fake.home("val01").join("stopped"),
        "rpc server stopped: sessions 8, requests 1999, replayed 0, rejected 0, errors 1",
    );
    let report = fake.fails("val02", Kind::FailedRequests, "3 of its requests failed");
    let kinds: Vec<_> = report
        .findings
        .iter()
        .map(|finding| (finding.host.as_str(), finding.kind))
        .collect();
    assert!(kinds.contains(&("val03", Kind::Accounting)), "{kinds:?}");
    assert!(kinds.contains(&("val01", Kind::Accounting)), "{kinds:?}");
    assert!(
        kinds.contains(&("val01", Kind::FailedRequests)),
        "{kinds:?}"
    );
}

#[test]
fn insmods_complaint_is_told() {
    let fake = Fake::new();
    fake.behave(
        "val02",
        "rmdir $FAKE/sys/module/$name; echo 'insmod: ERROR: Invalid parameters' >&2; exit 1",
    );
    fake.fails(
        "val02",
        Kind::Load,
        "insmod mitosis_rpc_client.ko failed: insmod: ERROR: Invalid parameters",
    );
}

#[test]
fn a_module_that_stays_is_told() {
    let fake = Fake::new();
    write(&fake.home("val03").join("busy"), "");
    fake.fails(
        "val03",
        Kind::Unload,
        "rmmod mitosis_rpc_client failed: rmmod: ERROR: Module mitosis_rpc_client is in use",
    );
}

#[test]
fn a_server_that_is_never_ready_ends_the_run_before_the_clients_start() {
    let mut fake = Fake::new();
    fake.deadlines.ready = Duration::from_millis(100);
    fake.behave("val01", "say '[INFO ] - starting rpc server'");
    let report = fake.fails("val01", Kind::Deadline, "no \"rpc server ready\" within");
    assert!(!fake.home("val02").join("loaded").exists());
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.kind == Kind::Deadline),
        "{:?}",
        report.findings
    );
}

#[test]
fn clients_that_are_never_done_end_the_run_at_its_deadline() {
    let mut fake = Fake::new();
    fake.deadlines.slack = Duration::from_millis(300);
    fake.parameters.insert("client_running_secs".into(), 0);
    fake.behave("val02", "say '[INFO ] - starting rpc client'");
    fake.fails("val02", Kind::Deadline, "no \"stress test done\" within");
}

#[test]
fn lost_log_records_are_found() {
    let fake = Fake::new();
    fake.behave(
        "val02",
        &format!("{CLIENT}\necho '6,9000,9000000,-;src/lib.rs@1: [INFO ] - late' >>$FAKE/kmsg"),
    );
    fake.fails(
        "val02",
        Kind::LostRecords,
        "records before: src/lib.rs@1: [INFO ] - late",
    );
}

#[test]
fn hosts_that_are_not_fit_are_refused_before_anything_is_loaded() {
    let refused = |spoil: &dyn Fn(&mut Fake), host: &str, says: &str| {
        let mut fake = Fake::new();
        spoil(&mut fake);
        let report = fake.fails(host, Kind::Setup, says);
        assert_eq!(report.findings.len(), 1, "{:?}", report.findings);
        assert!(!fake.home("val01").join("loaded").exists());
    };
    refused(
        &|fake| write(&fake.home("val03").join("unreachable"), ""),
        "val03",
        "No route to host",
    );
    refused(
        &|fake| fs::remove_dir_all(fake.home("val02").join("sys/class/infiniband")).unwrap(),
        "val02",
        "no RDMA port in state ACTIVE",
    );
    refused(
        &|fake| write(&fake.home("val02").join("release"), "6.1.0-other"),
        "-",
        "run `make build-rpc-bench` first",
    );
    refused(
        &|fake| {
            let path = fake
                .directory
                .path()
                .join("out/modules")
                .join(RELEASE)
                .join("mitosis_rpc_client.ko");
            write(&path, module_for("6.1.0-other"));
        },
        "val02",
        "mitosis_rpc_client.ko was built for 6.1.0-other, val02 runs 6.12.9-test",
    );
    refused(
        &|fake| fake.given_gid = Some("fe80::1".parse().unwrap()),
        "-",
        "no active RDMA port of val01 has this GID",
    );
}

#[test]
fn an_interrupt_unloads_what_was_loaded() {
    let fake = Fake::new();
    let interrupt = fake.interrupt.clone();
    fake.behave("val02", "say '[INFO ] - starting rpc client'");
    let report = std::thread::scope(|scope| {
        let loaded = fake.home("val02").join("loaded");
        scope.spawn(move || {
            while !loaded.exists() {
                std::thread::yield_now();
            }
            interrupt.raise();
        });
        fake.run()
    });
    assert!(report.interrupted(), "{:?}", report.findings);
}

#[test]
fn a_machine_that_falls_ends_the_run_and_tells_why() {
    let fake = Fake::new();
    fake.behave("val02", "say '[INFO ] - starting rpc client'");
    let loaded = fake.home("val02").join("loaded");
    let fallen = || {
        let fallen = Fallen {
            name: "val02".into(),
            path: "val02.console.log".into(),
            console: "[ 9.1] Kernel panic - not syncing: Fatal exception".into(),
        };
        Vec::from_iter(loaded.exists().then_some(fallen))
    };
    let report = fake.run_with(&fallen);
    let kinds: Vec<Kind> = report.findings.iter().map(|finding| finding.kind).collect();
    // That its client did not come to its end is no mistake of its own.
    assert_eq!(
        kinds,
        [Kind::HostLost, Kind::Panic],
        "{:?}",
        report.findings
    );
}

#[test]
fn a_machine_that_was_ended_on_purpose_is_followed_again() {
    let fake = Fake::new();
    let (progress, none) = (Progress::silent(), Vec::new);
    let timeout = Duration::from_secs(20);
    let mut watch = Watch::start(
        &fake.hosts[..1],
        Duration::ZERO,
        timeout,
        &progress,
        &fake.interrupt,
        &none,
    )
    .unwrap();
    let says = |watch: &mut Watch<'_>, line: &str| {
        watch
            .spawn(0, &format!("echo 'src/lib.rs@1: {line}' >/dev/kmsg"))
            .unwrap();
        let said = |watch: &Watch<'_>| watch.logs[0].said(line);
        assert_eq!(
            watch.wait(timeout, Patience::Eager, said).unwrap(),
            Waited::Done
        );
    };
    says(&mut watch, "[INFO ] - its first life");
    watch.forgo(0);
    // Booted anew: another log, which counts from 0. What follows the old one does not see it.
    fs::remove_file(fake.home("val01").join("kmsg")).unwrap();
    write(
        &fake.home("val01").join("kmsg"),
        "3,0,0,-;BUG: something of its boot\n",
    );
    watch.rejoin(0, timeout).unwrap();
    says(&mut watch, "[INFO ] - its second life");
    assert!(watch.logs[0].said("its first life"));
    assert!(!watch.logs[0].said("its boot"));
    assert_eq!(watch.findings, []);
}
