//! A whole datagram: the header and what its kind makes of the payload (wire.md §4 to §6).

use super::{accept, confirm, connect, error, header, MAX_FETCH, MAX_MESSAGE};
use super::{
    Accept, BufferTooSmall, Confirm, Connect, Header, Kind, Malformed, Refusal, HEADER_LEN,
};
use crate::session::{RequestId, SessionId};

/// A datagram that is well-formed in every respect that its bytes can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'d> {
    /// The session that it belongs to; [`SessionId::NONE`] in a Connect and in the Error that
    /// refuses one.
    pub session: SessionId,
    /// The request that it belongs to; 0 where there is none.
    pub request: RequestId,
    /// The slot that the request is in; 0 where there is none.
    pub slot: u16,
    /// What it says.
    pub message: Message<'d>,
}

/// A part of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part<'d> {
    /// Length of the whole message in bytes.
    pub message_len: u32,
    /// Where the part lies in it, in bytes.
    pub offset: u32,
    /// The part's bytes, which end in the message.
    pub payload: &'d [u8],
}

impl<'d> Part<'d> {
    /// A message that is a single part.
    pub const fn whole(payload: &'d [u8]) -> Self {
        Self {
            message_len: payload.len() as u32,
            offset: 0,
            payload,
        }
    }

    /// The part that the header of a Request or a Reply describes, from the two halves that
    /// [`Header::parse`] returned (wire.md §2.2).
    #[inline]
    pub fn of(header: &Header, payload: &'d [u8]) -> Result<Self, Malformed> {
        same_len(header, payload)?;
        call_fields(header)?;
        let (message_len, offset) = (header.message_len_bytes, header.offset_bytes);
        let payload_len = u32::from(header.payload_len_bytes);
        if payload_len != message_len || offset != 0 {
            if message_len > MAX_MESSAGE {
                return Err(Malformed::TooLong { message_len });
            }
            let end = offset.checked_add(payload_len);
            if payload_len == 0 || end.is_none_or(|end| end > message_len) {
                return Err(no_part(header));
            }
        }
        Ok(Self {
            message_len,
            offset,
            payload,
        })
    }

    /// Length of the part in bytes.
    #[inline]
    pub(crate) const fn payload_len(&self) -> u32 {
        self.payload.len() as u32
    }
}

/// How long the part at `offset` of a message is, where a full part is `limit` bytes long.
#[inline(always)]
pub(crate) const fn part_len(message_len: u32, offset: u32, limit: u32) -> u32 {
    let rest = message_len.saturating_sub(offset);
    if rest < limit {
        rest
    } else {
        limit
    }
}

/// What a datagram says, with its payload left where it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'d> {
    /// The client asks for a session.
    Connect(Connect),
    /// The server grants it.
    Accept(Accept),
    /// The client has learnt of it.
    Confirm(Confirm),
    /// A call.
    Request {
        /// Which handler is called.
        rpc_id: u32,
        /// What it is given.
        part: Part<'d>,
    },
    /// The result of a call.
    Reply(Part<'d>),
    /// Why there is no result, or no session.
    Error(Refusal),
    /// The client ends the session.
    Disconnect,
    /// The client shows that it lives.
    Ping,
    /// The server shows that it does.
    Pong,
    /// A part of a Request, not the last, has arrived.
    CreditReturn {
        /// Length of the request in bytes.
        message_len: u32,
        /// Where the part ended: everything before has arrived.
        offset: u32,
    },
    /// The client wants parts of a Reply, but not the first.
    Fetch {
        /// Length of the reply in bytes.
        message_len: u32,
        /// Where the first of them begins.
        offset: u32,
        /// How many, one after another: 1 to [`MAX_FETCH`]. Fewer come if the reply ends before.
        parts: u32,
    },
}

