//! What the connection managers carry for us while a client looks for its server (wire.md §10).

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Length of an [`Ask`] in bytes.
pub const ASK_LEN: usize = 20;

/// First word of an [`Ask`]: the bytes 'SMTM'.
pub const ASK_MAGIC: u32 = 0x4d54_4d53;

/// Version of the resolution, not of the datagrams.
pub const ASK_VERSION: u32 = 1;

/// The queue key of every queue pair of this protocol. It keeps apart what is meant for another
/// protocol and is no secret.
pub const QKEY: u32 = 0x0d17_0515;

/// The greatest service id.
pub const MAX_SERVICE_ID: u32 = 255;

/// rdma_cm's UDP port of service 0.
const SERVICE_PORT_BASE: u16 = 0x4d00;

/// rdma_cm's UDP port of a service; `None` above [`MAX_SERVICE_ID`].
pub fn service_port(service_id: u32) -> Option<u16> {
    let low = u8::try_from(service_id).ok()?;
    Some(SERVICE_PORT_BASE | u16::from(low))
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Fields {
    magic: U32,
    version: U32,
    server_qd_hint: U32,
    client_qd_hint: U32,
    client_service_id: U32,
}

const _: () = assert!(size_of::<Fields>() == ASK_LEN);

/// The private data of a client's request for a queue pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Which of the server's queues.
    pub server_qd_hint: u32,
    /// The hint that the client goes by.
    pub client_qd_hint: u32,
    /// The service that the client goes by.
    pub client_service_id: u32,
}

impl Ask {
    /// The bytes of the request.
    pub fn emit(&self) -> [u8; ASK_LEN] {
        let mut bytes = [0; ASK_LEN];
        let fields = Fields {
            magic: U32::new(ASK_MAGIC),
            version: U32::new(ASK_VERSION),
            server_qd_hint: U32::new(self.server_qd_hint),
            client_qd_hint: U32::new(self.client_qd_hint),
            client_service_id: U32::new(self.client_service_id),
        };
        // The lengths are equal, so this cannot fail.
        let _ = fields.write_to(&mut bytes);
        bytes
    }

    /// Reads a request. Connection managers pad private data, so more bytes than [`ASK_LEN`] are
    /// no error.
    pub fn parse(private_data: &[u8]) -> Result<Self, Reason> {
        let (fields, _) = Fields::read_from_prefix(private_data).map_err(|_| Reason::Malformed)?;
        if fields.magic.get() != ASK_MAGIC {
            return Err(Reason::Malformed);
        }
        if fields.version.get() != ASK_VERSION {
            return Err(Reason::Version);
        }
        Ok(Self {
            server_qd_hint: fields.server_qd_hint.get(),
            client_qd_hint: fields.client_qd_hint.get(),
            client_service_id: fields.client_service_id.get(),
        })
    }
}

/// Why a server refuses to name a queue pair: the private data of its refusal, as a 32-bit number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The request is not one of this protocol.
    Malformed = 1,
    /// The request is of another version.
    Version = 2,
    /// No queue goes by the hint.
    Hint = 3,
    /// The request came over a port that the server does not serve.
    Port = 4,
}

impl Reason {
    /// The reason with this number.
    pub const fn from_u32(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Malformed,
            2 => Self::Version,
            3 => Self::Hint,
            4 => Self::Port,
            _ => return None,
        })
    }

    /// What to tell a person.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Malformed => "it could not read the request",
            Self::Version => "it speaks another version",
            Self::Hint => "no queue there goes by that hint (server_qd_hint)",
            Self::Port => "it does not serve the port that the request came over",
        }
    }
}

impl core::fmt::Display for Reason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.text())
    }
}

#[cfg(all(test, not(rdma_loom)))]
mod tests {
    use super::*;

    const ASK: Ask = Ask {
        server_qd_hint: 73,
        client_qd_hint: 75,
        client_service_id: 1,
    };

    #[test]
    fn golden_bytes() {
        assert_eq!(
            ASK.emit(),
            [0x53, 0x4d, 0x54, 0x4d, 1, 0, 0, 0, 73, 0, 0, 0, 75, 0, 0, 0, 1, 0, 0, 0]
        );
    }

    #[test]
    fn what_is_emitted_parses_padded_or_not_and_not_truncated() {
        let mut padded = [0xaa; 180];
        padded[..ASK_LEN].copy_from_slice(&ASK.emit());
        assert_eq!(Ask::parse(&padded), Ok(ASK));
        for len in 0..ASK_LEN {
            assert_eq!(Ask::parse(&ASK.emit()[..len]), Err(Reason::Malformed));
        }
    }

    #[test]
    fn other_protocols_and_versions_are_told_apart() {
        let mut bytes = ASK.emit();
        bytes[4] = 2;
        assert_eq!(Ask::parse(&bytes), Err(Reason::Version));
        bytes[0] ^= 1;
        assert_eq!(Ask::parse(&bytes), Err(Reason::Malformed));
    }

    #[test]
    fn reasons_keep_their_numbers() {
        for number in 1..=4 {
            assert_eq!(
                Reason::from_u32(number).map(|reason| reason as u32),
                Some(number)
            );
        }
        assert_eq!(Reason::from_u32(0), None);
        assert_eq!(Reason::from_u32(5), None);
    }

    #[test]
    fn services_have_ports_up_to_the_greatest() {
        assert_eq!(service_port(0), Some(0x4d00));
        assert_eq!(service_port(MAX_SERVICE_ID), Some(0x4dff));
        assert_eq!(service_port(MAX_SERVICE_ID + 1), None);
    }
}
