//! What has been promised, and hence what a crash may leave.

use shared_block_ring::Position;
use std::collections::BTreeSet;

/// What a ring holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Not a ring: nobody has made one yet.
    Nothing,
    /// A sound one.
    Ring(Content),
}

/// What a sound ring holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub consumer: Position,
    pub producer: Position,
    /// The numbers of the items between, and where each ends.
    pub items: Vec<Item>,
    pub suspend: bool,
}

/// One item of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Item {
    pub number: u32,
    pub end: Position,
}

/// Whether there is a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Made {
    No,
    Perhaps,
    Yes,
}

/// Items are counted from the first one that was unconsumed when this began.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Oracle {
    made: Made,
    /// Where item 0 starts.
    base: Position,
    /// All that were pushed by a producer that is not dead, or that may be visible.
    stream: Vec<Item>,
    /// So many are promised to be visible.
    promised: usize,
    /// Other numbers of visible items that are possible: an `advance` has not returned.
    possible: BTreeSet<usize>,
    /// Where the producer has advanced to, which is promised once something is flushed.
    ordered: Option<Position>,
    /// So many are promised never to come again.
    freed: usize,
    /// What the consumer has freed, likewise.
    freed_in_order: Option<Position>,
    /// So many may have been freed at most.
    freeing: usize,
    suspend: bool,
    /// The flag may be the other way round.
    suspend_unsure: bool,
    next_number: u32,
}

type Verdict = Result<(), String>;

impl Oracle {
    /// For a disk that holds nothing but what was found. New items are numbered from `first_number` on.
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

    /// How many items end at or before `position`, if one ends there.
    fn count_at(&self, position: Position) -> Option<usize> {
        if position == self.base {
            return Some(0);
        }
        self.stream.iter().position(|item| item.end == position).map(|index| index + 1)
    }

    fn may_be_visible(&self, count: usize) -> bool {
        count == self.promised || self.possible.contains(&count)
    }

    /// A producer has attached, and goes on at `position`.
    pub fn producer_attached(&mut self, position: Position) -> Verdict {
        let count = self.count_at(position).filter(|&count| self.may_be_visible(count));
        let Some(count) = count else {
            return Err(format!("the producer attaches at {position}, where no promise ends"));
        };
        // What was pushed behind it is nobody's any more.
        self.stream.truncate(count);
        self.possible.retain(|&possible| possible <= count);
        Ok(())
    }

    /// The producer is gone.
    pub fn producer_gone(&mut self) {
        let most = self.possible.last().copied().unwrap_or(0).max(self.promised);
        self.stream.truncate(most);
    }

    /// Items were pushed, the last of which ends at `end`.
    pub fn pushed(&mut self, items: &[Item]) {
        self.stream.extend_from_slice(items);
    }

    /// The producer is about to make everything before `end` visible. Whether that was possible already.
    pub fn advancing(&mut self, end: Position) -> Option<usize> {
        let count = self.count_at(end)?;
        let news = !self.may_be_visible(count) && self.possible.insert(count);
        news.then_some(count)
    }

    /// It has not come to that.
    pub fn not_advancing(&mut self, count: usize) {
        self.possible.remove(&count);
    }

    /// It is promised.
    pub fn advanced(&mut self, end: Position) {
        if let Some(count) = self.count_at(end) {
            self.promised = count;
            self.possible.retain(|&possible| possible > count);
        }
    }

    /// It is done, and what was done before is promised: an advance flushes before it writes.
    pub fn advanced_in_order(&mut self, end: Position) {
        self.flushed();
        self.ordered = Some(end);
    }

    /// What was done before is promised.
    pub fn flushed(&mut self) {
        if let Some(end) = self.ordered.take() {
            self.advanced(end);
        }
    }

    /// A consumer has attached at `position`.
    pub fn consumer_attached(&self, position: Position) -> Verdict {
        match self.count_at(position) {
            Some(count) if (self.freed..=self.freeing).contains(&count) => Ok(()),
            _ => Err(format!("the consumer attaches at {position}, where it never advanced to")),
        }
    }

    /// So many items are promised to be visible.
    pub fn promised(&self) -> usize {
        self.promised
    }

    /// A consumer has been given `items` behind `position`. If those were all, it has looked for more since `promised` were.
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

    /// It is done, and what was freed before is promised.
    pub fn freed_in_order(&mut self, end: Position) {
        if let Some(end) = self.freed_in_order.replace(end) {
            self.freed(end);
        }
    }

    /// The consumer is about to set the flag. Whether it was in doubt before.
    pub fn suspending(&mut self, suspend: bool) -> bool {
        let before = self.suspend_unsure;
        self.suspend_unsure |= suspend != self.suspend;
        before
    }

    /// It has.
    pub fn suspended(&mut self, suspend: bool) {
        (self.suspend, self.suspend_unsure) = (suspend, false);
    }

    /// It has not come to that.
    pub fn not_suspending(&mut self, unsure_before: bool) {
        self.suspend_unsure = unsure_before;
    }

    /// Whether the ring is suspended for certain.
    pub fn is_suspended(&self) -> bool {
        self.suspend && !self.suspend_unsure
    }

    /// Whether it may be.
    pub fn may_be_suspended(&self) -> bool {
        self.suspend || self.suspend_unsure
    }

    /// Whether a crash may leave this.
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
