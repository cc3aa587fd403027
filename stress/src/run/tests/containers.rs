//! The lean-container test on hosts that are directories: the programs are shell scripts.

use super::*;
use crate::programs;
use crate::report::Figures;

const PARENT: &str = r#"#!/bin/sh
echo "prepared: seed=0 generation=7 capability=00ff state=abc"
cat >/dev/null
"#;

const LEAN: &str = r#"#!/bin/sh
[ "$1" != left ] || { [ ! -e still ] || { cat still >&2; exit 1; }; exit 0; }
echo "$*" >given
. ./behaviour
"#;

const GOOD: &str = r#"
echo '[id] Throughput: 10.000000 containers/sec, latency 100.000000 ms'
echo '[id] total: containers 20, verified 20, errors 0, elapsed_us 2000000, threads 1'
echo '[id] latency_ns: p50 31, p99 31, p999 31, max 30'
echo '[id] latency buckets: 30:8 31:12'
"#;

/// A parent and two machines with containers that do all that is asked of them.
fn fake() -> Fake {
    let mut fake = Fake::new();
    let root = fake.directory.path().to_path_buf();
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../templates-run/peak-lean-container.toml");
    fake.template = Template::<RunPass>::load(&path).unwrap();
    fake.parameters = fake.template.parameters.clone();
    let out = root.join("out");
    write(
        &out.join("modules").join(RELEASE).join("mitosis.ko"),
        module_for(RELEASE),
    );
    write(&programs::directory(&out).join("lean-parent"), PARENT);
    write(&programs::directory(&out).join("lean-parent.data"), "x");
    write(&programs::directory(&out).join("mitosis-lean"), LEAN);
    for host in ["val01", "val02", "val03"] {
        fake.behave(host, "say '[INFO ] - rpc server ready: service 2'");
        contain(&fake, host, GOOD);
    }
    fake
}

fn contain(fake: &Fake, host: &str, script: &str) {
    write(&fake.home(host).join("modules/behaviour"), script);
}

#[test]
fn a_good_run_passes_and_hands_the_seed_on() {
    let fake = fake();
    let report = fake.run();
    assert_eq!(report.findings, []);
    let Figures::Containers(totals) = report.totals else {
        panic!("{:?}", report.totals)
    };
    assert_eq!(
        (totals.containers, totals.verified, totals.errors),
        (40, 40, 0)
    );
    assert_eq!(totals.containers_per_s, 20.0);
    assert_eq!(totals.latency_ns.map(|latency| latency.max), Some(30));
    let given = fs::read_to_string(fake.home("val03").join("modules/given")).unwrap();
    let seed = format!("--state abc seed --gid {GID} --id 0 --generation 7 --capability 00ff");
    assert!(given.contains(&seed), "{given}");
}

#[test]
fn what_was_not_verified_fails_the_run() {
    let fake = fake();
    contain(
        &fake,
        "val02",
        &GOOD
            .replace("verified 20, errors 0", "verified 19, errors 1")
            .replace("31:12", "31:11")
            .replace(
                "echo '[id] total",
                "echo '[id] error: no proof'; echo '[id] total",
            ),
    );
    let report = fake.fails("val02", Kind::FailedContainer, "no proof");
    assert_eq!(report.totals.errors(), 1);
    contain(&fake, "val02", &GOOD.replace("31:12", "31:11"));
    fake.fails("val02", Kind::Accounting, "and 19 latencies");
    contain(&fake, "val02", "echo gone >&2; exit 1");
    fake.fails("val02", Kind::MissingClient, "gone");
}

#[test]
fn a_sudden_drop_fails_the_run() {
    let fake = fake();
    contain(&fake, "val03", &GOOD.replace("10.000000", "0.090090"));
    fake.fails("val03", Kind::Unsteady, "0.090090");
}

#[test]
fn what_is_left_behind_fails_the_run() {
    let fake = fake();
    write(
        &fake.home("val01").join("modules/still"),
        "the module still has 1 seeds",
    );
    fake.fails("val01", Kind::Left, "still has 1 seeds");
}

#[test]
fn a_parent_that_ends_or_cannot_begin_fails_the_run() {
    let fake = fake();
    let path = programs::directory(&fake.directory.path().join("out")).join("lean-parent");
    write(&path, PARENT.replace("cat >/dev/null", ""));
    fake.fails("val01", Kind::Program, "ended before it was told to");
    write(
        &path,
        "#!/bin/sh\necho 'there is no /dev/mitosis' >&2; exit 1\n",
    );
    fake.fails("val01", Kind::Program, "there is no /dev/mitosis");
    write(&path, PARENT.replace("state=abc", ""));
    fake.fails("val01", Kind::Program, "gives no state");
}
