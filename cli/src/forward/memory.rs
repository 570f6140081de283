//! The memory for items in flight, shared fairly by all rings.

/// Bytes that are in flight, and the most that may be.
///
/// Half of the memory is shared out: each ring may have its part of it in flight, whatever the
/// others do. Of the other half a ring may take half of what is free beyond what it has already:
/// few busy rings get much, and one whose items do not arrive leaves some for the next. What is not
/// taken stays in the ring.
#[derive(Debug)]
pub struct Memory {
    limit: u64,
    used: u64,
}

impl Memory {
    pub fn new(limit: u64) -> Self {
        Self { limit, used: 0 }
    }

    /// Sets another limit. What is in flight stays.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    pub fn limit(&self) -> u64 {
        self.limit
    }

    pub fn used(&self) -> u64 {
        self.used
    }

    /// Returns the bytes that one of `rings` rings, with `own` bytes in flight, may take now.
    pub fn allowance(&self, own: u64, rings: usize) -> u64 {
        let half = self.limit / 2;
        let part = half / (rings as u64).max(1);
        let common = half.saturating_sub(self.used).saturating_sub(own) / 2;
        common.max(part.saturating_sub(own)).min(self.free())
    }

    /// Returns whether such a ring may take a batch of `cost` bytes that cannot be smaller: a
    /// single item. A ring that has nothing in flight may use all that is free. An item that is
    /// larger than the limit goes when nothing else is in flight: otherwise it could never.
    pub fn admits(&self, own: u64, rings: usize, cost: u64) -> bool {
        cost <= self.allowance(own, rings) || (own == 0 && cost <= self.free()) || self.used == 0
    }

    fn free(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    pub fn take(&mut self, cost: u64) {
        self.used += cost;
    }

    pub fn give_back(&mut self, cost: u64) {
        self.used -= cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes all that one of `rings` rings gets, in batches of `cost` bytes.
    fn fill(memory: &mut Memory, rings: usize, cost: u64) -> u64 {
        let mut own = 0;
        while memory.admits(own, rings, cost) {
            memory.take(cost);
            own += cost;
        }
        own
    }

    #[test]
    fn rings_that_take_all_they_get_leave_each_other_its_part() {
        for rings in [1, 2, 20, 500] {
            let (limit, cost) = (64 << 20, 4 << 10);
            let mut memory = Memory::new(limit);
            let part = limit / 2 / rings as u64;
            for ring in 1..=rings {
                let own = fill(&mut memory, rings, cost);
                assert!(own + cost > part, "ring {ring} of {rings} has {own}");
                assert!(memory.used() <= limit);
            }
        }
    }

    #[test]
    fn few_busy_rings_among_many_get_more_than_their_part() {
        let limit = 64 << 20;
        let own = fill(&mut Memory::new(limit), 1000, 64 << 10);
        assert!(own >= limit / 8, "{own}");
    }

    #[test]
    fn item_larger_than_the_limit_goes_alone() {
        let mut memory = Memory::new(1000);
        assert!(memory.admits(0, 2, 5000));
        memory.take(1);
        assert!(!memory.admits(0, 2, 5000));
        assert!(memory.admits(0, 2, 999) && !memory.admits(1, 2, 999));
        memory.give_back(1);
        assert!(memory.admits(0, 2, 5000));
    }
}
