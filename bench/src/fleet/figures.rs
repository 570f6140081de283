//! Figures of a fleet.

use super::plan::{FAILURE, Plan, SECOND, Time};
use serde::Serialize;

/// A fleet at one second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Sample {
    pub second: u64,
    /// Items that were delivered so far.
    pub delivered: u64,
    pub in_rings: u64,
    /// Items that wait at their producers.
    pub waiting: u64,
    /// Rings without room.
    pub full: usize,
    /// Fullness of the median ring, of the ring that all but a hundredth do not exceed, and of the
    /// fullest.
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
    /// Hosts with a connection.
    pub connected: usize,
    /// Connections that were made in this second.
    pub connections: u64,
}

/// All seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Samples {
    pub seconds: Vec<Sample>,
    /// Batches that were refused because a stream had too many open ones.
    pub refused: u64,
    /// Batches that were sent twice.
    pub repeated: u64,
    /// When a producer was first seen to wait, in microseconds.
    pub first_full: Option<Time>,
    /// Rings without room at any time.
    pub ever_full: usize,
    /// Rings by their fullness, in thousandths.
    #[serde(skip)]
    by_fullness: Vec<u64>,
}

impl Samples {
    pub fn clear(&mut self) {
        self.by_fullness = vec![0; 1001];
    }

    pub fn note(&mut self, fullness: f64) {
        self.by_fullness[(fullness * 1000.0).ceil() as usize] += 1;
    }

    /// Returns the median, the 99th percentile and the maximum of what was noted.
    pub fn fullness(&self) -> [f64; 3] {
        let all: u64 = self.by_fullness.iter().sum();
        [all.div_ceil(2), all - all / 100, all].map(|wanted| {
            let mut seen = 0;
            let at = self.by_fullness.iter().position(|&rings| {
                seen += rings;
                seen >= wanted
            });
            at.unwrap_or(0) as f64 / 1000.0
        })
    }

    pub fn add(&mut self, sample: Sample) {
        self.seconds.push(sample);
    }

    /// Returns the samples of the failure and of the time after it.
    fn since_failure(&self) -> impl Iterator<Item = &Sample> {
        self.seconds.iter().filter(|sample| sample.second * SECOND > FAILURE)
    }

    /// Returns the fullest moment of all rings.
    pub fn peak(&self) -> Sample {
        let fullest =
            |a: &&Sample, b: &&Sample| (a.in_rings + a.waiting).cmp(&(b.in_rings + b.waiting));
        self.since_failure().max_by(fullest).copied().unwrap_or_default()
    }

    /// Returns the connections in the busiest second.
    pub fn busiest(&self) -> u64 {
        self.seconds.iter().map(|sample| sample.connections).max().unwrap_or(0)
    }

    /// Returns the seconds from the end of the failure until no more waits than before it, but for
    /// the items of a second: forwarders look at the same time after a failure.
    pub fn drained(&self, plan: &Plan) -> Option<u64> {
        let end = plan.failure_end() / SECOND;
        let backlog = |sample: &Sample| sample.in_rings + sample.waiting;
        let before = |sample: &&Sample| (30..=FAILURE / SECOND).contains(&sample.second);
        let usual = self.seconds.iter().filter(before).map(backlog).max().unwrap_or(0);
        let limit = usual + plan.all_items() as u64;
        let rest = || self.seconds.iter().filter(|sample| sample.second >= end);
        let last = rest().rfind(|sample| backlog(sample) > limit);
        match last {
            None => Some(0),
            Some(last) if Some(last) == self.seconds.last() => None,
            Some(last) => Some(last.second + 1 - end),
        }
    }

    /// Returns the items that were delivered in the busiest second.
    pub fn fastest(&self) -> u64 {
        let pairs = self.seconds.windows(2);
        pairs.map(|pair| pair[1].delivered - pair[0].delivered).max().unwrap_or(0)
    }
}
