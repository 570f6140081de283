//! Judging a guest's write before a byte of the region changes.
//!
//! The guest is not trusted. What it may change follows from the ring's rules alone: its own pointer sector, within limits;
//! and, if it is the producer, data in the free part `[producer, consumer + capacity)`. Everything else must be what the
//! region holds already, and is compared, never stored. Published bytes are therefore frozen until they are consumed.
//!
//! Pure: positions and byte ranges in, verdicts out. What a guest could change while it is judged (pointer sectors) is
//! judged on a private copy; data is judged by its place alone.

mod reason;
mod walk;

pub use reason::Reason;
use shared_block_ring::Position;
use shared_block_ring::format::{
    EXTENSION, FLAG_AT, Geometry, PointerSector, Side, Tally, find_slot, follows,
};
use shared_block_ring::rules::Mark;
use std::ops::Range;
use uuid::Uuid;
use walk::{Claim, Counts};
pub use walk::{Progress, Walk};

/// What a piece of a write to the data area may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Bytes of the free part: stored. Device bytes.
    Store(Range<u64>),
    /// Bytes that must be what the region holds, or the write is refused for the reason. Device bytes.
    Same(Range<u64>, Reason),
}

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
    /// What its slot says, if it has one.
    pub tally: Option<Tally>,
}

/// A legal change of the guest's pointer sector, but for the items it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// As the region has it.
    pub from: PointerSector,
    /// As the guest wants it.
    pub to: PointerSector,
    /// How far items reach that the new position may cover.
    pub published: Position,
    /// What the slot of the new position says, and how it is to be verified.
    claim: Option<Claim>,
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

    /// What the host's pointer sector says of the stream before `position`.
    pub fn host_tally(&self, position: Position, sector: &[u8]) -> Option<Tally> {
        let slot = find_slot(self.uuid?, self.host(), sector, position).ok()?;
        slot.map(|slot| slot.tally)
    }

    /// The ring's shape.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Why a change of sector `index` (0 to 2) is out of the question; `None` for the guest's own pointer sector.
    pub fn immutable(&self, index: u64) -> Option<Reason> {
        match index {
            0 => Some(Reason::Signature),
            index if index == self.guest.sector() => None,
            _ => Some(Reason::HostPointer),
        }
    }

    /// Judges the guest's pointer sector: `old` are the bytes that the region holds, `mine` what they say.
    pub fn judge_pointer(
        &self,
        mine: Mine,
        host: Host,
        old: &[u8],
        new: &[u8],
    ) -> Result<Move, Reason> {
        let to = PointerSector::decode(self.guest, new).map_err(|_| {
            if matches!(new[FLAG_AT], 1 | 2) {
                Reason::PointerMisaligned
            } else {
                Reason::PointerFlag
            }
        })?;
        let (producer, consumer) = match self.guest {
            Side::Producer => (mine.pointer.position, host.position),
            Side::Consumer => (host.position, mine.pointer.position),
        };
        let used = producer.since(consumer).ok_or(Reason::HostCorrupt)?;
        let free = self.geometry.capacity().get().checked_sub(used).ok_or(Reason::HostCorrupt)?;
        let reach = match self.guest {
            Side::Producer => free,
            Side::Consumer => used,
        };
        let step = to.position.since(mine.pointer.position).ok_or(Reason::PointerBackwards)?;
        if step > reach {
            return Err(Reason::PointerBeyond);
        }
        let published = match self.guest {
            Side::Producer => to.position,
            Side::Consumer => producer,
        };
        let claim = self.judge_slots(mine, host, old, to.position, new)?;
        Ok(Move { from: mine.pointer, to, published, claim })
    }

    /// What the new slot says. Its checksum over the stream is the consumer's to verify, once.
    fn judge_slots(
        &self,
        mine: Mine,
        host: Host,
        old: &[u8],
        to: Position,
        new: &[u8],
    ) -> Result<Option<Claim>, Reason> {
        let Some(uuid) = self.uuid else {
            let zero = new[EXTENSION].iter().all(|&byte| byte == 0);
            return if zero { Ok(None) } else { Err(Reason::PointerExtension) };
        };
        let present = PointerSector::decode(self.guest, old).map_err(|_| Reason::HostCorrupt)?;
        if !follows(uuid, old, present.position, new, to) {
            return Err(Reason::PointerExtension);
        }
        let slot = find_slot(uuid, self.guest, new, to).map_err(|_| Reason::PointerExtension)?;
        let Some(tally) = slot.map(|slot| slot.tally) else { return Ok(None) };
        let repeated =
            host.position == to && host.tally.is_some_and(|host| same_count(host, tally));
        let counts = if repeated {
            Counts::Repeated
        } else if tally.base == mine.tally.base && tally.since_base == mine.tally.since_base {
            Counts::On(mine.tally.items)
        } else if tally.since_base && tally.base >= mine.pointer.position && tally.base <= to {
            Counts::Since(tally.base)
        } else {
            return Err(Reason::ItemCount);
        };
        Ok(Some(Claim { tally, counts }))
    }

    /// Cuts a write of device bytes `range` (all in the data area) into pieces.
    pub fn data_pieces(
        &self,
        range: &Range<u64>,
        producer: Position,
        consumer: Position,
    ) -> Result<Vec<Piece>, Reason> {
        if self.guest == Side::Consumer {
            return Ok(vec![Piece::Same(range.clone(), Reason::ForeignData)]);
        }
        let capacity = self.geometry.capacity().get();
        let used =
            producer.since(consumer).filter(|&used| used <= capacity).ok_or(Reason::HostCorrupt)?;
        let mut pieces = Vec::with_capacity(5);
        let mut at = range.start;
        for published in sorted(self.geometry.extents(consumer.get(), used)) {
            let start = published.start.clamp(at, range.end);
            let end = published.end.clamp(start, range.end);
            if start == end {
                continue;
            }
            if at < start {
                pieces.push(Piece::Store(at..start));
            }
            pieces.push(Piece::Same(start..end, Reason::PublishedData));
            at = end;
        }
        if at < range.end {
            pieces.push(Piece::Store(at..range.end));
        }
        Ok(pieces)
    }
}

