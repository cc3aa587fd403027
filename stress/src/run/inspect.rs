//! Whether a host is fit for a run, found out before anything is loaded on it.

use std::time::Duration;

use anyhow::{bail, Context, Result};

use crate::cluster::shell::Limit;
use crate::cluster::{Host, Role};
use crate::interrupt::Interrupt;
use crate::report::HostInfo;
use crate::settings::Gid;

/// Prints `key=value` lines. Files in /sys say it all, so that a host needs no tools for RDMA.
const SCRIPT: &str = r#"
echo "uid=$(id -u)"
echo "kernel=$(uname -r)"
for word in $(cat /proc/cmdline); do case $word in sl[au]b_debug=*) echo "slub_debug=${word#*=}" ;; esac; done
for module in /sys/module/mitosis /sys/module/mitosis_*; do [ ! -d "$module" ] || echo "loaded=${module##*/}"; done
for port in /sys/class/infiniband/*/ports/*; do
  [ -r "$port/state" ] || continue
  device=${port%/ports/*}
  netdev=$(cat "$port/gid_attrs/ndevs/0" 2>/dev/null)
  mtu=$([ -z "$netdev" ] || cat "/sys/class/net/$netdev/mtu")
  echo "port=${device##*/}|$(cat "$port/state")|$mtu|$(cat "$port"/gids/* 2>/dev/null | tr '\n' ' ')"
done
"#;

/// What a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// As `uname -r` says it.
    pub kernel: String,
    /// The memory debugging that it was booted with, as in `slub_debug=FZP`.
    pub slub_debug: Option<String>,
    /// RDMA ports that can carry traffic.
    pub ports: Vec<Port>,
}

impl Inspected {
    /// What `result.json` says of it and of the `port` that is used.
    pub fn info(&self, host: &Host, port: Option<&Port>) -> HostInfo {
        HostInfo {
            name: host.name.clone(),
            role: host.role,
            kernel: Some(self.kernel.clone()),
            slub_debug: self.slub_debug.clone(),
            device: port.map(|port| port.device.clone()),
            mtu: port.and_then(|port| port.mtu),
        }
    }
}

/// An RDMA port that can carry traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `rxe0`, `mlx5_0`.
    pub device: String,
    /// The path MTU that its network device allows, without headers; `None` for a port of InfiniBand itself.
    pub mtu: Option<u32>,
    /// Its identifiers, zeros left out.
    pub gids: Vec<Gid>,
}

/// Asks `host` what it is, and refuses one that cannot take part.
pub fn inspect(host: &Host, timeout: Duration, interrupt: &Interrupt) -> Result<Inspected> {
    let limit = Limit {
        timeout,
        interrupt: Some(interrupt),
    };
    let answer = host.ask(SCRIPT, limit).map_err(|error| {
        if error
            .downcast_ref::<crate::interrupt::Interrupted>()
            .is_some()
        {
            return error;
        }
        let reason = format!("{error:#}").replace(&format!("{SCRIPT:?}"), "the inspection");
        anyhow::anyhow!(
            "{reason}: can you log in with `{}`, without a password?",
            host.ssh.join(" ")
        )
    })?;
    let inspected = parse(&host.name, &answer)?;
    if inspected.ports.is_empty() {
        bail!(
            "{}: no RDMA port in state ACTIVE: see `rdma link`; soft-RoCE comes with \
             `modprobe rdma_rxe && rdma link add rxe0 type rxe netdev <interface>`",
            host.name
        );
    }
    Ok(inspected)
}

fn parse(name: &str, answer: &str) -> Result<Inspected> {
    let (mut kernel, mut slub_debug) = (None, None);
    let mut ports = Vec::new();
    for line in answer.lines() {
        match line.split_once('=') {
            Some(("uid", "0")) => {}
            Some(("uid", uid)) => bail!(
                "{name}: commands there run as user id {uid}; loading modules takes root: let USER run `sudo -n` \
                 there, or make USER root"
            ),
            Some(("kernel", release)) => kernel = Some(release.trim().to_string()),
            Some(("slub_debug", flags)) => slub_debug = Some(flags.trim().to_string()),
            Some(("loaded", module)) => bail!("{name}: {module} is already loaded: run `make clean`"),
            Some(("port", fields)) => ports.extend(parse_port(fields)),
            _ => {}
        }
    }
    let kernel = kernel
        .filter(|kernel| !kernel.is_empty())
        .with_context(|| format!("{name}: no answer to `uname -r`"))?;
    Ok(Inspected {
        kernel,
        slub_debug,
        ports,
    })
}

fn parse_port(fields: &str) -> Option<Port> {
    let mut fields = fields.split('|');
    let (device, state, mtu, gids) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    if !state.ends_with("ACTIVE") {
        return None;
    }
    let gids = gids
        .split_whitespace()
        .filter_map(|gid| gid.parse().ok())
        .filter(|gid: &Gid| !gid.is_zero())
        .collect();
    let mtu = mtu.trim().parse().ok().and_then(path_mtu);
    Some(Port {
        device: device.to_string(),
        mtu,
        gids,
    })
}

/// The path MTU on an Ethernet link, as the kernel's `iboe_get_mtu` counts it.
fn path_mtu(link_mtu: u32) -> Option<u32> {
    // GRH 40, UDP 8, BTH 12, XRC 4, atomic 28, checksum 4.
    let payload = link_mtu.checked_sub(40 + 8 + 12 + 4 + 28 + 4)?;
    [4096, 2048, 1024, 512, 256]
        .into_iter()
        .find(|&mtu| mtu <= payload)
}

/// The GID that clients are given: the user's, if a port of the parent has it, or the first of its first port.
pub fn parent_gid(hosts: &[Host], inspected: &[Inspected], given: Option<Gid>) -> Result<Gid> {
    let (host, parent) = hosts
        .iter()
        .zip(inspected)
        .find(|(host, _)| host.role == Role::Parent)
        .context("the cluster has no parent host")?;
    let mut gids = parent
        .ports
        .iter()
        .flat_map(|port| port.gids.iter().copied());
    match given {
        None => gids
            .next()
            .with_context(|| format!("{}: its RDMA ports have no GID", host.name)),
        Some(given) if gids.clone().any(|gid| gid == given) => Ok(given),
        Some(given) => {
            let known: Vec<String> = gids.map(|gid| gid.to_string()).collect();
            bail!(
                "PARENT_GID={given}: no active RDMA port of {} has this GID; it has {}",
                host.name,
                known.join(", ")
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: &str = "0000:0000:0000:0000:0000:0000:0000:0000";
    const LOCAL: &str = "fe80:0000:0000:0000:ec0d:9a03:00ca:2f4c";

    #[test]
    fn an_answer_is_read() {
        let answer = format!(
            "uid=0\nkernel=6.12.9-amd64\nslub_debug=FZP\nport=rxe0|4: ACTIVE|4200|{LOCAL} {ZERO} \nport=mlx5_1|1: DOWN|1500|{LOCAL}\n\
             port=mlx5_0|4: ACTIVE||{LOCAL} \n"
        );
        let inspected = parse("val01", &answer).unwrap();
        assert_eq!(inspected.kernel, "6.12.9-amd64");
        assert_eq!(inspected.slub_debug.as_deref(), Some("FZP"));
        assert_eq!(inspected.ports.len(), 2);
        assert_eq!(
            (inspected.ports[0].device.as_str(), inspected.ports[0].mtu),
            ("rxe0", Some(4096))
        );
        assert_eq!(inspected.ports[0].gids, [LOCAL.parse().unwrap()]);
        assert_eq!(inspected.ports[1].mtu, None);
    }

    #[test]
    fn an_unfit_host_is_refused_with_what_to_do() {
        for (answer, want) in [
            (
                "uid=1000\nkernel=6.1\n",
                "val01: commands there run as user id 1000",
            ),
            (
                "uid=0\nkernel=6.1\nloaded=mitosis_rpc_server\n",
                "mitosis_rpc_server is already loaded: run `make clean`",
            ),
            ("uid=0\n", "val01: no answer to `uname -r`"),
        ] {
            let error = parse("val01", answer).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn the_path_mtu_is_the_kernels() {
        for (link, path) in [
            (4200, Some(4096)),
            (1500, Some(1024)),
            (9000, Some(4096)),
            (4191, Some(2048)),
            (80, None),
        ] {
            assert_eq!(path_mtu(link), path, "{link}");
        }
    }

    #[test]
    fn a_gid_that_the_parent_does_not_have_is_refused() {
        let host = Host {
            name: "val01".into(),
            role: Role::Parent,
            address: String::new(),
            ssh: vec![],
            directory: "/".into(),
        };
        let gid: Gid = LOCAL.parse().unwrap();
        let port = Port {
            device: "rxe0".into(),
            mtu: Some(1024),
            gids: vec![gid],
        };
        let inspected = Inspected {
            kernel: "6.1".into(),
            slub_debug: None,
            ports: vec![port],
        };
        let (hosts, inspected) = (&[host], &[inspected]);
        assert_eq!(parent_gid(hosts, inspected, None).unwrap(), gid);
        assert_eq!(parent_gid(hosts, inspected, Some(gid)).unwrap(), gid);
        let error = parent_gid(hosts, inspected, Some("fe80::1".parse().unwrap()))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no active RDMA port of val01 has this GID; it has fe80:"),
            "{error}"
        );
    }
}
