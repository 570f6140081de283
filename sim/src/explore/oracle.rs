//! The promises so far, and hence the rings that a crash may leave.

use shared_block_ring::Position;
use std::collections::BTreeSet;

/// The ring that was found on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// No ring: none was created yet.
    Nothing,
    /// A sound ring.
    Ring(Content),
}

/// Content of a sound ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// The consumer's position.
    pub consumer: Position,
    /// The producer's position.
    pub producer: Position,
    /// Number and end of each item between the two positions.
    pub items: Vec<Item>,
    /// Whether the consumer has suspended the ring.
    pub suspend: bool,
}

/// An item of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Item {
    /// Its number, by which its bytes are known ([`payload`](crate::payload)).
    pub number: u32,
    /// The position behind it.
    pub end: Position,
}

/// State of the ring's creation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Made {
    No,
    Perhaps,
    Yes,
}

/// The promises of one history. Items are counted from the first one that was unconsumed at its
/// start.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Oracle {
    made: Made,
    /// Start of item 0.
    base: Position,
    /// Items that were pushed by the living producer, or that may be visible.
    stream: Vec<Item>,
    /// Number of items that are promised to be visible.
    promised: usize,
    /// Other possible numbers of visible items: an `advance` has not returned.
    possible: BTreeSet<usize>,
    /// Number of items that the producer has advanced over, which a flush turns into a promise.
    ordered: Option<Position>,
    /// Number of items that are promised never to come again.
    freed: usize,
    /// Number of items that the consumer has freed, which a flush turns into a promise.
    freed_in_order: Option<Position>,
    /// Largest number of items that may have been freed.
    freeing: usize,
    suspend: bool,
    /// Whether the suspend flag may have the other value.
    suspend_unsure: bool,
    next_number: u32,
}

type Verdict = Result<(), String>;

impl Oracle {
    /// Makes the oracle of a disk on which this was found. New items are numbered from
    /// `first_number` on.
    pub fn of(found: &Found, first_number: u32) -> Self {
        let (made, base, stream, suspend) = match found {
            Found::Nothing => (Made::No, Position::ZERO, Vec::new(), false),
            Found::Ring(content) => {
                (Made::Yes, content.consumer, content.items.clone(), content.suspend)
            }
        };
        Self {
            made,
            base,
            promised: stream.len(),
            stream,
            possible: BTreeSet::new(),
            ordered: None,
            freed: 0,
            freed_in_order: None,
            freeing: 0,
            suspend,
            suspend_unsure: false,
            next_number: first_number,
        }
    }

    pub fn making(&mut self) {
        self.made = Made::Perhaps;
    }

    pub fn made(&mut self) {
        self.made = Made::Yes;
    }

    pub fn is_made(&self) -> bool {
        self.made == Made::Yes
    }

