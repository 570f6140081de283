//! The memory for items in flight, shared fairly by all rings.

/// Bytes that are in flight, and the most that may be.
///
/// A ring may take half of what is free beyond what it has already. So a ring whose items do not
/// arrive gets half of the memory at most, a second one half of the rest, and there is always some
/// left for the others. What is not taken stays in the ring.
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

    pub fn used(&self) -> u64 {
        self.used
    }

    /// Returns the bytes that a ring with `own` bytes in flight may take now.
    pub fn allowance(&self, own: u64) -> u64 {
        let free = self.limit.saturating_sub(self.used);
        free.saturating_sub(own) / 2
    }

    /// Returns whether a ring with `own` bytes in flight may take a batch of `cost` bytes that
    /// cannot be smaller: a single item. A ring that has nothing in flight may use all that is
    /// free. An item that is larger than the limit goes when nothing else is in flight: otherwise
    /// it could never.
    pub fn admits(&self, own: u64, cost: u64) -> bool {
        let free = self.limit.saturating_sub(self.used);
        cost <= self.allowance(own) || (own == 0 && cost <= free) || self.used == 0
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

    /// Takes all that a ring gets, in batches of `cost` bytes.
    fn fill(memory: &mut Memory, cost: u64) -> u64 {
        let mut own = 0;
        while memory.admits(own, cost) {
            memory.take(cost);
            own += cost;
        }
        own
    }

    #[test]
    fn ring_that_takes_all_it_gets_leaves_some_for_others() {
        let mut memory = Memory::new(64 << 20);
        for rings in 1..=20 {
            assert!(fill(&mut memory, 64 << 10) > 0, "ring {rings} gets nothing");
            assert!(memory.used() <= 64 << 20);
        }
    }

    #[test]
    fn item_larger_than_the_limit_goes_alone() {
        let mut memory = Memory::new(1000);
        assert!(memory.admits(0, 5000));
        memory.take(1);
        assert!(!memory.admits(0, 5000) && memory.admits(0, 999) && !memory.admits(1, 999));
        memory.give_back(1);
        assert!(memory.admits(0, 5000));
    }
}
