//! A ring and its producer.

use super::plan::{BURST, Plan, Time};

/// A ring whose producer has items in bursts of the same length and distance. What is due by when
/// follows from the time alone: a ring has no events of its own.
#[derive(Debug, Clone)]
pub struct Ring {
    /// Where in its period the ring is at the start.
    phase: Time,
    /// Time within bursts before the start.
    before: Time,
    /// Items that were freed.
    freed: u64,
    /// Items that were sent and are not acknowledged.
    flight: u64,
    /// When the producer was first seen to find no room.
    first_full: Option<Time>,
    /// The forwarder sends nothing of it before that.
    pub not_before: Time,
    /// Times in a row that the stream took nothing of it.
    pub failures: u32,
}

impl Ring {
    /// Makes an empty ring with that phase of its bursts.
    pub fn new(plan: &Plan, phase: Time) -> Self {
        let before = busy_time(plan, phase);
        Self { phase, before, freed: 0, flight: 0, first_full: None, not_before: 0, failures: 0 }
    }

    /// Returns the number of items that the producer has had by then.
    pub fn due(&self, plan: &Plan, now: Time) -> u64 {
        let busy = busy_time(plan, self.phase + now) - self.before;
        // Thousandths of an item a second, and microseconds.
        let rate = plan.milli_rate * plan.burst;
        let due = |busy: Time| u128::from(busy) * u128::from(rate) / 1_000_000_000;
        let quick = busy.checked_mul(rate).map(|due| due / 1_000_000_000);
        quick.unwrap_or_else(|| u64::try_from(due(busy)).unwrap_or(u64::MAX))
    }

    /// Returns the items in the ring, and those that wait at the producer for room.
    pub fn backlog(&self, plan: &Plan, now: Time) -> (u64, u64) {
        let all = self.due(plan, now) - self.freed;
        let used = all.min(plan.capacity());
        (used, all - used)
    }

    /// Takes what a turn of the forwarder takes, at most one batch. Returns its number.
    pub fn send(&mut self, plan: &Plan, now: Time) -> u64 {
        let (used, waiting) = self.backlog(plan, now);
        if waiting > 0 && self.first_full.is_none() {
            self.first_full = Some(now);
        }
        self.flight = used.min(plan.batch_items());
        self.flight
    }

    /// Returns the items of the last [`send`](Self::send) that are not acknowledged.
    pub fn flight(&self) -> u64 {
        self.flight
    }

    /// Frees what was sent. Returns its number.
    pub fn acknowledge(&mut self) -> u64 {
        self.freed += self.flight;
        self.failures = 0;
        std::mem::take(&mut self.flight)
    }

    /// Forgets that anything was sent: it did not arrive.
    pub fn take_back(&mut self) {
        self.flight = 0;
    }

    /// Notes that the producer waits, and since when it was seen to.
    pub fn look(&mut self, now: Time) {
        self.first_full.get_or_insert(now);
    }

    /// Returns when the producer was first seen to wait.
    pub fn first_full(&self) -> Option<Time> {
        self.first_full
    }

    /// Returns the number of items that were freed.
    pub fn freed(&self) -> u64 {
        self.freed
    }
}

/// Returns the time within bursts since the start of a period.
fn busy_time(plan: &Plan, time: Time) -> Time {
    let period = BURST * plan.burst;
    time / period * BURST + (time % period).min(BURST)
}
