//! Judging a guest's write before a byte of the region changes.
//!
//! The guest is not trusted. What it may change follows from the ring's rules alone: its own
//! pointer sector, within limits; and, if it is the producer, data in the free part `[producer,
//! consumer + capacity)`. Everything else must be what the region holds already, and is compared,
//! never stored. Published bytes are therefore frozen until they are consumed.
//!
//! Pure: a [`Judgement`] is a state machine that sees region and request through a [`View`] and
//! ends in a [`Grant`] or a [`Reason`]. Control sectors (sectors 0 to 2) are judged on a private
//! copy, since the guest can change its own meanwhile; data is judged by its place alone.

mod data;
mod judge;
mod pointer;
mod reason;
mod walk;

pub use data::{Pieces, Published};
pub use judge::{Denied, Grant, Judgement, SECTOR_UNIT, Scratch, View};
pub use pointer::Move;
pub use reason::Reason;
use shared_block_ring::Position;
use shared_block_ring::format::{Geometry, PointerSector, Side, Tally};
use uuid::Uuid;
pub use walk::{Progress, Walk};

/// The rules for one guest of one ring.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    geometry: Geometry,
    guest: Side,
    uuid: Option<Uuid>,
}

/// The guest's side of the ring as the region holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestState {
    /// The guest's pointer sector. After a power loss that kept only the consumer's pointer, a
    /// producer starts at that one.
    pub pointer: PointerSector,
    /// The stream before that position, which the next slot has to continue.
    pub tally: Tally,
}

/// The host's side of the ring as the region holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostState {
    /// The host's position.
    pub position: Position,
    /// The stream before that position by the host's slot, if there is one; or why it is unknown.
    pub tally: Result<Option<Tally>, Reason>,
}

impl Guard {
    /// The rules for a guest that is the `guest` of a ring of that geometry and UUID.
    pub fn new(geometry: Geometry, guest: Side, uuid: Option<Uuid>) -> Self {
        Self { geometry, guest, uuid }
    }

    /// The guest's role.
    pub fn guest(&self) -> Side {
        self.guest
    }

    /// The host's role.
    pub fn host(&self) -> Side {
        match self.guest {
            Side::Producer => Side::Consumer,
            Side::Consumer => Side::Producer,
        }
    }

    /// The ring's geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The producer's and the consumer's position, of which one is the guest's and one the host's.
    pub fn positions(&self, guest: Position, host: Position) -> (Position, Position) {
        match self.guest {
            Side::Producer => (guest, host),
            Side::Consumer => (host, guest),
        }
    }

    /// Why the guest may not change control sector `index`; `None` for its own pointer sector.
    fn immutable(&self, index: u64) -> Option<Reason> {
        match index {
            0 => Some(Reason::Signature),
            index if index == self.guest.sector() => None,
            _ => Some(Reason::HostPointer),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::format::SectorSize;

    pub const START: u64 = 3 * 512;
    pub const RING: Uuid = Uuid::from_u128(7);

    pub fn guard(guest: Side) -> Guard {
        Guard::new(Geometry::new(SectorSize::DEFAULT, 5).unwrap(), guest, Some(RING))
    }

    pub fn at(bytes: u64) -> Position {
        Position::new(bytes).unwrap()
    }

    pub fn pointer(bytes: u64) -> PointerSector {
        PointerSector { position: at(bytes), flag: false }
    }

    pub fn sector(side: Side, pointer: PointerSector) -> Vec<u8> {
        let mut sector = vec![0; 512];
        pointer.encode(side, Some(("queue", "client")), &mut sector);
        sector
    }
}
