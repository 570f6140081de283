//! All campaigns of one invocation, and their outcomes.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Flushes, Killed, Kind, Outcome, Result, Tally, cuts, kills};

/// Settings of the campaigns.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Victims, and the number of kills of each.
    pub deaths: Vec<(Kind, u32)>,
    /// Seed of all random choices.
    pub seed: u64,
    /// Streams at a time.
    pub jobs: usize,
    /// Flushes of the disk whose power is cut.
    pub flushes: Flushes,
}

/// Outcome of one campaign.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The victim.
    pub campaign: String,
    /// Seed of the random choices.
    pub seed: u64,
    /// Number of kills.
    pub deaths: u32,
    /// Counts of all streams.
    #[serde(flatten)]
    pub tally: Tally,
    /// Number of streams.
    pub streams: usize,
    /// Time from a death until the stream went on.
    pub stalls: Option<Stalls>,
    /// Duration of the campaign.
    pub seconds: u64,
}

/// Interruptions of streams.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stalls {
    /// The median.
    pub median_ms: u128,
    /// The longest.
    pub longest_ms: u128,
}

impl Stalls {
    fn of(streams: &[Outcome]) -> Option<Self> {
        let mut all: Vec<_> = streams.iter().flat_map(|stream| &stream.stalls).collect();
        all.sort_unstable();
        let median_ms = all.get(all.len() / 2)?.as_millis();
        Some(Self { median_ms, longest_ms: all.last()?.as_millis() })
    }
}

impl Report {
    fn new(kind: Kind, seed: u64, deaths: u32, streams: &[Outcome], time: Duration) -> Self {
        let tally = streams.iter().fold(Tally::default(), |sum, stream| sum.plus(stream.tally));
        Self {
            campaign: kind.to_string(),
            seed,
            deaths,
            tally,
            streams: streams.len(),
            stalls: Stalls::of(streams),
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
            "{campaign:<8} {deaths:>4} in {streams} streams, {seconds} s: \
             {acknowledged} items acknowledged, {delivered} delivered, {repeated} repeated; \
             of batches under way {visible} were visible, {invisible} were not"
        )?;
        if let Some(Stalls { median_ms, longest_ms }) = self.stalls {
            write!(f, "; stalls {median_ms} ms in the middle, at most {longest_ms} ms")?;
        }
        if *taken_back > 0 {
            write!(f, "; {taken_back} unacknowledged items taken back by a cut")?;
        }
        Ok(())
    }
}

/// Runs the campaigns one after the other, up to the first that fails.
pub fn run(
    plan: &Plan,
    progress: &(dyn Fn(Kind, u32, u32) + Sync),
    mut report: impl FnMut(&Report),
) -> std::result::Result<(), (Kind, super::Failure)> {
    for &(kind, deaths) in plan.deaths.iter().filter(|(_, deaths)| *deaths > 0) {
        let start = Instant::now();
        let so_far = AtomicU32::new(0);
        let killed = || progress(kind, so_far.fetch_add(1, Ordering::Relaxed) + 1, deaths);
        let streams = campaign(kind, deaths, plan, &killed).map_err(|failure| (kind, failure))?;
        report(&Report::new(kind, plan.seed, deaths, &streams, start.elapsed()));
    }
    Ok(())
}

fn campaign(kind: Kind, deaths: u32, plan: &Plan, killed: Killed<'_>) -> Result<Vec<Outcome>> {
    match kind {
        Kind::Cuts => cuts::run(deaths, plan.seed, plan.jobs, plan.flushes, killed),
        _ => kills::run(kind, deaths, plan.seed, plan.jobs, killed),
    }
}
