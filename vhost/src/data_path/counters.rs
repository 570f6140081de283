//! The backend's counters: each written by one thread, read by any.

use crate::data_path::guard::Reason;
use ring_metrics::Histogram;
use serde_json::{Map, Value};
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        // A single writer: a plain addition, without a locked instruction on the data path.
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// The present value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counters since the daemon started.
#[derive(Debug, Default)]
pub struct Counters {
    /// READ requests answered, held ones included.
    pub reads: Counter,
    /// WRITE requests that changed or confirmed the region.
    pub writes: Counter,
    /// FLUSH requests whose data is durable.
    pub flushes: Counter,
    /// Requests that failed because of the medium or of guest memory.
    pub failed: Counter,
    /// Bytes read by the guest.
    pub read_bytes: Counter,
    /// Bytes written by the guest.
    pub written_bytes: Counter,
    /// New positions published.
    pub published: Counter,
    /// READ requests that were held.
    pub held: Counter,
    /// Times that a sleeping process on the host was woken.
    pub wakeups: Counter,
    /// Times that the ring rested because a limit was used up.
    pub rests: Counter,
    /// Times that a queue was broken: rings outside guest memory, or indices out of bounds.
    pub broken: Counter,
    /// Front ends served.
    pub connections: Counter,
    /// Front ends that have left.
    pub departures: Counter,
    /// Clients of the consumer socket that were refused.
    pub turned_away: Counter,
    /// Suspends that clients of the consumer socket have asked for.
    pub suspends: Counter,
    /// The time of each flush of the region.
    pub flush_time: Histogram,
    /// Flushes that have failed.
    pub flush_failures: Counter,
    /// The queues' thread's time for a request, see [`Poller`](crate::data_path::polling::Poller).
    pub service_time: Histogram,
    refused: [Counter; Reason::ALL.len()],
}

impl Counters {
    /// Counts a refusal.
    pub fn refuse(&self, reason: Reason) {
        self.refused[reason.index()].count();
    }

    /// The number of refusals for one reason.
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason.index()].get()
    }

    /// Whether a front end is connected.
    pub fn has_front_end(&self) -> bool {
        // Departures first: a front end that comes between the two loads counts as connected.
        let departures = self.departures.get();
        self.connections.get() > departures
    }

    /// Returns the counters as one JSON object. `served` is the sum of answered requests, `refused`
    /// has a number for each reason that occurred.
    pub fn to_json(&self) -> Value {
        let refused: Map<String, Value> = Reason::ALL
            .into_iter()
            .filter(|&reason| self.refused(reason) > 0)
            .map(|reason| (reason.to_string(), self.refused(reason).into()))
            .collect();
        serde_json::json!({
            "served": self.reads.get() + self.writes.get() + self.flushes.get(),
            "reads": self.reads.get(),
            "writes": self.writes.get(),
            "flushed": self.flushes.get(),
            "failed": self.failed.get(),
            "read_bytes": self.read_bytes.get(),
            "written_bytes": self.written_bytes.get(),
            "published": self.published.get(),
            "held": self.held.get(),
            "wakeups": self.wakeups.get(),
            "rests": self.rests.get(),
            "broken": self.broken.get(),
            "connections": self.connections.get(),
            "front_end_connected": self.has_front_end(),
            "turned_away": self.turned_away.get(),
            "suspends": self.suspends.get(),
            "flush_failures": self.flush_failures.get(),
            "refused": refused,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_separately() {
        let counters = Counters::default();
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            (0..times).for_each(|_| counters.refuse(reason));
        }
        for (times, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(counters.refused(reason), times as u64);
        }
        assert_eq!(counters.to_json()["refused"]["buffered_page"], 2);
    }
}
