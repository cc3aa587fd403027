//! Clients that the server must refuse, and the reasons that both sides log.
//!
//! The handshake that is repeated is a real client's, overheard on the server's wire. It is sent again in the two ways that
//! there are: from another queue pair, as any user of the network could, and as the very frames, sender's address and all,
//! as only the owner of a switch or a router could.

use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use mitosis_core::session::SessionId;
use mitosis_core::wire::{Datagram, ErrorCode, Message};

use super::{Faults, Row, FLOOD, HONEST, SERVER};
use crate::build;
use crate::cluster::vm::{self, Wire};
use crate::klog::watch::{Patience, Watch};
use crate::scene::{await_line, run_to_end, watched, STEP};
use crate::stage::Setting;

pub(super) const OLD_VERSION: &str = "a client of an old version";
pub(super) const REPLAY: &str = "a handshake that was overheard, repeated";
/// Needs modules that verify checksums.
pub(super) const DAMAGED: &str = "a client whose requests are damaged";

/// How many of them.
const DAMAGED_REQUESTS: u64 = 2_000;
/// Most lines that the server may say about them: the first at once, and then at intervals that double.
const MOST_LINES: usize = 10;
const KEY: &str = "cluster_key=000102030405060708090a0b0c0d0e0f";
/// The honest client is unloaded when it has served its purpose.
const CLIENT_RUNNING_SECS: u64 = 3_600;
/// Between two attempts to be heard.
const REPEAT: Duration = Duration::from_millis(500);

/// Where modules that verify checksums are, apart from those that the run is about.
fn checked_out(setting: &Setting) -> std::path::PathBuf {
    setting.directory().join("checked")
}

/// Builds them. Only outside the machines' namespace: compilers may want the network.
pub(super) fn build_checked(setting: &Setting) -> Result<()> {
    if vm::inside_namespace() {
        return Ok(());
    }
    let template = std::path::Path::new("templates-build/template-build-rpc-checksum.toml");
    let kernels = build::kernels(&setting.settings)?;
    build::update(
        template,
        setting.template.first_module(),
        &kernels,
        &setting.settings,
        &checked_out(setting),
    )
}

