//! Judging a guest's write before a byte of the region changes.
//!
//! The guest is not trusted. What it may change follows from the ring's rules alone: its own pointer sector, within limits;
//! and, if it is the producer, data in the free part `[producer, consumer + capacity)`. Everything else must be what the
//! region holds already, and is compared, never stored. Published bytes are therefore frozen until they are consumed.
//!
//! Pure: positions and byte ranges in, verdicts out. What a guest could change while it is judged (pointer sectors) is
//! judged on a private copy; data is judged by its place alone.

use shared_block_ring::Position;
use shared_block_ring::format::{FLAG_AT, Geometry, Header, PointerSector, Side, TEXT_AT};
use std::ops::Range;

/// Why a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// A write of other bytes to sector 0.
    Signature,
    /// A write of other bytes to the host's pointer sector.
    HostPointer,
    /// The same as part of a write of a whole page: somebody in the guest writes through the page cache (`O_DIRECT` is missing).
    BufferedPage,
    /// A position before the present one.
    PointerBackwards,
    /// A position beyond what the ring can hold (producer) or what is published (consumer).
    PointerBeyond,
    /// A position that is not a multiple of 4.
    PointerMisaligned,
    /// A flag other than 1 or 2.
    PointerFlag,
    /// Bytes in the extension area of a pointer sector, which this version leaves zero.
    PointerExtension,
    /// A new position where no item ends.
    ItemFraming,
    /// A write that changes published bytes.
    PublishedData,
    /// A guest that is the consumer wrote data.
    ForeignData,
    /// The host's own pointer contradicts the guest's: nothing can be judged until it is repaired.
    HostCorrupt,
    /// The device is read-only.
    ReadOnly,
    /// Beyond the end of the device, or not whole sectors.
    OutOfRange,
    /// A descriptor chain that is no request.
    Malformed,
    /// A request larger than a front end was told it may send.
    TooLarge,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Signature => "signature",
            Self::HostPointer => "host_pointer",
            Self::BufferedPage => "buffered_page",
            Self::PointerBackwards => "pointer_backwards",
            Self::PointerBeyond => "pointer_beyond",
            Self::PointerMisaligned => "pointer_misaligned",
            Self::PointerFlag => "pointer_flag",
            Self::PointerExtension => "pointer_extension",
            Self::ItemFraming => "item_framing",
            Self::PublishedData => "published_data",
            Self::ForeignData => "foreign_data",
            Self::HostCorrupt => "host_corrupt",
            Self::ReadOnly => "read_only",
            Self::OutOfRange => "out_of_range",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
        })
    }
}

impl Reason {
    /// All of them, in the order of [`Reason::index`].
    pub const ALL: [Self; 16] = [
        Self::Signature,
        Self::HostPointer,
        Self::BufferedPage,
        Self::PointerBackwards,
        Self::PointerBeyond,
        Self::PointerMisaligned,
        Self::PointerFlag,
        Self::PointerExtension,
        Self::ItemFraming,
        Self::PublishedData,
        Self::ForeignData,
        Self::HostCorrupt,
        Self::ReadOnly,
        Self::OutOfRange,
        Self::Malformed,
        Self::TooLarge,
    ];

    /// Its place among [`Reason::ALL`].
    pub fn index(self) -> usize {
        self as usize
    }
}

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
}

impl Guard {
    /// For a guest that is `guest` of a ring shaped so.
    pub fn new(geometry: Geometry, guest: Side) -> Self {
        Self { geometry, guest }
    }

    /// The guest's role.
    pub fn guest(&self) -> Side {
        self.guest
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

    /// Judges the guest's pointer sector: `mine` is what the region holds, `host` the other side's position.
    pub fn judge_pointer(
        &self,
        mine: PointerSector,
        host: Position,
        new: &[u8],
    ) -> Result<Move, Reason> {
        let to = PointerSector::decode(self.guest, new).map_err(|_| {
            if matches!(new[FLAG_AT], 1 | 2) {
                Reason::PointerMisaligned
            } else {
                Reason::PointerFlag
            }
        })?;
        if new[FLAG_AT + 1..TEXT_AT].iter().any(|&byte| byte != 0) {
            return Err(Reason::PointerExtension);
        }
        let (producer, consumer) = match self.guest {
            Side::Producer => (mine.position, host),
            Side::Consumer => (host, mine.position),
        };
        let used = producer.since(consumer).ok_or(Reason::HostCorrupt)?;
        let free = self.geometry.capacity().get().checked_sub(used).ok_or(Reason::HostCorrupt)?;
        let reach = match self.guest {
            Side::Producer => free,
            Side::Consumer => used,
        };
        let step = to.position.since(mine.position).ok_or(Reason::PointerBackwards)?;
        if step > reach {
            return Err(Reason::PointerBeyond);
        }
        let published = match self.guest {
            Side::Producer => to.position,
            Side::Consumer => producer,
        };
        Ok(Move { from: mine, to, published })
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

/// A walk over the items that a new position covers, a budget at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    at: Position,
    to: Position,
    published: Position,
}

/// How a walk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Every item ends where the next begins, the last one at the new position.
    Sound,
    /// The budget is used up.
    Unfinished,
}

impl Walk {
    /// Over what `change` covers.
    pub fn new(change: Move) -> Self {
        Self { at: change.from.position, to: change.to.position, published: change.published }
    }

