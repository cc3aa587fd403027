//! A third of the datagrams are random bytes of random length; a third are well-formed messages of every kind, naming
//! sessions and requests that may well exist, in which up to four random bits are flipped; a third are inputs of the fuzzer's
//! corpus, changed as a fuzzer changes them ([`super::corpus`]). The same seed makes the same datagrams again, but for the
//! server's epoch: that is what its answers say.

use mitosis_core::session::{RequestId, SessionId};
use mitosis_core::wire::{Connect, Datagram, Message, Part};
use rand_xoshiro::rand_core::{RngCore, SeedableRng};
use rand_xoshiro::Xoshiro256StarStar;

use super::corpus;
use super::draw;
use super::line::Failure;
use crate::cm::Route;
use crate::devices::Devices;
use crate::endpoint::{Endpoint, Outbox, Ticket};
use crate::errno::Errno;
use crate::info;
use crate::memory::Table;
use crate::module::Control;
use crate::thread::{give_way, now_ns};
use crate::verbs::{Completion, Direction, MappedPage, BATCH};

/// Datagrams that are written in one go, and that one completion tells the end of.
const VOLLEY: usize = 16;
/// Volleys under way at a time: one is sent while the next is written.
const VOLLEYS: usize = 2;
/// How long a volley may take to be sent: a machine that hardly gets a processor floods slowly, and still floods.
const PATIENCE_NS: u64 = 20_000_000_000;
/// What the server answers has to go somewhere.
const RECEIVE_BUFFERS: u32 = 64;

/// How much of it.
pub struct Noise {
    /// How many datagrams.
    pub datagrams: u32,
    /// The same makes the same ones.
    pub seed: u32,
}

impl Noise {
    /// Sends it. What is declared first is dropped last.
    pub fn send(
        &self,
        route: &Route,
        devices: &Devices<'_>,
        control: &Control,
    ) -> Result<(), Failure> {
        let kernel = |step| move |errno| Failure::Kernel(step, errno);
        let start_ns = now_ns();
        let mut volleys = Table::try_new(VOLLEYS, |_| {
            let pages =
                Table::try_new(VOLLEY, |_| MappedPage::new(route.pd(), Direction::ToDevice))?;
            Ok((pages, Ticket::default()))
        })
        .map_err(kernel("cannot allocate send buffers"))?;
        let mut endpoint =
            Endpoint::open(route.port(), route.pd(), &control.event, RECEIVE_BUFFERS)
                .map_err(kernel("cannot create a queue pair"))?;
        let destination = route.destination();
        let room = usize::from(endpoint.datagram_len());
        let mut source = Source::new(self.seed);
        let mut all = 0;
        while all < self.datagrams && !control.stop.wanted() && !devices.removed() {
            let turn = all as usize / VOLLEY % VOLLEYS;
            let Some((pages, sent)) = volleys.get_mut(turn) else {
                break;
            };
            await_sent(endpoint.outbox(), *sent, control)?;
            let volley = VOLLEY.min((self.datagrams - all) as usize);
            let mut burst = endpoint.burst(&destination);
            for (at, page) in pages.iter_mut().take(volley).enumerate() {
                let bytes = page.page.bytes_mut();
                let len = source.write(bytes.get_mut(..room).unwrap_or(&mut []));
                *sent = burst
                    .send_page(page, len, at + 1 == volley)
                    .map_err(kernel("cannot send"))?;
                all += 1;
            }
            burst.ring().map_err(kernel("cannot send"))?;
            drop(burst);
            listen(&mut endpoint, &mut source.epoch).map_err(kernel("cannot post receives"))?;
            give_way();
        }
        for (_, sent) in volleys.iter() {
            await_sent(endpoint.outbox(), *sent, control)?;
        }
        info!(
            "flood done: sent ",
            all,
            ", mutated ",
            source.mutations,
            ", from corpus ",
            source.from_corpus,
            ", elapsed_us ",
            (now_ns() - start_ns) / 1_000
        );
        Ok(())
    }
}

