//! All campaigns of one invocation, and what they came to.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Evidence, Flushes, Kind, Result, Tally, Workshop, cuts, kills};

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What dies, and how often.
    pub deaths: Vec<(Kind, u32)>,
    /// All random choices follow from it.
    pub seed: u64,
    /// Streams at a time.
    pub jobs: usize,
    /// Of the disk whose power is cut.
    pub flushes: Flushes,
}

/// What one campaign came to.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What died.
    pub campaign: String,
    /// How often.
    pub deaths: u32,
    /// Over all streams.
    #[serde(flatten)]
    pub tally: Tally,
    /// How many streams.
    pub streams: usize,
    /// From a death until the stream flowed again, middle and longest.
    pub stall_median_ms: u64,
    /// The longest.
    pub stall_longest_ms: u64,
    /// All of it.
    pub seconds: u64,
}

impl Report {
    fn new(kind: Kind, deaths: u32, streams: &[Evidence], time: Duration) -> Self {
        let tally = streams.iter().fold(Tally::default(), |sum, stream| sum.plus(stream.tally));
        let mut stalls: Vec<_> = streams.iter().flat_map(|stream| &stream.stalls).collect();
        stalls.sort_unstable();
        let millis = |stall: Option<&&Duration>| {
            stall.map_or(0, |stall| u64::try_from(stall.as_millis()).unwrap_or(u64::MAX))
        };
        Self {
            campaign: kind.to_string(),
            deaths,
            tally,
            streams: streams.len(),
            stall_median_ms: millis(stalls.get(stalls.len() / 2)),
            stall_longest_ms: millis(stalls.last()),
            seconds: time.as_secs(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { campaign, deaths, tally, streams, seconds, .. } = self;
        let Tally { acknowledged, delivered, repeated, visible, invisible, taken_back } = tally;
        write!(
            f,
            "{campaign:<8} {deaths:>4} in {streams} streams, {seconds} s: {acknowledged} items acknowledged, {delivered} delivered, \
             {repeated} repeated; of batches under way {visible} were visible, {invisible} were not; stall {} ms, at most {} ms",
            self.stall_median_ms, self.stall_longest_ms
        )?;
        if *taken_back > 0 {
            write!(f, "; {taken_back} unacknowledged items taken back by a cut")?;
        }
        Ok(())
    }
}

/// Runs the campaigns one after the other; ends with the first that fails.
pub fn run(
    plan: &Plan,
    progress: &(dyn Fn(Kind, u32, u32) + Sync),
    mut report: impl FnMut(&Report),
) -> std::result::Result<(), (Kind, super::Failure)> {
    for &(kind, deaths) in plan.deaths.iter().filter(|(_, deaths)| *deaths > 0) {
        let start = Instant::now();
        let so_far = AtomicU32::new(0);
        let killed = || progress(kind, so_far.fetch_add(1, Ordering::Relaxed) + 1, deaths);
        let workshop = Workshop { killed: &killed };
        let streams = campaign(kind, deaths, plan, &workshop).map_err(|failure| (kind, failure))?;
        report(&Report::new(kind, deaths, &streams, start.elapsed()));
    }
    Ok(())
}

fn campaign(
    kind: Kind,
    deaths: u32,
    plan: &Plan,
    workshop: &Workshop<'_>,
) -> Result<Vec<Evidence>> {
    match kind {
        Kind::Cuts => cuts::run(deaths, plan.seed, plan.jobs, plan.flushes, workshop),
        _ => kills::run(kind, deaths, plan.seed, plan.jobs, workshop),
    }
}
