//! A whole datagram: the header and what its kind makes of the payload (wire.md §4 to §6).

use super::{accept, connect, error, header};
use super::{Accept, BufferTooSmall, Connect, Header, Kind, Malformed, Refusal, HEADER_LEN};
use crate::session::{RequestId, SessionId};

/// A datagram that is well-formed in every respect that its bytes can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'d> {
    /// The session that it belongs to; [`SessionId::NONE`] in a Connect and in the Error that
    /// refuses one.
    pub session: SessionId,
    /// The request that it belongs to; 0 where there is none.
    pub request: RequestId,
    /// What it says.
    pub message: Message<'d>,
}

/// What a datagram says, with its payload left where it was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'d> {
    /// The client asks for a session.
    Connect(Connect),
    /// The server grants it.
    Accept(Accept),
    /// The client has learnt of it.
    Confirm,
    /// A call.
    Request {
        /// Which handler is called.
        rpc_id: u32,
        /// What it is given.
        payload: &'d [u8],
    },
    /// The result of a call.
    Reply {
        /// What the handler gave.
        payload: &'d [u8],
    },
    /// Why there is no result, or no session.
    Error(Refusal),
    /// The client ends the session.
    Disconnect,
    /// The client shows that it lives.
    Ping,
    /// The server shows that it does.
    Pong,
}

impl<'d> Message<'d> {
    /// Its kind in the header.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Connect(_) => Kind::Connect,
            Self::Accept(_) => Kind::Accept,
            Self::Confirm => Kind::Confirm,
            Self::Request { .. } => Kind::Request,
            Self::Reply { .. } => Kind::Reply,
            Self::Error(_) => Kind::Error,
            Self::Disconnect => Kind::Disconnect,
            Self::Ping => Kind::Ping,
            Self::Pong => Kind::Pong,
        }
    }

    /// Length of its payload in bytes.
    pub const fn payload_len(&self) -> usize {
        match self {
            Self::Connect(_) => connect::LEN,
            Self::Accept(_) => accept::LEN,
            Self::Request { payload, .. } | Self::Reply { payload } => payload.len(),
            Self::Error(_) => error::LEN,
            Self::Confirm | Self::Disconnect | Self::Ping | Self::Pong => 0,
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
        if usize::from(header.payload_len_bytes) != payload.len() {
            return Err(Malformed::PayloadLen {
                header: usize::from(header.payload_len_bytes),
                actual: payload.len(),
            });
        }
        if header.offset_bytes != 0
            || header.message_len_bytes != u32::from(header.payload_len_bytes)
        {
            return Err(Malformed::Segmented {
                message_len_bytes: header.message_len_bytes,
                offset_bytes: header.offset_bytes,
            });
        }
        if header.credits != 0 {
            return Err(Malformed::Field {
                what: "credits",
                found: u64::from(header.credits),
            });
        }
        if header.kind != Kind::Request && header.kind != Kind::Error && header.code != 0 {
            return Err(Malformed::Field {
                what: "code",
                found: u64::from(header.code),
            });
        }
        let message = match header.kind {
            Kind::Request => {
                call_fields(header)?;
                Message::Request {
                    rpc_id: header.code,
                    payload,
                }
            }
            Kind::Reply => {
                call_fields(header)?;
                Message::Reply { payload }
            }
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
                bare(header)?;
                no_request(header)?;
                Message::Confirm
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
        };
        Ok(Self {
            session: header.session,
            request: header.request,
            message,
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
        let code = match &self.message {
            Message::Request { rpc_id, .. } => *rpc_id,
            Message::Error(refusal) => refusal.code as u32,
            _ => 0,
        };
        let (head, rest) = out.split_at_mut_checked(header::LEN).ok_or(too_small)?;
        let body = rest.get_mut(..usize::from(payload_len)).ok_or(too_small)?;
        match &self.message {
            Message::Connect(connect) => connect.emit(body)?,
            Message::Accept(accept) => accept.emit(body)?,
            Message::Error(refusal) => refusal.emit(body)?,
            Message::Request { payload, .. } | Message::Reply { payload } => {
                for (to, from) in body.iter_mut().zip(payload.iter()) {
                    *to = *from;
                }
            }
            Message::Confirm | Message::Disconnect | Message::Ping | Message::Pong => {}
        }
        Header::of_message(
            self.message.kind(),
            self.session,
            self.request,
            code,
            payload_len,
        )
        .emit(head)?;
        Ok(self.len())
    }
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