impl<'d> Message<'d> {
    /// Its kind in the header.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Connect(_) => Kind::Connect,
            Self::Accept(_) => Kind::Accept,
            Self::Confirm(_) => Kind::Confirm,
            Self::Request { .. } => Kind::Request,
            Self::Reply(_) => Kind::Reply,
            Self::Error(_) => Kind::Error,
            Self::Disconnect => Kind::Disconnect,
            Self::Ping => Kind::Ping,
            Self::Pong => Kind::Pong,
            Self::CreditReturn { .. } => Kind::CreditReturn,
            Self::Fetch { .. } => Kind::Fetch,
        }
    }

    /// Length of its payload in bytes.
    pub const fn payload_len(&self) -> usize {
        match self {
            Self::Connect(_) => connect::LEN,
            Self::Accept(_) => accept::LEN,
            Self::Confirm(_) => confirm::LEN,
            Self::Request { part, .. } | Self::Reply(part) => part.payload.len(),
            Self::Error(_) => error::LEN,
            Self::Disconnect
            | Self::Ping
            | Self::Pong
            | Self::CreditReturn { .. }
            | Self::Fetch { .. } => 0,
        }
    }
}

impl<'d> Datagram<'d> {
    /// Parses and checks a whole datagram: `datagram` is what was received, not one byte more.
    pub fn parse(datagram: &'d [u8]) -> Result<Self, Malformed> {
        let (header, payload) = Header::parse(datagram)?;
        Self::from_header(&header, payload)
    }

    /// As [`Datagram::parse`], from the two halves that [`Header::parse`] returned.
    #[inline]
    pub fn from_header(header: &Header, payload: &'d [u8]) -> Result<Self, Malformed> {
        same_len(header, payload)?;
        let message = match header.kind {
            Kind::Request => Message::Request {
                rpc_id: header.code,
                part: Part::of(header, payload)?,
            },
            Kind::Reply => {
                no_code(header)?;
                Message::Reply(Part::of(header, payload)?)
            }
            _ => Self::control(header, payload)?,
        };
        Ok(Self {
            session: header.session,
            request: header.request,
            slot: header.slot,
            message,
        })
    }

