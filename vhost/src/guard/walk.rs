//! The items under a new position: framed exactly, and as many as its slot says.

use super::{Move, Reason};
use shared_block_ring::Position;
use shared_block_ring::format::{Geometry, Header, Tally};

/// What a new slot says of the items before its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub tally: Tally,
    pub counts: Counts,
}

/// Where its counting starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counts {
    /// As many as were known before the walked items.
    On(u64),
    /// At a place among the walked items.
    Since(Position),
    /// Not at all: it repeats what the other side says of the same position.
    Repeated,
}

/// A walk over the items that a new position covers, a budget at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    at: Position,
    to: Position,
    published: Position,
    claim: Option<Claim>,
    /// Items since the place where counting starts; none before that is reached.
    counted: Option<u64>,
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
        let counted = match change.claim.map(|claim| claim.counts) {
            Some(Counts::On(items)) => Some(items),
            _ => None,
        };
        Self {
            at: change.from.position,
            to: change.to.position,
            published: change.published,
            claim: change.claim,
            counted,
        }
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
            self.start_counting();
            self.counted = self.counted.map(|counted| counted.saturating_add(1));
            self.at = header.next;
        }
        match self.at.cmp(&self.to) {
            std::cmp::Ordering::Less => Ok(Progress::Unfinished),
            std::cmp::Ordering::Equal => self.count_is_true(),
            std::cmp::Ordering::Greater => Err(Reason::ItemFraming),
        }
    }

    fn start_counting(&mut self) {
        if self.claim.is_some_and(|claim| claim.counts == Counts::Since(self.at)) {
            self.counted = Some(0);
        }
    }

    fn count_is_true(&mut self) -> Result<Progress, Reason> {
        self.start_counting();
        match self.claim {
            Some(Claim { tally, counts })
                if counts != Counts::Repeated && self.counted != Some(tally.items) =>
            {
                Err(Reason::ItemCount)
            }
            _ => Ok(Progress::Sound),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{START, at, guard, pointer};
    use super::*;
    use shared_block_ring::format::Side;

    #[test]
    fn a_walk_ends_exactly_at_the_new_position() {
        let guard = guard(Side::Producer);
        let geometry = guard.geometry();
        let walk = |to: u64, lengths: &[(u64, u32)], budget| {
            let change = Move { from: pointer(0), to: pointer(to), published: at(to), claim: None };
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