    pub fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number - 1
    }

    pub fn next_number(&self) -> u32 {
        self.next_number
    }

    /// Returns the number of items that end at or before `position`, if one ends there.
    fn count_at(&self, position: Position) -> Option<usize> {
        if position == self.base {
            return Some(0);
        }
        self.stream.iter().position(|item| item.end == position).map(|index| index + 1)
    }

    fn may_be_visible(&self, count: usize) -> bool {
        count == self.promised || self.possible.contains(&count)
    }

    /// Records that a producer has attached at `position`.
    pub fn producer_attached(&mut self, position: Position) -> Verdict {
        let count = self.count_at(position).filter(|&count| self.may_be_visible(count));
        let Some(count) = count else {
            return Err(format!("the producer attaches at {position}, where no promise ends"));
        };
        // Items behind that position are lost.
        self.stream.truncate(count);
        self.possible.retain(|&possible| possible <= count);
        Ok(())
    }

    /// Records that the producer is gone.
    pub fn producer_gone(&mut self) {
        let most = self.possible.last().copied().unwrap_or(0).max(self.promised);
        self.stream.truncate(most);
    }

    /// Records items that were pushed, the last of which ends at `end`.
    pub fn pushed(&mut self, items: &[Item]) {
        self.stream.extend_from_slice(items);
    }

    /// Records that the producer is about to publish everything before `end`. Returns the number of
    /// visible items that this makes possible, if it was not possible before.
    pub fn advancing(&mut self, end: Position) -> Option<usize> {
        let count = self.count_at(end)?;
        let news = !self.may_be_visible(count) && self.possible.insert(count);
        news.then_some(count)
    }

    /// Takes back [`advancing`](Self::advancing): nothing was written.
    pub fn not_advancing(&mut self, count: usize) {
        self.possible.remove(&count);
    }

    /// Records that the items are promised to be visible.
    pub fn advanced(&mut self, end: Position) {
        if let Some(count) = self.count_at(end) {
            self.promised = count;
            self.possible.retain(|&possible| possible > count);
        }
    }

    /// Records the advance, and that what came before it is promised: an advance flushes before it
    /// writes.
    pub fn advanced_in_order(&mut self, end: Position) {
        self.flushed();
        self.ordered = Some(end);
    }

    /// Records that what came before is promised.
    pub fn flushed(&mut self) {
        if let Some(end) = self.ordered.take() {
            self.advanced(end);
        }
    }

    /// Records that a consumer has attached at `position`.
    pub fn consumer_attached(&self, position: Position) -> Verdict {
        match self.count_at(position) {
            Some(count) if (self.freed..=self.freeing).contains(&count) => Ok(()),
            _ => Err(format!("the consumer attaches at {position}, where it never advanced to")),
        }
    }

    /// Returns the number of items that are promised to be visible.
    pub fn promised(&self) -> usize {
        self.promised
    }

    /// Checks the `items` that a consumer got behind `position`. If those were all, the consumer
    /// has looked for more since `promised` items were promised.
    pub fn delivered(
        &self,
        position: Position,
        numbers: &[u32],
        promised: Option<usize>,
    ) -> Verdict {
        let Some(from) = self.count_at(position) else {
            return Err(format!("items are delivered from {position}, where none starts"));
        };
        let to = from + numbers.len();
        let expected = self.stream.get(from..to);
        let right = expected.is_some_and(|expected| {
            expected.iter().map(|item| item.number).eq(numbers.iter().copied())
        });
        let most = self.possible.last().copied().unwrap_or(0).max(self.promised);
        if !right || to > most {
            return Err(format!(
                "delivered {numbers:?} from {from}, expected {expected:?} of {self:?}"
            ));
        }
        if promised.is_some_and(|promised| to != promised && !self.may_be_visible(to)) {
            return Err(format!(
                "{to} items are visible: part of a batch, or fewer than promised: {self:?}"
            ));
        }
        Ok(())
    }

    pub fn freeing(&mut self, end: Position) {
        if let Some(count) = self.count_at(end) {
            self.freeing = self.freeing.max(count);
        }
    }

    pub fn freed(&mut self, end: Position) {
        if let Some(count) = self.count_at(end) {
            self.freed = count;
        }
    }

    /// Records the freed items, and that what was freed before is promised.
    pub fn freed_in_order(&mut self, end: Position) {
        if let Some(end) = self.freed_in_order.replace(end) {
            self.freed(end);
        }
    }

    /// Records that the consumer is about to set the flag. Returns whether the flag was in doubt
    /// before.
    pub fn suspending(&mut self, suspend: bool) -> bool {
        let before = self.suspend_unsure;
        self.suspend_unsure |= suspend != self.suspend;
        before
    }

    /// Records that the flag is set.
    pub fn suspended(&mut self, suspend: bool) {
        (self.suspend, self.suspend_unsure) = (suspend, false);
    }

    pub fn not_suspending(&mut self, unsure_before: bool) {
        self.suspend_unsure = unsure_before;
    }

    /// Returns whether the ring is certainly suspended.
    pub fn is_suspended(&self) -> bool {
        self.suspend && !self.suspend_unsure
    }

    /// Returns whether the ring may be suspended.
    pub fn may_be_suspended(&self) -> bool {
        self.suspend || self.suspend_unsure
    }

    /// Checks that a crash may leave this ring.
    pub fn accepts(&self, found: &Found) -> Verdict {
        let content = match found {
            Found::Nothing if self.made == Made::Yes => return Err("the ring is gone".to_owned()),
            Found::Nothing => return Ok(()),
            Found::Ring(_) if self.made == Made::No => return Err("a ring nobody made".to_owned()),
            Found::Ring(content) => content,
        };
        self.consumer_attached(content.consumer)?;
        if content.suspend != self.suspend && !self.suspend_unsure {
            return Err(format!("suspend is {}", content.suspend));
        }
        let numbers: Vec<u32> = content.items.iter().map(|item| item.number).collect();
        self.delivered(content.consumer, &numbers, Some(self.promised))
    }
}