impl Faults<'_> {
    pub(super) fn old_version(&self, row: &mut Row) -> Result<()> {
        let stranger = self.stranger();
        self.bring(stranger, FLOOD)?;
        watched(self.stage, self.stage.hosts(), None, |watch| {
            self.load_server(watch)?;
            self.enter(watch, "play=old-version")?;
            self.both_tell(
                watch,
                row,
                "old version: the server refused a session: version not spoken",
                "refused a client: it speaks another version",
            )?;
            self.leave(watch)?;
            self.unload_server(watch)?;
            self.nothing_executed(watch, row)
        })
    }

    pub(super) fn replay(&self, row: &mut Row) -> Result<()> {
        let stranger = self.stranger();
        self.bring(stranger, FLOOD)?;
        watched(self.stage, self.stage.hosts(), None, |watch| {
            self.load_server_with(watch, KEY)?;
            let wire = self.stage.wire(&self.host(SERVER).name)?;
            let changes = [
                ("client_running_secs", CLIENT_RUNNING_SECS),
                ("thread_count", 1),
            ];
            self.load_with(watch, HONEST, &changes, KEY)?;
            let overheard = Overheard::listen(&wire)?;

            let handshake = format!(
                "play=replay connect={} confirm={}",
                hex(&overheard.connect.datagram),
                hex(&overheard.confirm.datagram)
            );
            self.enter(watch, &handshake)?;
            self.both_tell(
                watch,
                row,
                "replay: the Confirm made to fit: refused: not authorised: the handshake is a replay",
                "refused a client: its handshake is a replay",
            )?;
            self.leave(watch)?;
            // The client whose handshake it was goes on.
            self.await_work(watch, HONEST..HONEST + 1, 1)?;
            self.unload(watch, HONEST)?;
            await_line(watch, HONEST, "krdma test framework dropped")?;

            overheard.put_again(&wire)?;
            row.scenario.told.push(
                "the very frames again, after the client's end: a half-open session, then no such session, twice"
                    .into(),
            );
            self.unload_server(watch)?;
            row.account(&watch.logs[SERVER], watch.logs[HONEST..=HONEST].iter())?;
            ensure!(
                (row.requests..=row.requests + 1).contains(&row.executed),
                "the server executed {} requests, the client counts {}",
                row.executed,
                row.requests
            );
            Ok(())
        })
    }

    pub(super) fn damaged(&self, row: &mut Row) -> Result<()> {
        let out = checked_out(self.setting);
        let (stranger, server) = (self.stranger(), self.module_of(SERVER)?.0);
        self.bring_from(&out, SERVER, server)?;
        self.bring_from(&out, stranger, FLOOD)?;
        let said = "checksum mismatch in a request";
        let outcome = watched(self.stage, self.stage.hosts(), Some(said), |watch| {
            self.load_server(watch)?;
            let rpc_id = self.parameter("test_rpc_id")?;
            self.enter(
                watch,
                &format!("play=damaged datagrams={DAMAGED_REQUESTS} test_rpc_id={rpc_id}"),
            )?;
            let done =
                format!("damaged requests: sent {DAMAGED_REQUESTS}, failed {DAMAGED_REQUESTS}");
            // The server's lines are what is wanted, and no reason to stop waiting.
            watch.wait(STEP, Patience::Stubborn, |watch| {
                watch.logs[stranger].said(&done)
            })?;
            ensure!(
                watch.logs[stranger].said(&done),
                "the stranger did not say {done:?}"
            );
            self.leave(watch)?;
            self.unload(watch, SERVER)?;
            watch.wait(STEP, Patience::Stubborn, |watch| {
                !watch.logs[SERVER].stopped.is_empty()
            })?;
            let lines: Vec<&str> = watch.logs[SERVER]
                .lines
                .iter()
                .map(|line| line.text.as_str())
                .filter(|line| line.contains("[ERROR]"))
                .collect();
            let name = &self.host(SERVER).name;
            let first = lines.iter().take(MOST_LINES);
            row.scenario
                .told
                .extend(first.map(|line| format!("{name}: {line}")));
            ensure!(
                (1..=MOST_LINES).contains(&lines.len())
                    && lines.iter().all(|line| line.contains(said)),
                "the server says {} lines that are errors, and not only {said:?}",
                lines.len()
            );
            let stopped = watch.logs[SERVER].stopped.last();
            let stopped = stopped.context("the server did not report its figures")?;
            row.add_stopped(stopped);
            ensure!(
                stopped.errors == DAMAGED_REQUESTS && stopped.requests == DAMAGED_REQUESTS,
                "of {DAMAGED_REQUESTS} damaged requests the server executed {}, and counts {} errors",
                stopped.requests,
                stopped.errors
            );
            Ok(())
        });
        // What the other scenarios load.
        self.equip(SERVER)?;
        outcome
    }

    /// The host that strangers are on.
    pub(super) fn stranger(&self) -> usize {
        self.clients().end - 1
    }

    fn parameter(&self, name: &str) -> Result<&u64> {
        let value = self.setting.parameters.get(name);
        value.with_context(|| format!("{}: no {name}", self.setting.template.path.display()))
    }

    /// Lets the stranger in.
    pub(super) fn enter(&self, watch: &mut Watch<'_>, arguments: &str) -> Result<()> {
        let arguments = format!(
            "gid={} server_service_id={} server_qd_hint={} {arguments}",
            self.gid,
            self.parameter("server_service_id")?,
            self.parameter("server_qd_hint")?
        );
        self.insert(watch, self.stranger(), FLOOD, &arguments)
    }

    /// Lets it go.
    pub(super) fn leave(&self, watch: &mut Watch<'_>) -> Result<()> {
        run_to_end(watch, self.stranger(), &format!("rmmod {FLOOD}"), STEP)
    }

    fn both_tell(
        &self,
        watch: &mut Watch<'_>,
        row: &mut Row,
        client: &str,
        server: &str,
    ) -> Result<()> {
        for (host, text) in [(self.stranger(), client), (SERVER, server)] {
            await_line(watch, host, text)?;
            let log = &watch.logs[host];
            let lines = log.lines.iter().filter(|line| line.text.contains(text));
            row.scenario
                .told
                .extend(lines.map(|line| format!("{}: {}", log.name, line.text)));
        }
        Ok(())
    }

    fn nothing_executed(&self, watch: &Watch<'_>, row: &mut Row) -> Result<()> {
        row.account(&watch.logs[SERVER], std::iter::empty())?;
        ensure!(
            row.executed == 0,
            "the server executed {} requests",
            row.executed
        );
        ensure!(row.rejected > 0, "the server rejected nothing");
        Ok(())
    }
}

/// A frame with a datagram of the RPC in it.
#[derive(Clone)]
struct Heard {
    frame: Vec<u8>,
    datagram: Vec<u8>,
}

/// What a client said to its server, from its first word on.
struct Overheard {
    connect: Heard,
    confirm: Heard,
    request: Heard,
}

