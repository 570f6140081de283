//! Judging a guest's write before a byte of the region changes.
//!
//! The guest is not trusted. What it may change follows from the ring's rules alone: its own pointer sector, within limits;
//! and, if it is the producer, data in the free part `[producer, consumer + capacity)`. Everything else must be what the
//! region holds already, and is compared, never stored. Published bytes are therefore frozen until they are consumed.
//!
//! Pure: a [`Judgement`] is a state machine that sees region and request through a [`Sight`] and ends in a [`Grant`] or a [`Reason`].
//! What a guest could change while it is judged (pointer sectors) is judged on a private copy; data is judged by its place alone.

mod data;
mod judge;
mod pointer;
mod reason;
mod walk;

pub use data::Pieces;
pub use judge::{Denied, Grant, Judgement, Room, SECTOR_UNIT, Sight};
pub use pointer::Move;
pub use reason::Reason;
use shared_block_ring::Position;
use shared_block_ring::format::{Geometry, PointerSector, Side, Tally};
use uuid::Uuid;
pub use walk::{Progress, Walk};

/// The rules for one guest.
#[derive(Debug, Clone, Copy)]
pub struct Guard {
    geometry: Geometry,
    guest: Side,
    uuid: Option<Uuid>,
}

/// The guest's side as the region has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mine {
    /// As its pointer sector says; after a power loss that kept only the consumer's pointer, a producer starts at that one.
    pub pointer: PointerSector,
    /// What a true slot continues.
    pub tally: Tally,
}

/// The host's side as the region has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// Its position.
    pub position: Position,
    /// What its slot says, if it has one; why it cannot be known.
    pub tally: Result<Option<Tally>, Reason>,
}

impl Guard {
    /// For a guest that is `guest` of a ring shaped so.
    pub fn new(geometry: Geometry, guest: Side, uuid: Option<Uuid>) -> Self {
        Self { geometry, guest, uuid }
    }

    /// The guest's role.
    pub fn guest(&self) -> Side {
        self.guest
    }

    /// The other role.
    pub fn host(&self) -> Side {
        match self.guest {
            Side::Producer => Side::Consumer,
            Side::Consumer => Side::Producer,
        }
    }

    /// The ring's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Why a change of sector `index` (0 to 2) is out of the question; `None` for the guest's own pointer sector.
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