    /// What is no part of a message.
    fn control(header: &Header, payload: &'d [u8]) -> Result<Message<'d>, Malformed> {
        match header.kind {
            Kind::Error => {}
            Kind::Fetch => fetch_code(header)?,
            _ => no_code(header)?,
        }
        match header.kind {
            Kind::CreditReturn | Kind::Fetch => {
                call_fields(header)?;
                let (message_len, offset) = (header.message_len_bytes, header.offset_bytes);
                if message_len > MAX_MESSAGE {
                    return Err(Malformed::TooLong { message_len });
                }
                if offset == 0 || offset >= message_len || !payload.is_empty() {
                    return Err(no_part(header));
                }
                return Ok(match header.kind {
                    Kind::Fetch => Message::Fetch {
                        message_len,
                        offset,
                        parts: header.code,
                    },
                    _ => Message::CreditReturn {
                        message_len,
                        offset,
                    },
                });
            }
            _ => {}
        }
        if header.offset_bytes != 0
            || header.message_len_bytes != u32::from(header.payload_len_bytes)
        {
            return Err(no_part(header));
        }
        if header.slot != 0 && header.kind != Kind::Error {
            return Err(Malformed::Field {
                what: "slot",
                found: u64::from(header.slot),
            });
        }
        Ok(match header.kind {
            Kind::Connect => {
                if header.session != SessionId::NONE {
                    let found = u64::from(
                        header.session.index | header.session.generation | header.session.epoch,
                    );
                    return Err(Malformed::Field {
                        what: "session of a connect",
                        found,
                    });
                }
                no_request(header)?;
                Message::Connect(Connect::parse(payload)?)
            }
            Kind::Accept => {
                names_session(header)?;
                no_request(header)?;
                Message::Accept(Accept::parse(payload)?)
            }
            Kind::Error => Message::Error(Refusal::parse(header.code, payload)?),
            Kind::Confirm => {
                names_session(header)?;
                no_request(header)?;
                Message::Confirm(Confirm::parse(payload)?)
            }
            Kind::Disconnect => {
                bare(header)?;
                no_request(header)?;
                Message::Disconnect
            }
            Kind::Ping => {
                bare(header)?;
                Message::Ping
            }
            Kind::Pong => {
                bare(header)?;
                Message::Pong
            }
            // Taken above.
            Kind::Request | Kind::Reply | Kind::CreditReturn | Kind::Fetch => {
                return Err(Malformed::Kind {
                    found: header.kind as u8,
                })
            }
        })
    }

    /// Length of the datagram in bytes, header included.
    pub const fn len(&self) -> usize {
        HEADER_LEN.saturating_add(self.message.payload_len())
    }

    /// A datagram always has a header.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes the datagram to the start of `out` and returns its length in bytes.
    pub fn emit(&self, out: &mut [u8]) -> Result<usize, BufferTooSmall> {
        let too_small = BufferTooSmall {
            need: self.len(),
            have: out.len(),
        };
        let payload_len = u16::try_from(self.message.payload_len()).map_err(|_| too_small)?;
        let (head, rest) = out.split_at_mut_checked(header::LEN).ok_or(too_small)?;
        let body = rest.get_mut(..usize::from(payload_len)).ok_or(too_small)?;
        let kind = self.message.kind();
        let mut header = Header::of(kind, self.session, self.request, 0, payload_len);
        header.slot = self.slot;
        match &self.message {
            Message::Connect(connect) => connect.emit(body)?,
            Message::Accept(accept) => accept.emit(body)?,
            Message::Confirm(confirm) => confirm.emit(body)?,
            Message::Error(refusal) => {
                header.code = refusal.code as u32;
                refusal.emit(body)?;
            }
            Message::Request { part, .. } | Message::Reply(part) => {
                if let Message::Request { rpc_id, .. } = &self.message {
                    header.code = *rpc_id;
                }
                header.message_len_bytes = part.message_len;
                header.offset_bytes = part.offset;
                for (to, from) in body.iter_mut().zip(part.payload.iter()) {
                    *to = *from;
                }
            }
            Message::CreditReturn {
                message_len,
                offset,
            } => {
                header.message_len_bytes = *message_len;
                header.offset_bytes = *offset;
            }
            Message::Fetch {
                message_len,
                offset,
                parts,
            } => {
                header.code = *parts;
                header.message_len_bytes = *message_len;
                header.offset_bytes = *offset;
            }
            Message::Disconnect | Message::Ping | Message::Pong => {}
        }
        header.emit(head)?;
        Ok(self.len())
    }
}

#[inline]
fn same_len(header: &Header, payload: &[u8]) -> Result<(), Malformed> {
    if usize::from(header.payload_len_bytes) != payload.len() {
        return Err(Malformed::PayloadLen {
            header: usize::from(header.payload_len_bytes),
            actual: payload.len(),
        });
    }
    Ok(())
}

#[cold]
fn no_part(header: &Header) -> Malformed {
    Malformed::Part {
        message_len: header.message_len_bytes,
        offset: header.offset_bytes,
        payload_len: header.payload_len_bytes,
    }
}

fn no_code(header: &Header) -> Result<(), Malformed> {
    if header.code != 0 {
        return Err(Malformed::Field {
            what: "code",
            found: u64::from(header.code),
        });
    }
    Ok(())
}

fn fetch_code(header: &Header) -> Result<(), Malformed> {
    if (1..=MAX_FETCH).contains(&header.code) {
        return Ok(());
    }
    Err(Malformed::Field {
        what: "number of parts",
        found: u64::from(header.code),
    })
}

/// A live session never has generation 0 (wire.md §7.1).
fn names_session(header: &Header) -> Result<(), Malformed> {
    if header.session.generation == 0 {
        return Err(Malformed::Field {
            what: "session generation",
            found: 0,
        });
    }
    Ok(())
}

/// Calls are numbered from 1 (wire.md §8).
fn call_fields(header: &Header) -> Result<(), Malformed> {
    names_session(header)?;
    if header.request == RequestId(0) {
        return Err(Malformed::Field {
            what: "request id",
            found: 0,
        });
    }
    Ok(())
}

fn no_request(header: &Header) -> Result<(), Malformed> {
    if header.request != RequestId(0) {
        return Err(Malformed::Field {
            what: "request id",
            found: header.request.0,
        });
    }
    Ok(())
}

/// A message of a session that is a header alone.
fn bare(header: &Header) -> Result<(), Malformed> {
    names_session(header)?;
    if header.payload_len_bytes != 0 {
        return Err(Malformed::Field {
            what: "payload_len",
            found: u64::from(header.payload_len_bytes),
        });
    }
    Ok(())
}
