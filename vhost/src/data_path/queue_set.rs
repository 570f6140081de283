//! Sets of a device's queues, by their numbers.

use std::ops::BitOrAssign;

/// The most queues that the device has.
pub const MAX_QUEUES: usize = 64;

/// A set of queues: a bit for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueSet(u64);

impl QueueSet {
    /// No queue.
    pub const EMPTY: Self = Self(0);

    /// The first `number` queues.
    pub fn first(number: usize) -> Self {
        if number < MAX_QUEUES { Self((1 << number) - 1) } else { Self(u64::MAX) }
    }

    /// One queue, by its number below [`MAX_QUEUES`].
    pub fn one(queue: usize) -> Self {
        debug_assert!(queue < MAX_QUEUES);
        Self(1 << queue)
    }

    /// Whether no queue is in the set.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether this queue is in the set.
    pub fn contains(self, queue: usize) -> bool {
        self.0 >> queue & 1 == 1
    }

    /// Adds a queue, or takes it out.
    pub fn set(&mut self, queue: usize, is_in: bool) {
        let one = Self::one(queue).0;
        if is_in { self.0 |= one } else { self.0 &= !one }
    }

    /// The queues that are in both sets.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The queues that are in this set and not in the other.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOrAssign for QueueSet {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The queues of a set, in the order of their numbers.
#[derive(Debug)]
pub struct Queues(u64);

impl Iterator for Queues {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let queue = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (queue < MAX_QUEUES).then_some(queue)
    }
}

impl IntoIterator for QueueSet {
    type Item = usize;
    type IntoIter = Queues;

    fn into_iter(self) -> Queues {
        Queues(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(set: QueueSet) -> Vec<usize> {
        set.into_iter().collect()
    }

    #[test]
    fn set_has_the_queues_that_were_put_in_up_to_the_last() {
        let mut set = QueueSet::one(63);
        set.set(0, true);
        set |= QueueSet::one(5);
        assert_eq!(numbers(set), [0, 5, 63]);
        assert_eq!(numbers(set.and(QueueSet::first(6))), [0, 5]);
        assert_eq!(numbers(set.without(QueueSet::first(6))), [63]);
        set.set(5, false);
        assert!(set.contains(0) && !set.contains(5) && set.contains(63));
        assert_eq!(numbers(QueueSet::first(64)).len(), 64);
        assert!(QueueSet::first(0).is_empty() && numbers(QueueSet::EMPTY).is_empty());
    }
}