/// Sleeps until a volley is sent.
fn await_sent(outbox: &mut Outbox<'_>, sent: Ticket, control: &Control) -> Result<(), Failure> {
    let start_ns = now_ns();
    loop {
        // The clock before the look: a machine that stood still in between is looked at once more.
        let passed_ns = now_ns().saturating_sub(start_ns);
        if outbox.is_sent(sent) {
            return Ok(());
        }
        if control.stop.wanted() {
            return Err(Failure::Stopped);
        }
        let step = "a send does not complete";
        let left_ns = PATIENCE_NS.checked_sub(passed_ns);
        outbox.sleep(left_ns.ok_or(Failure::Kernel(step, Errno::TIMED_OUT))?);
    }
}

/// Writes datagrams, and counts those that are not noise.
struct Source {
    random: Xoshiro256StarStar,
    /// The server's, once it has said it.
    epoch: u32,
    mutations: u32,
    from_corpus: u32,
}

impl Source {
    fn new(seed: u32) -> Source {
        let mut random = Xoshiro256StarStar::seed_from_u64(u64::from(seed));
        Source {
            epoch: random.next_u32(),
            random,
            mutations: 0,
            from_corpus: 0,
        }
    }

    /// The next one. Returns its length.
    fn write(&mut self, bytes: &mut [u8]) -> usize {
        match self.random.next_u32() % 3 {
            0 => draw::bytes(&mut self.random, bytes),
            1 => {
                self.mutations += 1;
                mutate(&mut self.random, bytes, self.epoch)
            }
            _ => {
                self.from_corpus += 1;
                corpus::mutate(&mut self.random, bytes, self.epoch)
            }
        }
    }
}

/// A well-formed message with up to four bits flipped.
fn mutate(random: &mut Xoshiro256StarStar, bytes: &mut [u8], epoch: u32) -> usize {
    let session = draw::session(random, epoch);
    let request = RequestId(u64::from(random.next_u32() % 100_000));
    let (session, request, message) = match random.next_u32() % 6 {
        0 => {
            let connect = Connect {
                client_key: random.next_u64(),
                client_nonce: random.next_u64(),
                // Too short to be granted, so that the flood takes no sessions: that is another test.
                datagram_len: (random.next_u32() % 256) as u16,
                slots: 1,
                credits: 1,
                max_message_len: 0,
                tag: None,
            };
            (SessionId::NONE, RequestId(0), Message::Connect(connect))
        }
        1 => (session, RequestId(0), Message::Disconnect),
        2 => (session, RequestId(0), Message::Ping),
        3 => {
            // A part of a long message, of which the other parts never come.
            let len = (random.next_u32() as usize % 1_000) as u32;
            let part = Part {
                message_len: len.saturating_add(random.next_u32() % 9_000_000),
                offset: 0,
                payload: &[],
            };
            let rpc_id = random.next_u32();
            (session, request, Message::Request { rpc_id, part })
        }
        _ => (
            session,
            request,
            Message::Request {
                rpc_id: random.next_u32(),
                part: Part::whole(&[]),
            },
        ),
    };
    let datagram = Datagram {
        session,
        request,
        slot: 0,
        message,
    };
    let len = datagram.emit(bytes).unwrap_or(0);
    draw::flip(random, bytes, len);
    len
}

/// Takes in the server's answers. Those to a Connect say its epoch, which any client learns.
fn listen(endpoint: &mut Endpoint<'_>, epoch: &mut u32) -> Result<(), Errno> {
    let mut completions = [Completion::default(); BATCH];
    for completion in endpoint.poll(&mut completions) {
        let received = endpoint.received(completion);
        let answer = received.and_then(|received| Datagram::parse(received.datagram).ok());
        if let Some(Datagram {
            session,
            message: Message::Accept(_),
            ..
        }) = answer
        {
            *epoch = session.epoch;
        }
        endpoint.give_back(completion.wr_id)?;
    }
    endpoint.flush()
}