fn sorted(extents: [shared_block_ring::format::Extent; 2]) -> [Range<u64>; 2] {
    let [first, second] = extents.map(|extent| extent.offset..extent.offset + extent.len);
    if first.start <= second.start { [first, second] } else { [second, first] }
}

fn same_count(one: Tally, other: Tally) -> bool {
    let key = |tally: Tally| (tally.items, tally.since_base, tally.base);
    key(one) == key(other)
}

impl Move {
    /// The guest's side once it is stored.
    pub fn mine(&self) -> Mine {
        let tally = self.claim.map(|claim| claim.tally);
        Mine { pointer: self.to, tally: Mark::new(self.to.position, tally).tally }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::format::{SectorSize, Slot, put_slot};

    pub const START: u64 = 3 * 512;
    const RING: Uuid = Uuid::from_u128(7);

    pub fn guard(guest: Side) -> Guard {
        Guard::new(Geometry::new(SectorSize::DEFAULT, 5).unwrap(), guest, Some(RING))
    }

    pub fn at(bytes: u64) -> Position {
        Position::new(bytes).unwrap()
    }

    pub fn pointer(bytes: u64) -> PointerSector {
        PointerSector { position: at(bytes), flag: false }
    }

    fn sector(side: Side, pointer: PointerSector) -> Vec<u8> {
        let mut sector = vec![0; 512];
        pointer.encode(side, Some(("queue", "client")), &mut sector);
        sector
    }

    /// Judges what follows a sector without slots.
    fn judge(guest: Side, mine: u64, host: u64, new: &[u8]) -> Result<Move, Reason> {
        let mine = Mine { pointer: pointer(mine), tally: Tally::from_here(at(mine)) };
        let host = Host { position: at(host), tally: None };
        guard(guest).judge_pointer(mine, host, &sector(guest, mine.pointer), new)
    }

    /// Every byte of a small ring's data area, for every pair of positions over two laps, against the definition.
    #[test]
    fn only_free_bytes_are_stored() {
        let guard = guard(Side::Producer);
        let capacity = 1024;
        for consumer in (0..2048).step_by(36) {
            for used in (0..=capacity).step_by(28) {
                let mut free = vec![true; 1024];
                (consumer..consumer + used)
                    .for_each(|o| free[usize::try_from(o % capacity).unwrap()] = false);
                for range in [0..1024, 0..512, 512..1024] {
                    let device = START + range.start..START + range.end;
                    let mut next = device.start;
                    for piece in
                        guard.data_pieces(&device, at(consumer + used), at(consumer)).unwrap()
                    {
                        let (piece, stored) = match piece {
                            Piece::Store(piece) => (piece, true),
                            Piece::Same(piece, reason) => {
                                assert_eq!(reason, Reason::PublishedData);
                                (piece, false)
                            }
                        };
                        assert_eq!(piece.start, next);
                        assert!(
                            piece
                                .clone()
                                .all(|b| free[usize::try_from(b - START).unwrap()] == stored)
                        );
                        next = piece.end;
                    }
                    assert_eq!(next, device.end);
                }
            }
        }
    }

    #[test]
    fn a_pointer_moves_forward_within_the_ring() {
        let judge = |host, new: &[u8]| judge(Side::Producer, 100, host, new);
        let to = |to| judge(40, &sector(Side::Producer, pointer(to)));
        assert!(to(100).is_ok() && to(1064).is_ok());
        assert_eq!(to(1068), Err(Reason::PointerBeyond));
        assert_eq!(to(96), Err(Reason::PointerBackwards));
        let mut bytes = sector(Side::Producer, pointer(104));
        bytes[0] += 2;
        assert_eq!(judge(40, &bytes), Err(Reason::PointerMisaligned));
        bytes[0] -= 2;
        bytes[8] = 3;
        assert_eq!(judge(40, &bytes), Err(Reason::PointerFlag));
        bytes[8] = 1;
        bytes[16] = 1;
        assert_eq!(judge(40, &bytes), Err(Reason::PointerExtension));
        let new = sector(Side::Producer, pointer(104));
        assert_eq!(judge(104, &new), Err(Reason::HostCorrupt));
    }

    #[test]
    fn a_guest_consumer_stays_behind_the_producer() {
        let to = |to| judge(Side::Consumer, 40, 100, &sector(Side::Consumer, pointer(to)));
        assert!(to(100).is_ok());
        assert_eq!(to(104), Err(Reason::PointerBeyond));
        assert_eq!(to(36), Err(Reason::PointerBackwards));
        let range = START..START + 512;
        let pieces = guard(Side::Consumer).data_pieces(&range, at(100), at(40)).unwrap();
        assert_eq!(pieces, [Piece::Same(range, Reason::ForeignData)]);
    }

    /// Two items of 12 bytes each in front of the new position.
    #[test]
    fn a_slot_counts_what_there_is() {
        let known = Tally { items: 5, since_base: false, base: Position::ZERO, crc: 1 };
        let mine = Mine { pointer: pointer(40), tally: known };
        let host = Host { position: at(64), tally: Some(Tally { items: 9, ..known }) };
        let counted = |guest: Side, tally: Tally| {
            let guard = guard(guest);
            let old = sector(guest, mine.pointer);
            let mut new = sector(guest, pointer(64));
            let slot = Slot { position: at(64), tally, time_ns: 0 };
            put_slot(RING, &mut new, at(40), &slot);
            let host =
                if guest == Side::Producer { Host { position: at(0), ..host } } else { host };
            let change = guard.judge_pointer(mine, host, &old, &new)?;
            Walk::new(change).step(guard.geometry(), 9, |_| 8u32.to_le_bytes())
        };
        for guest in [Side::Producer, Side::Consumer] {
            let count = |items| counted(guest, Tally { items, crc: 77, ..known });
            assert_eq!(count(7), Ok(Progress::Sound), "the stream's checksum is the reader's");
            assert_eq!(count(8), Err(Reason::ItemCount));
            let since = |base, items| {
                counted(guest, Tally { items, since_base: true, base: at(base), crc: 0 })
            };
            assert_eq!([since(40, 2), since(52, 1), since(64, 0)], [Ok(Progress::Sound); 3]);
            assert_eq!([since(40, 1), since(56, 1), since(36, 3)], [Err(Reason::ItemCount); 3]);
        }
        let repeated = Tally { items: 9, ..known };
        assert_eq!(counted(Side::Consumer, repeated), Ok(Progress::Sound));
        assert_eq!(counted(Side::Producer, repeated), Err(Reason::ItemCount));
    }
}
