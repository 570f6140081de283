//! All campaigns of one invocation, and what they came to.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Flushes, Killed, Kind, Outcome, Result, Tally, cuts, kills};

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
    /// What the random choices followed from.
    pub seed: u64,
    /// How often.
    pub deaths: u32,
    /// Over all streams.
    #[serde(flatten)]
    pub tally: Tally,
    /// How many streams.
    pub streams: usize,
    /// From a death until the stream flowed again.
    pub stalls: Option<Stalls>,
    /// All of it.
    pub seconds: u64,
}

/// How long streams stood still.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Stalls {
    /// The one in the middle.
    pub median_ms: u128,
    /// The longest one.
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
