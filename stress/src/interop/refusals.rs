//! What processes say when they cannot have what they need, and when it is taken from them: on one machine, whose device
//! and rights are changed for the while, so these come last.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};

use crate::cluster::shell::{quote, Limit};
use crate::cluster::Host;
use crate::klog::audit::{Finding, Kind};
use crate::programs;
use crate::stage::{Setting, Stage};

/// Within which a program has to say it, under emulation.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// Something that is not there, and what must be said of it.
pub(super) struct Refusal {
    pub(super) name: &'static str,
    /// In the directory of the programs; `$gid` is the machine's.
    script: &'static str,
    /// Each must be said by a program that fails.
    told: &'static [&'static str],
}

/// Calls for as long as it takes; `change` happens meanwhile, and is undone when both programs have ended.
macro_rules! meanwhile {
    ($change:literal, $undo:literal) => {
        concat!(
            r#"./rpc-server --address "rdma://[$gid]/9/73" --running-secs 300 >server.log 2>&1 & server=$!
            await server.log 'rpc server ready'
            ./rpc-client --address "rdma://[$gid]/9/73" --running-secs 300 --thread-count 1 --report-interval 1 \
                >client.log 2>&1 & client=$!
            await client.log 'passed: '
            "#,
            $change,
            r#"
            wait $client; c=$?; wait $server; s=$?
            "#,
            $undo,
            r#"
            sed 's/^/client: /' client.log >&2; sed 's/^/server: /' server.log >&2
            [ $c != 0 ] && [ $s != 0 ] && exit 1"#
        )
    };
}

/// Runs a command as a user without rights.
const NOBODY: &str = "busybox start-stop-daemon -S -c nobody -x /bin/sh -- -c";

pub(super) const REFUSALS: &[Refusal] = &[
    Refusal {
        name: "an address of the wrong form",
        script: "./rpc-client --address rdma://$gid/0/73",
        told: &["is not an address: the GID does not stand in brackets"],
    },
    Refusal {
        name: "a name that nobody serves",
        script: "./rpc-client --address shm://nobody",
        told: &["there is no server shm://nobody; start it first"],
    },
    Refusal {
        name: "a service that nobody serves",
        script: r#"./rpc-client --address "rdma://[$gid]/200/73""#,
        told: &["/200/73"],
    },
    Refusal {
        name: "no right to the device",
        script: r#"chmod 600 /dev/infiniband/*
            ${nobody} "exec ./rpc-client --address 'rdma://[$gid]/9/73'"; code=$?
            chmod 666 /dev/infiniband/*; exit $code"#,
        told: &[
            "ermission denied",
            "run as root, or let this user read and write /dev/infiniband",
        ],
    },
    Refusal {
        name: "no right to lock memory",
        script: r#"chmod 666 /dev/infiniband/*
            ${nobody} "ulimit -l 64; exec ./rpc-server --address 'rdma://[$gid]/9/73'""#,
        told: &[
            "this process may lock 64 KiB (RLIMIT_MEMLOCK)",
            "ulimit -l unlimited",
        ],
    },
    Refusal {
        name: "the port goes down under calls",
        script: meanwhile!("ip link set eth0 down", "ip link set eth0 up"),
        told: &[
            "client: ",
            "has gone down",
            "bring its network interface up",
        ],
    },
    Refusal {
        name: "the device is removed under calls",
        script: meanwhile!("rdma link del rxe0", ""),
        told: &["has been removed", "make it again by `rdma link add`"],
    },
    Refusal {
        name: "no device",
        script: r#"./rpc-client --address "rdma://[$gid]/9/73""#,
        told: &["this machine has no RDMA device"],
    },
];

/// Puts the programs onto the machine.
pub(super) fn prepare(stage: &Stage<'_>, setting: &Setting) -> Result<()> {
    let host = host(stage)?;
    for name in ["rpc-server", "rpc-client"] {
        host.copy_program(&programs::load(&setting.out, name)?, name, limit(stage))?;
    }
    Ok(())
}

/// What is wrong with what was said; nothing, if all is well.
pub(super) fn findings(stage: &Stage<'_>, refusal: &Refusal) -> Result<Vec<Finding>> {
    let host = host(stage)?;
    Ok(match told(stage, host, refusal) {
        Ok(()) => Vec::new(),
        Err(error) => vec![Finding {
            host: host.name.clone(),
            kind: Kind::Program,
            line: format!("{error:#}"),
        }],
    })
}

fn told(stage: &Stage<'_>, host: &Host, refusal: &Refusal) -> Result<()> {
    let script = format!(
        "cd {} || exit 0
        grep -q ^nobody: /etc/passwd || echo nobody:x:65534:65534::/:/bin/sh >>/etc/passwd
        gid=$(cat /sys/class/infiniband/*/ports/1/gids/0 2>/dev/null || echo fe80::1)
        await() {{ i=0; until grep -q \"$2\" \"$1\" || [ $i -ge 100 ]; do i=$((i+1)); busybox usleep 100000; done; }}
        nobody={}
        {}",
        quote(&host.directory.to_string_lossy()),
        quote(NOBODY),
        refusal.script
    );
    let began = Instant::now();
    let finished = host.execute(&script, Vec::new(), limit(stage))?;
    let took = began.elapsed();
    let said = format!("{}{}", finished.stdout, finished.stderr);
    ensure!(!finished.status.success(), "nothing failed: {said}");
    for words in refusal.told {
        ensure!(said.contains(words), "{words:?} was not said: {said}");
    }
    ensure!(
        took < TOLD_WITHIN,
        "it was said after {} s only",
        took.as_secs()
    );
    Ok(())
}

fn host<'s>(stage: &'s Stage<'_>) -> Result<&'s Host> {
    stage.hosts().get(1).context("there is no client")
}

fn limit<'s>(stage: &'s Stage<'_>) -> Limit<'s> {
    Limit {
        timeout: TOLD_WITHIN + Duration::from_secs(30),
        interrupt: Some(stage.interrupt()),
    }
}