impl Overheard {
    fn listen(wire: &Wire) -> Result<Self> {
        let deadline = Instant::now() + STEP;
        let next = |what: &str, fits: fn(&Message<'_>) -> bool| {
            let heard = wire.hear(deadline, |frame| {
                let datagram = datagram_of(frame)?;
                let parsed = Datagram::parse(datagram).ok()?;
                fits(&parsed.message).then(|| Heard {
                    frame: frame.to_vec(),
                    datagram: datagram.to_vec(),
                })
            })?;
            heard.with_context(|| format!("no {what} was to be heard on the server's wire"))
        };
        Ok(Self {
            connect: next(
                "Connect",
                |message| matches!(message, Message::Connect(connect) if connect.tag.is_some()),
            )?,
            confirm: next("Confirm", |message| matches!(message, Message::Confirm(_)))?,
            request: next("Request", |message| {
                matches!(message, Message::Request { .. })
            })?,
        })
    }

    /// Puts the very frames on the wire again. The server takes them for the client's, and answers it.
    fn put_again(&self, wire: &Wire) -> Result<()> {
        let session = |heard: &Heard| -> Result<SessionId> {
            let parsed = Datagram::parse(&heard.datagram).map(|datagram| datagram.session);
            parsed.map_err(|malformed| anyhow::anyhow!("{malformed}"))
        };
        let old = session(&self.confirm)?;
        answered(wire, &self.connect, "Accept", |datagram| {
            matches!(datagram.message, Message::Accept(_)) && datagram.session != old
        })?;
        for heard in [&self.confirm, &self.request] {
            answered(wire, heard, "NoSuchSession", |datagram| {
                let code = match datagram.message {
                    Message::Error(refusal) => Some(refusal.code),
                    _ => None,
                };
                code == Some(ErrorCode::NoSuchSession) && datagram.session == old
            })?;
        }
        Ok(())
    }
}

/// Puts a frame on the wire until the server's answer to it is heard there.
fn answered(
    wire: &Wire,
    heard: &Heard,
    what: &str,
    fits: impl Fn(&Datagram<'_>) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + STEP;
    while Instant::now() < deadline {
        wire.put(&heard.frame)?;
        let answer = wire.hear(Instant::now() + REPEAT, |frame| {
            Datagram::parse(datagram_of(frame)?)
                .ok()
                .filter(&fits)
                .map(drop)
        })?;
        if answer.is_some() {
            return Ok(());
        }
    }
    anyhow::bail!("the server does not answer a repeated frame with {what}")
}

/// The datagram of the RPC in a frame: behind the headers of Ethernet, IP (version 6 or 4), UDP at RoCE's port, and RoCE's
/// own for a datagram's only part; before its checksum of 4 bytes.
fn datagram_of(frame: &[u8]) -> Option<&[u8]> {
    const ROCE_PORT: [u8; 2] = 4791u16.to_be_bytes();
    const SEND_ONLY: u8 = 0x64;
    let ip = frame.get(14..)?;
    let udp = match (frame.get(12..14)?, ip.first()? >> 4) {
        ([0x86, 0xdd], 6) if ip.get(6) == Some(&17) => ip.get(40..)?,
        ([0x08, 0x00], 4) if ip.get(9) == Some(&17) => ip.get(usize::from(ip[0] & 15) * 4..)?,
        _ => return None,
    };
    let len = usize::from(u16::from_be_bytes(*udp.get(4..6)?.first_chunk()?));
    let (port, roce) = (udp.get(2..4)?, udp.get(8..len)?);
    if port != ROCE_PORT || roce.first() != Some(&SEND_ONLY) {
        return None;
    }
    let padding = usize::from(roce.get(1)? >> 4 & 3);
    roce.get(12 + 8..roce.len().checked_sub(4 + padding)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with `datagram` in it, as rxe makes it.
    fn frame(datagram: &[u8], port: u16) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64]);
        frame.extend([0; 32]);
        let padding = datagram.len().wrapping_neg() % 4;
        let udp_len = (8 + 12 + 8 + datagram.len() + padding + 4) as u16;
        frame.extend([0xc0, 0]);
        frame.extend(port.to_be_bytes());
        frame.extend(udp_len.to_be_bytes());
        frame.extend([0, 0, 0x64, (padding as u8) << 4]);
        frame.extend([0; 10 + 8]);
        frame.extend(datagram);
        frame.extend(vec![0; padding + 4]);
        frame
    }

    #[test]
    fn a_datagram_is_found_in_its_frame_and_nowhere_else() {
        for datagram in [&b"four"[..], b"and padding"] {
            let good = frame(datagram, 4791);
            assert_eq!(datagram_of(&good), Some(datagram));
            for len in 0..good.len() {
                // The UDP length is beyond the frame, or there is none.
                assert_eq!(datagram_of(&good[..len]), None);
            }
        }
        assert_eq!(datagram_of(&frame(b"four", 4792)), None);
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }
}
