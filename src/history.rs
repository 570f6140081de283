//! Whether a ring is as this handle has left it, or another instance of the same state has moved
//! it. Pure decisions.
//!
//! A virtual machine that is restored from an older snapshot, or cloned, remembers a ring that has
//! gone on since: it is superseded.

use crate::error::Error;
use crate::format::{Position, Side, Tally};
use crate::rules::Mark;
use std::collections::VecDeque;

/// The state that a producer remembers.
pub struct Memory<'a> {
    /// The mark at which it has attached.
    pub start: Mark,
    /// Position and tally of its pointer sector, as it has written or read them.
    pub sector: (Position, Option<Tally>),
    /// The end of what it has published.
    pub published: Mark,
    /// The ends of what it has pushed beyond that.
    pub ends: &'a VecDeque<Mark>,
}

/// How the pointer in the ring relates to the state that the producer remembers.
#[derive(Debug, PartialEq, Eq)]
pub enum History {
    /// The pointer is as it was left.
    Ours,
    /// Another instance has published all that this one has pushed, and nothing else.
    Ahead,
    /// The streams of the two instances part at this mark at the earliest: what this one has pushed
    /// behind it cannot be accounted for.
    Parted(Mark),
}

impl Memory<'_> {
    /// Compares this state with the position in the ring, and the tally that its slot claims.
    pub fn compare(&self, ring: Position, claim: Option<Tally>) -> History {
        if (ring, claim) == self.sector {
            return History::Ours;
        }
        // The same bytes by their checksum, from the same position on.
        let ours = |end: &Mark| end.position == ring && Some(end.tally) == claim;
        match self.ends.iter().rposition(ours) {
            Some(index) if index + 1 == self.ends.len() => History::Ahead,
            Some(index) => History::Parted(self.ends[index]),
            // A copied instance starts with the pointer that this one had published, and pointers
            // only grow: the other instance went on from there.
            None if ring > self.published.position => History::Parted(self.published),
            // The pointer has gone back: the ring is an older copy, too.
            None if ring < self.published.position && ring >= self.start.position => {
                History::Parted(Mark::new(ring, claim))
            }
            None => History::Parted(self.start),
        }
    }
}

/// Makes the error of a handle that finds the ring at `ring`, and cannot account for the items
/// between `from` and `to`.
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

    /// The mark after `items` items of four bytes each.
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

    /// The same position after other bytes.
    fn other(items: u64) -> Mark {
        let tally = mark(items).tally;
        Mark { tally: Tally { crc: !tally.crc, ..tally }, ..mark(items) }
    }

    #[test]
    fn compare_accounts_for_what_another_instance_published_of_the_same_items() {
        assert_eq!(compare(mark(4)), History::Ours);
        assert_eq!(compare(mark(7)), History::Ahead);
        assert_eq!(compare(mark(5)), History::Parted(mark(5)));
    }

    #[test]
    fn compare_does_not_account_for_what_may_be_other_items() {
        for ring in [mark(6), mark(9), other(5), other(7)] {
            assert_eq!(compare(ring), History::Parted(mark(4)), "{ring:?}");
        }
    }

    #[test]
    fn compare_takes_an_older_copy_of_the_ring_for_what_it_is() {
        assert_eq!(compare(mark(3)), History::Parted(mark(3)));
        assert_eq!(compare(mark(1)), History::Parted(mark(2)));
        assert_eq!(compare(other(4)), History::Parted(mark(2)));
    }

    #[test]
    fn superseded_counts_items_where_both_tallies_have_one_base() {
        let count = |from: Mark, to: Mark| match superseded(Side::Producer, to.position, from, to) {
            Error::Superseded { items, .. } => items,
            other => panic!("{other}"),
        };
        assert_eq!(count(mark(4), mark(7)), Some(3));
        assert_eq!(count(Mark::new(mark(4).position, None), mark(7)), None);
    }
}
