//! The cluster's network: one tap per machine on a bridge, in the network namespace that the program is alone in.

use std::fs::{self, File};
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{bail, Context, Result};

/// Headers of IP, UDP and RoCE, and what is left over.
const HEADERS_LEN: u32 = 104;
/// IPv6 takes no link with less.
const LEAST_LINK_MTU: u32 = 1280;
/// Of the longest RDMA path MTU, 4096.
pub(super) const LONGEST_LINK_MTU: u32 = 4096 + HEADERS_LEN;

/// The MTU of a link whose RDMA path MTU is `mtu`.
pub(super) fn link_mtu(mtu: u32) -> u32 {
    (mtu + HEADERS_LEN).clamp(LEAST_LINK_MTU, LONGEST_LINK_MTU)
}

/// Machines are numbered from 1; 254 is this side of the bridge.
pub(super) const MAX_MACHINES: usize = 253;

/// The IPv4 address of machine `n`.
pub(super) fn address(n: usize) -> String {
    format!("10.73.0.{n}")
}

/// The MAC address of machine `n`; its GID follows from it.
pub(super) fn mac(n: usize) -> String {
    format!("52:54:00:49:00:{n:02x}")
}

/// The name of the tap of machine `n`.
pub(super) fn tap(n: usize) -> String {
    format!("tap{n}")
}

/// Makes the bridge and the taps of machines `1..=machines`, of links with this MTU.
pub(super) fn create(machines: usize, link_mtu: u32) -> Result<()> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun, which the machines' network needs: run as root, or chmod 666 it")?;
    // These machines are to have the wire for themselves: no router advertisements or reports from this side. Where the
    // kernel has no IPv6 there is nothing to turn off.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let mut batch = format!(
        "link set lo up\n\
         link add br0 type bridge forward_delay 0 mcast_snooping 0\n\
         link set br0 mtu {link_mtu} up\n\
         address add 10.73.0.254/24 dev br0\n"
    );
    for n in 1..=machines {
        let tap = tap(n);
        batch += &format!(
            "tuntap add {tap} mode tap vnet_hdr\nlink set {tap} mtu {link_mtu} master br0 up\n"
        );
    }
    ip(&batch)
}

/// Takes the wire between machine `n` and all others that are cut off away, or puts it back. This side reaches each, and
/// each this side.
pub(super) fn cut_off(n: usize, cut: bool) -> Result<()> {
    let isolated = if cut { "on" } else { "off" };
    ip(&format!(
        "link set {} type bridge_slave isolated {isolated}\n",
        tap(n)
    ))
}

fn ip(batch: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip; install iproute2")?;
    ip.stdin
        .take()
        .context("ip has no stdin")?
        .write_all(batch.as_bytes())
        .context("cannot instruct ip")?;
    let output = ip.wait_with_output().context("cannot wait for ip")?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!(
            "cannot make the cluster's network: {}",
            complaint.trim().replace('\n', "; ")
        );
    }
    Ok(())
}
