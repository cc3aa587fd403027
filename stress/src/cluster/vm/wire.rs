//! A machine's wire, as a switch sees it: every frame that goes to the machine or comes from it, and a way to put one on it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{
    bind, recv, send, setsockopt, socket, sockopt, AddressFamily, MsgFlags, SockFlag, SockProtocol,
    SockType,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::network;

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(100);
/// Frames that may wait to be read. The kernel counts a few times their length.
const BACKLOG_BYTES: usize = 8 << 20;
/// The longest frame.
const FRAME_LEN: usize = network::MTU as usize + 64;

/// A machine's wire.
pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// The wire of machine `number`, heard from now on.
    pub(super) fn of(number: usize) -> Result<Self> {
        let tap = network::tap(number);
        let mut links = getifaddrs().context("cannot list network interfaces")?;
        let address = links
            .find_map(|link| {
                let named = link.interface_name == tap;
                named
                    .then(|| link.address?.as_link_addr().copied())
                    .flatten()
            })
            .with_context(|| format!("there is no {tap}"))?;
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )
        .context("cannot open a packet socket")?;
        bind(socket.as_raw_fd(), &address).with_context(|| format!("cannot listen at {tap}"))?;
        let tick = TimeVal::milliseconds(TICK.as_millis() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &tick).context("cannot set a timeout")?;
        // Root may exceed the system's limit; whoever may not has its default.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &BACKLOG_BYTES);
        Ok(Self { socket })
    }

    /// Hears frames until `heed` makes something of one; `None` at the deadline. Both directions are heard.
    pub fn hear<T>(
        &self,
        deadline: Instant,
        mut heed: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>> {
        let mut frame = [0; FRAME_LEN];
        while Instant::now() < deadline {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(len) => {
                    if let Some(heeded) = heed(&frame[..len]) {
                        return Ok(Some(heeded));
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno).context("cannot hear the wire"),
            }
        }
        Ok(None)
    }

    /// Puts a frame on the wire, for the machine to receive.
    pub fn put(&self, frame: &[u8]) -> Result<()> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .context("cannot put a frame on the wire")?;
        Ok(())
    }
}
