//! What other machines' modules may ask of this one (docs/fork.md §4).

use core::ops::Deref;

use mitosis_core::wire::fork::{
    rpc_id, Chunk, Place, Preamble, Recent, SeedName, Status, Token, PREAMBLE_LEN,
};
use mitosis_core::wire::ErrorCode;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::seed::Seed;
use super::Fork;
use crate::lock::Shared;
use crate::memory::{Page, PAGE_LEN};
use crate::server::failures::Unanswered;
use crate::server::service::Service;
use crate::server::slots::ReplyRoom;

/// Answers for the seeds.
pub struct SeedService {
    /// Where they are.
    pub fork: &'static Fork,
    /// A page on its way.
    pub page: Page,
}

/// Longest request.
const REQUEST_LEN: usize = size_of::<Place>();

impl Service for SeedService {
    fn knows(&self, id: u32) -> bool {
        (rpc_id::PING..=rpc_id::RECENT).contains(&id)
    }

    fn answer<'c>(
        &mut self,
        id: u32,
        request: impl Iterator<Item = &'c [u8]>,
        len: u32,
        room: ReplyRoom<'_, '_>,
    ) -> Result<u32, Unanswered> {
        let len = len as usize;
        if len > REQUEST_LEN {
            return Err(ErrorCode::TooLarge.into());
        }
        let mut bytes = [0; REQUEST_LEN];
        for (place, byte) in bytes.iter_mut().zip(request.flatten()) {
            *place = *byte;
        }
        let request = bytes.get(..len).unwrap_or(&[]);
        match id {
            rpc_id::PING => Ok(0),
            rpc_id::ATTACH => {
                let token = Token {
                    token: self.fork.visitors.issue().into(),
                };
                whole(room, &[token.as_bytes()])
            }
            rpc_id::DESCRIBE => match self.describe(request) {
                Ok(seed) => {
                    seed.opened.add(1);
                    whole(
                        room,
                        &[preamble(Status::Done).as_bytes(), seed.descriptor()],
                    )
                }
                Err(status) => whole(room, &[preamble(status).as_bytes()]),
            },
            rpc_id::CHUNK => {
                let chunk = self.chunk(request).unwrap_or_else(Chunk::refused);
                whole(room, &[chunk.as_bytes()])
            }
            rpc_id::RECENT => self.recent(request, room),
            _ => match self.page(request) {
                Ok(()) => whole(
                    room,
                    &[preamble(Status::Done).as_bytes(), self.page.bytes()],
                ),
                Err(status) => whole(room, &[preamble(status).as_bytes()]),
            },
        }
    }
}

impl SeedService {
    fn describe(&self, request: &[u8]) -> Result<Shared<Seed>, Status> {
        let name = SeedName::read_from_bytes(request).map_err(|_| Status::BadRequest)?;
        self.fork.seeds.entitled(&name)
    }

    /// Pages are given only to those who have the descriptor, and with it the capability.
    fn place(&self, request: &[u8]) -> Result<(Place, Shared<Seed>), Status> {
        let place = Place::read_from_bytes(request).map_err(|_| Status::BadRequest)?;
        if place.seed.by_id.get() != 0 {
            return Err(Status::NotEntitled);
        }
        let seed = self.fork.seeds.entitled(&place.seed)?;
        Ok((place, seed))
    }

    fn chunk(&self, request: &[u8]) -> Result<Chunk, Status> {
        let (place, seed) = self.place(request)?;
        let visitor = self.fork.visitors.find(place.token.get());
        let visitor = visitor.ok_or(Status::NotAttached)?;
        seed.chunk(place.number.get(), visitor.deref())
    }

    /// Chunks that the seed touched last, as many as there are.
    fn recent(&self, request: &[u8], room: ReplyRoom<'_, '_>) -> Result<u32, Unanswered> {
        let found = self.place(request).and_then(|(place, seed)| {
            let visitor = self.fork.visitors.find(place.token.get());
            Ok((seed, visitor.ok_or(Status::NotAttached)?))
        });
        let (seed, visitor) = match found {
            Ok(found) => found,
            Err(status) => return whole(room, &[preamble(status).as_bytes()]),
        };
        let len = PREAMBLE_LEN + seed.recent.iter().count() * size_of::<Recent>();
        let buffer = room.of(len)?;
        let mut written = buffer.write(0, preamble(Status::Done).as_bytes());
        for (index, touched) in seed.recent.iter().enumerate() {
            let chunk = seed.chunk(touched.chunk, visitor.deref());
            let recent = Recent {
                number: U64::new(touched.chunk),
                touched: touched.pages.map(U64::new),
                chunk: chunk.unwrap_or_else(Chunk::refused),
            };
            let at = PREAMBLE_LEN + index * size_of::<Recent>();
            written = written && buffer.write(at, recent.as_bytes());
        }
        if !written {
            return Err(ErrorCode::HandlerFailed.into());
        }
        u32::try_from(len).map_err(|_| ErrorCode::TooLarge.into())
    }

    fn page(&mut self, request: &[u8]) -> Result<(), Status> {
        let (place, seed) = self.place(request)?;
        seed.page(place.number.get(), self.page.bytes_mut())
    }
}

const _: () = assert!(PREAMBLE_LEN + PAGE_LEN < 2 * PAGE_LEN);

fn preamble(status: Status) -> Preamble {
    Preamble {
        status: U32::new(status as u32),
        reserved: U32::ZERO,
    }
}

/// A reply of these pieces.
fn whole(room: ReplyRoom<'_, '_>, pieces: &[&[u8]]) -> Result<u32, Unanswered> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let buffer = room.of(len)?;
    let mut at = 0;
    for piece in pieces {
        if !buffer.write(at, piece) {
            return Err(ErrorCode::HandlerFailed.into());
        }
        at += piece.len();
    }
    u32::try_from(len).map_err(|_| ErrorCode::TooLarge.into())
}