    /// Looks at up to `budget` items; `header_at` reads four bytes of the region at a device offset.
    pub fn step(
        &mut self,
        geometry: Geometry,
        budget: usize,
        header_at: impl Fn(u64) -> [u8; 4],
    ) -> Result<Progress, Reason> {
        for _ in 0..budget {
            if self.at >= self.to {
                break;
            }
            let offset = geometry.data_start() + geometry.data_offset(self.at.get());
            let header = Header::decode(self.at, header_at(offset), self.published)
                .map_err(|_| Reason::ItemFraming)?;
            self.at = header.next;
        }
        match self.at.cmp(&self.to) {
            std::cmp::Ordering::Less => Ok(Progress::Unfinished),
            std::cmp::Ordering::Equal => Ok(Progress::Sound),
            std::cmp::Ordering::Greater => Err(Reason::ItemFraming),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::format::SectorSize;

    const START: u64 = 3 * 512;

    fn guard(guest: Side) -> Guard {
        Guard::new(Geometry::new(SectorSize::DEFAULT, 5).unwrap(), guest)
    }

    fn at(bytes: u64) -> Position {
        Position::new(bytes).unwrap()
    }

    fn pointer(bytes: u64) -> PointerSector {
        PointerSector { position: at(bytes), flag: false }
    }

    fn sector(side: Side, pointer: PointerSector) -> Vec<u8> {
        let mut sector = vec![0; 512];
        pointer.encode(side, Some(("queue", "client")), &mut sector);
        sector
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
        let guard = guard(Side::Producer);
        let judge =
            |to| guard.judge_pointer(pointer(100), at(40), &sector(Side::Producer, pointer(to)));
        assert!(judge(100).is_ok());
        assert!(judge(1064).is_ok());
        assert_eq!(judge(1068), Err(Reason::PointerBeyond));
        assert_eq!(judge(96), Err(Reason::PointerBackwards));
        let mut bytes = sector(Side::Producer, pointer(104));
        bytes[0] += 2;
        assert_eq!(
            guard.judge_pointer(pointer(100), at(40), &bytes),
            Err(Reason::PointerMisaligned)
        );
        bytes[0] -= 2;
        bytes[8] = 3;
        assert_eq!(guard.judge_pointer(pointer(100), at(40), &bytes), Err(Reason::PointerFlag));
        bytes[8] = 1;
        bytes[16] = 1;
        assert_eq!(
            guard.judge_pointer(pointer(100), at(40), &bytes),
            Err(Reason::PointerExtension)
        );
        let new = sector(Side::Producer, pointer(104));
        assert_eq!(guard.judge_pointer(pointer(100), at(104), &new), Err(Reason::HostCorrupt));
    }

    #[test]
    fn a_guest_consumer_stays_behind_the_producer() {
        let guard = guard(Side::Consumer);
        let judge =
            |to| guard.judge_pointer(pointer(40), at(100), &sector(Side::Consumer, pointer(to)));
        assert!(judge(100).is_ok());
        assert_eq!(judge(104), Err(Reason::PointerBeyond));
        assert_eq!(judge(36), Err(Reason::PointerBackwards));
        let range = START..START + 512;
        let pieces = guard.data_pieces(&range, at(100), at(40)).unwrap();
        assert_eq!(pieces, [Piece::Same(range, Reason::ForeignData)]);
    }

    #[test]
    fn a_walk_ends_exactly_at_the_new_position() {
        let guard = guard(Side::Producer);
        let geometry = guard.geometry();
        let walk = |to: u64, lengths: &[(u64, u32)], budget| {
            let change = Move { from: pointer(0), to: pointer(to), published: at(to) };
            Walk::new(change).step(geometry, budget, |offset| {
                let found = lengths.iter().find(|(at, _)| *at == offset - START);
                found.map_or([0xff; 4], |(_, length)| length.to_le_bytes())
            })
        };
        assert_eq!(walk(24, &[(0, 5), (12, 8)], 9), Ok(Progress::Sound));
        assert_eq!(walk(24, &[(0, 5), (12, 8)], 1), Ok(Progress::Unfinished));
        assert_eq!(walk(20, &[(0, 5), (12, 8)], 9), Err(Reason::ItemFraming));
        assert_eq!(walk(24, &[(0, u32::MAX)], 9), Err(Reason::ItemFraming));
    }
}
