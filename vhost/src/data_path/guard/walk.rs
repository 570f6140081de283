//! Walking over the items under a new position: they must be framed exactly, and be as many as the
//! slot says.

use super::Reason;
use shared_block_ring::Position;
use shared_block_ring::format::{Geometry, Header};

/// How a slot's number of items is verified: counting from `start` at position `since`, there must
/// be `expected` items at `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count {
    pub since: Position,
    pub start: u64,
    pub end: Position,
    pub expected: u64,
}

/// A walk over the items that a new position exposes, and over those behind it that its slot is
/// verified by, a budget at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    at: Position,
    to: Position,
    end: Position,
    published: Position,
    count: Option<Count>,
    /// Items counted so far; `None` before the position where counting starts.
    counted: Option<u64>,
}

/// The result of a step of a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Every item ends where the next begins, one of them at the new position.
    Sound,
    /// The budget is used up.
    Unfinished,
}

impl Walk {
    /// Begins a walk from `from` to a new position `to`. No item may reach beyond `published`.
    pub(super) fn new(
        from: Position,
        to: Position,
        published: Position,
        count: Option<Count>,
    ) -> Self {
        let end = count.map_or(to, |count| count.end.max(to));
        Self { at: from, to, end, published, count, counted: None }
    }

    /// Walks over up to `budget` items; `header_at` reads four bytes of the region at a device
    /// offset.
    ///
    /// # Errors
    ///
    /// [`Reason::ItemFraming`] or [`Reason::ItemCount`].
    pub fn step(
        &mut self,
        geometry: Geometry,
        budget: usize,
        header_at: impl Fn(u64) -> [u8; 4],
    ) -> Result<Progress, Reason> {
        for _ in 0..budget {
            if self.at >= self.end {
                break;
            }
            self.start_counting();
            let offset = geometry.data_start() + geometry.data_offset(self.at.get());
            let header = Header::decode(self.at, header_at(offset), self.published)
                .map_err(|_| Reason::ItemFraming)?;
            if self.at < self.to && header.next > self.to {
                return Err(Reason::ItemFraming);
            }
            self.counted = self.counted.map(|counted| counted.saturating_add(1));
            self.at = header.next;
        }
        if self.at < self.end {
            return Ok(Progress::Unfinished);
        }
        self.start_counting();
        match self.count {
            Some(count) if self.counted != Some(count.expected) => Err(Reason::ItemCount),
            _ => Ok(Progress::Sound),
        }
    }

    fn start_counting(&mut self) {
        if let Some(count) = self.count
            && count.since == self.at
        {
            self.counted = Some(count.start);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::format::SectorSize;

    fn at(bytes: u64) -> Position {
        Position::new(bytes).unwrap()
    }

    fn walk(
        to: u64,
        count: Option<Count>,
        lengths: &[(u64, u32)],
        budget: usize,
    ) -> Result<Progress, Reason> {
        let geometry = Geometry::new(SectorSize::DEFAULT, 5).unwrap();
        Walk::new(at(0), at(to), at(24), count).step(geometry, budget, |offset| {
            let found = lengths.iter().find(|(at, _)| *at == offset - geometry.data_start());
            found.map_or([0xff; 4], |(_, length)| length.to_le_bytes())
        })
    }

    #[test]
    fn walk_ends_exactly_at_the_new_position() {
        let walk = |to, lengths: &[_], budget| walk(to, None, lengths, budget);
        assert_eq!(walk(24, &[(0, 5), (12, 8)], 9), Ok(Progress::Sound));
        assert_eq!(walk(12, &[(0, 5)], 9), Ok(Progress::Sound));
        assert_eq!(walk(24, &[(0, 5), (12, 8)], 1), Ok(Progress::Unfinished));
        assert_eq!(walk(20, &[(0, 5), (12, 8)], 9), Err(Reason::ItemFraming));
        assert_eq!(walk(24, &[(0, u32::MAX)], 9), Err(Reason::ItemFraming));
    }

    #[test]
    fn walk_may_count_on_behind_the_new_position() {
        let lengths = [(0, 5), (12, 0), (16, 4)];
        let walk = |start, expected| {
            let count = Count { since: at(12), start, end: at(24), expected };
            walk(12, Some(count), &lengths, 9)
        };
        assert_eq!(walk(7, 9), Ok(Progress::Sound));
        assert_eq!(walk(7, 8), Err(Reason::ItemCount));
    }
}
