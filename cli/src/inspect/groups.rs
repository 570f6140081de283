//! Items for a picture: each by itself while they are few, in groups of equal length otherwise.

/// Items that are drawn one by one at most. A picture of more shows groups.
pub const MOST_ITEMS: usize = 400;

/// Groups in a picture, of two of its pixels each.
pub const GROUPS: usize = 430;

/// A part of the published bytes, in the stream's order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Part {
    /// Bytes of the part.
    pub bytes: u64,
    /// Items that begin in it.
    pub items: u64,
}

/// The items between two positions. Its memory does not grow with their number.
#[derive(Debug)]
pub struct Items {
    start: u64,
    end: u64,
    /// Bytes in front of the first item that were freed while the ring was read.
    freed: u64,
    /// The first items' lengths, up to the number that is drawn.
    first: Vec<u64>,
    /// Items that begin in each group.
    groups: Vec<u64>,
    count: u64,
    /// The end of the last item.
    reached: u64,
}

impl Items {
    pub fn new(start: u64, end: u64) -> Self {
        let (first, groups) = (Vec::new(), vec![0; GROUPS]);
        Self { start, end, freed: 0, first, groups, count: 0, reached: start }
    }

    /// Adds the next item, which lies in `at..next`.
    pub fn add(&mut self, at: u64, next: u64) {
        if self.first.len() <= MOST_ITEMS {
            self.first.push(next - at);
        }
        let group = self.group(at);
        self.groups[group] += 1;
        self.count += 1;
        self.reached = next;
    }

    /// Forgets the items before `position`, which were freed meanwhile.
    pub fn free(&mut self, position: u64) {
        *self = Self {
            freed: position - self.start,
            reached: position,
            ..Self::new(self.start, self.end)
        };
    }

    fn group(&self, at: u64) -> usize {
        let (offset, length) = (u128::from(at - self.start), u128::from(self.end - self.start));
        let group = offset * GROUPS as u128 / length.max(1);
        usize::try_from(group).unwrap_or(GROUPS).min(GROUPS - 1)
    }

    /// Returns the number of items.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the bytes in front of the first item that were freed meanwhile.
    pub fn freed(&self) -> u64 {
        self.freed
    }

    /// Returns the bytes behind the last item, which hold no sound one.
    pub fn broken(&self) -> u64 {
        self.end - self.reached
    }

    /// Returns whether the parts are single items.
    pub fn are_single(&self) -> bool {
        self.first.len() <= MOST_ITEMS
    }

    /// Returns the parts between what was freed and what is broken: the items, or groups of them.
    pub fn parts(&self) -> Vec<Part> {
        if self.are_single() {
            return self.first.iter().map(|&bytes| Part { bytes, items: 1 }).collect();
        }
        let length = u128::from(self.end - self.start);
        let bound = |group: usize| {
            let at = (length * group as u128).div_ceil(GROUPS as u128);
            let at = self.start + u64::try_from(at).unwrap_or(u64::MAX);
            at.clamp(self.start + self.freed, self.reached)
        };
        let part =
            |(group, &items): (usize, &u64)| Part { bytes: bound(group + 1) - bound(group), items };
        let parts = self.groups.iter().enumerate().map(part);
        parts.filter(|part| part.bytes > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(items: &Items) -> (u64, u64) {
        let parts = items.parts();
        (parts.iter().map(|part| part.bytes).sum(), parts.iter().map(|part| part.items).sum())
    }

    #[test]
    fn items_are_single_while_they_are_few_and_groups_beyond() {
        let mut items = Items::new(1000, 1000 + 100 * 5000);
        for index in 0..5000 {
            items.add(1000 + index * 100, 1100 + index * 100);
            let reached = 100 * (index + 1);
            assert_eq!(sums(&items), (reached, index + 1));
            assert_eq!(items.are_single(), index < MOST_ITEMS as u64);
            assert_eq!(items.freed() + reached + items.broken(), 100 * 5000);
        }
        assert!(items.parts().len() <= GROUPS);
    }

    #[test]
    fn items_that_were_freed_meanwhile_are_no_parts() {
        let mut items = Items::new(0, 100_000);
        for index in 0..600 {
            items.add(index * 100, index * 100 + 100);
        }
        items.free(70_000);
        assert_eq!((items.freed(), items.broken(), items.count()), (70_000, 30_000, 0));
        for index in 700..1000 {
            items.add(index * 100, index * 100 + 100);
        }
        assert_eq!(sums(&items), (30_000, 300));
        assert_eq!(items.broken(), 0);
    }

    #[test]
    fn items_of_an_empty_ring_are_no_parts() {
        assert_eq!(sums(&Items::new(8, 8)), (0, 0));
    }
}
