//! What the endpoints ask of a carrier of datagrams.
//!
//! A fabric is a queue pair in the manner of UD: datagrams come in from many peers and go out to any of them, each whole
//! or not at all, and any of them may be lost. What is lost is sent again by the core; so a fabric never waits for room,
//! and never repeats.
//!
//! One thread has a fabric and drives it like this:
//!
//! 1. [`Fabric::receive`] until it yields nothing or a batch is full; what it yields is answered by [`Fabric::send`];
//! 2. [`Fabric::flush`], once for the batch;
//! 3. [`Fabric::poll_gone`] until it yields nothing, if nothing was received;
//! 4. if nothing was received for a while, [`Fabric::wait`]; then again from 1.

mod error;
mod waker;

use std::time::Duration;

pub use error::{FabricError, FabricErrorKind};
pub use mitosis_core::session::PeerId;
pub use waker::Waker;

use mitosis_core::wire::Words;
use zerocopy::IntoBytes;

/// A datagram that arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'f> {
    /// From whom, as far as the fabric can tell.
    pub from: PeerId,
    /// Its bytes. Nothing outside this process writes to them while they are borrowed: they have been copied, or the device
    /// has given the buffer away.
    pub datagram: &'f [u8],
}

/// A carrier of datagrams. The module's front comment gives the order of calls.
///
/// # Peers
///
/// A [`PeerId`] is a small number that the fabric gives to an address from which a datagram came, or to which it was told to
/// connect: tables may be indexed by it. It names that address and no other
/// - until the next call to [`Fabric::receive`], and beyond that
/// - as long as it has been retained more often than released ([`Fabric::retain`]), whatever becomes of the peer.
///
/// Afterwards the fabric may forget the address and give the number to another. The peer that a client connects to is
/// never forgotten.
pub trait Fabric: Send {
    /// The longest datagram that the path carries, in bytes, our header included; 256 to 4096.
    fn datagram_len(&self) -> u16;

    /// How many datagrams of all peers together can have arrived and not been received before others are lost: the receive
    /// buffers, which a server shares out as credits.
    fn receive_buffers(&self) -> u32;

    /// How many of them one peer can take up, with datagrams of `datagram_len` bytes: the most credits that are of use to one
    /// session whose datagrams are no longer. At least 1.
    fn peer_buffers(&self, datagram_len: usize) -> u16;

    /// How many peers there can be at once. Those that come when there are as many are not heard.
    fn peers(&self) -> u32;

    /// The next datagram that has arrived, in the order of arrival as far as one peer is concerned. It is valid, and its
    /// buffer taken, until the next call; buffers go back to the device by the batch, at [`Fabric::flush`] at the latest.
    /// Never sleeps, and turns to each peer in time however much others send.
    ///
    /// # Errors
    ///
    /// Only what ends the fabric: the device is gone, its port is down, the queue is broken. Nothing that a peer can do.
    fn receive(&mut self) -> Result<Option<Arrival<'_>>, FabricError>;

    /// What [`Fabric::receive`] has just yielded, once more; empty if it yielded nothing, or [`Fabric::flush`] was called since.
    fn received(&self) -> &[u8];

    /// Queues a datagram of `header` and, after it, `payload`: together no more than [`Fabric::datagram_len`]. Both may be
    /// written again at once. It leaves at [`Fabric::flush`] at the latest.
    ///
    /// If there is no room for it at the other end, or the peer is gone or unknown, it is dropped: that is what networks do.
    ///
    /// # Errors
    ///
    /// What ends the fabric, as with [`Fabric::receive`].
    fn send(&mut self, to: PeerId, header: &[u8], payload: &[u8]) -> Result<(), FabricError>;

    /// [`Fabric::send`] with a header of these words.
    fn send_words(&mut self, to: PeerId, header: Words, payload: &[u8]) -> Result<(), FabricError> {
        self.send(to, header.as_bytes(), payload)
    }

    /// Of what is sent next, so many datagrams may be held back and leave together, at [`Fabric::flush`] at the latest: others
    /// follow soon, and their receiver has enough to do without them. At first none.
    fn may_wait(&mut self, _most: u32) {}

    /// Lets everything that was queued leave, gives received buffers back, and wakes who sleeps: the doorbell, rung once for
    /// a batch.
    fn flush(&mut self) -> Result<(), FabricError>;

    /// Sleeps until a datagram arrives, a peer is gone, the [`Waker`] is used or `timeout` is over (`None`: no limit). Does
    /// not sleep if any of that has happened since the calls that yielded nothing. May return early for no reason.
    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), FabricError>;

    /// What ends this fabric's waits from any thread.
    fn waker(&self) -> Waker;

    /// The next peer that is known to be gone for good, each once: its process has died, or it has closed its end. What it had
    /// sent before has been received by then. A fabric that cannot know, yields none.
    fn poll_gone(&mut self) -> Option<PeerId> {
        None
    }

    /// Keeps the meaning of a peer's number once more: a session with it has been opened.
    fn retain(&mut self, peer: PeerId);

    /// Takes back one [`Fabric::retain`].
    fn release(&mut self, peer: PeerId);

    /// How many datagrams were dropped by [`Fabric::send`] for want of room.
    fn dropped(&self) -> u64;
}
