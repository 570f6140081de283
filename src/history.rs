//! Whether a ring stands where this handle has left it, or another life of its process has moved it: pure decisions.
//!
//! A virtual machine that is restored from an older snapshot, or cloned, remembers a ring that has gone on since.

use crate::error::Error;
use crate::format::{Position, Side, Tally};
use crate::rules::Mark;
use std::collections::VecDeque;

/// What a producer remembers.
pub struct Memory<'a> {
    /// Where it has attached.
    pub start: Mark,
    /// What its pointer sector says, as it has written or read it.
    pub sector: (Position, Option<Tally>),
    pub published: Mark,
    /// Of what was pushed beyond that.
    pub ends: &'a VecDeque<Mark>,
}

/// What the ring's pointer is to who remembers otherwise.
#[derive(Debug, PartialEq, Eq)]
pub enum History {
    /// Just as it was left.
    Ours,
    /// Another life has published all that we have pushed, and nothing else.
    Ahead,
    /// The two part here at the earliest: nobody can say what became of what we have pushed behind it.
    Parted(Mark),
}

impl Memory<'_> {
    /// Compares with the ring's position, and what its slot claims of the stream before.
    pub fn compare(&self, ring: Position, claim: Option<Tally>) -> History {
        if (ring, claim) == self.sector {
            return History::Ours;
        }
        // The same bytes by their checksum, from the same place on.
        let ours = |end: &Mark| end.position == ring && Some(end.tally) == claim;
        match self.ends.iter().rposition(ours) {
            Some(index) if index + 1 == self.ends.len() => History::Ahead,
            Some(index) => History::Parted(self.ends[index]),
            // What we had published was in the ring when the copy of us was made, and pointers do not go back.
            None if ring > self.published.position => History::Parted(self.published),
            // But it has: the ring is an older copy too.
            None if ring < self.published.position && ring >= self.start.position => {
                History::Parted(Mark::new(ring, claim))
            }
            None => History::Parted(self.start),
        }
    }
}

/// The error for who has met a ring at `ring`, and cannot account for what lies between `from` and `to`.
pub fn superseded(side: Side, ring: Position, from: Mark, to: Mark) -> Error {
    let comparable =
        from.tally.base == to.tally.base && from.tally.since_base == to.tally.since_base;
    let items = to.tally.items.checked_sub(from.tally.items).filter(|_| comparable);
    Error::Superseded { side, ring, from: from.position, to: to.position, items }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// After so many items of four bytes each.
    fn mark(items: u64) -> Mark {
        let tally = Tally::from_here(Position::ZERO);
        let position = Position::new(items * 4).unwrap();
        let bytes = vec![7; usize::try_from(items * 4).unwrap()];
        Mark { position, tally: tally.extend(items, &bytes) }
    }

    fn compare(ring: Mark) -> History {
        let ends = VecDeque::from([mark(5), mark(7)]);
        let sector = (mark(4).position, Some(mark(4).tally));
        let memory = Memory { start: mark(2), sector, published: mark(4), ends: &ends };
        memory.compare(ring.position, Some(ring.tally))
    }

    /// At the same place, after other bytes.
    fn other(items: u64) -> Mark {
        let tally = mark(items).tally;
        Mark { tally: Tally { crc: !tally.crc, ..tally }, ..mark(items) }
    }

    #[test]
    fn what_another_life_has_published_of_ours_is_accounted_for() {
        assert_eq!(compare(mark(4)), History::Ours);
        assert_eq!(compare(mark(7)), History::Ahead);
        assert_eq!(compare(mark(5)), History::Parted(mark(5)));
    }

    #[test]
    fn what_may_be_something_else_is_not() {
        for ring in [mark(6), mark(9), other(5), other(7)] {
            assert_eq!(compare(ring), History::Parted(mark(4)), "{ring:?}");
        }
    }

    #[test]
    fn an_older_copy_of_the_ring_takes_back_what_was_published() {
        assert_eq!(compare(mark(3)), History::Parted(mark(3)));
        assert_eq!(compare(mark(1)), History::Parted(mark(2)));
        assert_eq!(compare(other(4)), History::Parted(mark(2)));
    }

    #[test]
    fn items_are_counted_where_both_count_from_the_same_place() {
        let count = |from: Mark, to: Mark| match superseded(Side::Producer, to.position, from, to) {
            Error::Superseded { items, .. } => items,
            other => panic!("{other}"),
        };
        assert_eq!(count(mark(4), mark(7)), Some(3));
        assert_eq!(count(Mark::new(mark(4).position, None), mark(7)), None);
    }
}
