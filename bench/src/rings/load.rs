//! Loads of many rings: how much they get through in all, and how evenly.

use crate::error::Result;
use crate::machine::{median, nanoseconds, quantile};
use crate::requests::{Plan, WARM_UP};
use crate::rings::copy::Copies;
use crate::rings::daemon::Server;
use crate::rings::figures::{Rate, Share};
use crate::rings::front::{DEPTH, Front, Load, Round, round};
use crate::rounds::Rounds;

/// Bytes of requests whose rate is measured.
const SIZES: [u32; 2] = [512, 4096];

/// Rings that are busy at once, before all of them are.
const ACTIVE: [usize; 3] = [1, 10, 100];

/// Rings that share a thread evenly, and those of them that may be busier.
const SHARING: usize = 100;
const BUSIER: usize = 10;

const ONE: Load = Load { bytes: 512, depth: 1, refused: false, timed: true };
const MANY: Load = Load { bytes: 512, depth: DEPTH, refused: false, timed: false };
const REFUSED: Load = Load { refused: true, ..MANY };

/// What the first rings do beside the others, which have one request at a time.
const BESIDE: [(&str, Load); 3] = [
    (Share::QUIET, ONE),
    ("10 rings with 32 at once", MANY),
    ("10 rings with 32 refused at once", REFUSED),
];

/// Rates of one round of each kind.
struct Sample {
    /// A daemon of one ring.
    single: f64,
    /// By the number of active rings: copies alone, and writes.
    by_active: Vec<(f64, Round)>,
}

/// Measures rates in rounds in turns. `single` is the front end of a daemon of one ring.
pub fn rates(
    many: &mut Side<'_>,
    single: &mut Side<'_>,
    copies: &mut Copies,
    plan: &Plan,
) -> Result<Vec<Rate>> {
    let (all, rounds) = (many.fronts.len(), plan.rounds);
    let some = ACTIVE.into_iter().filter(|active| *active < all);
    let active: Vec<_> = some.chain([all]).collect();
    let mut rates = Vec::new();
    for bytes in SIZES {
        let load = |_| Load { bytes, ..MANY };
        let samples = rounds.each(|| {
            let single = single.round(1, rounds, load)?.rate;
            let by_active = active.iter().map(|&active| {
                let copies = copies.rate(plan.processors, active, bytes, rounds.time)?;
                Ok((copies, many.round(active, rounds, load)?))
            });
            Ok(Sample { single, by_active: by_active.collect::<Result<_>>()? })
        })?;
        for (index, &active) in active.iter().enumerate() {
            let of = |value: &dyn Fn(&Sample, f64, Round) -> f64| {
                let value = |sample: &Sample| {
                    let (alone, round) = sample.by_active[index];
                    value(sample, alone, round)
                };
                median(&mut samples.iter().map(value).collect::<Vec<_>>())
            };
            rates.push(Rate {
                bytes,
                active,
                per_second: of(&|_, _, round| round.rate),
                of_one: of(&|sample, _, round| round.rate / sample.by_active[0].1.rate),
                of_single: of(&|sample, _, round| round.rate / sample.single),
                of_copies: of(&|_, alone, round| round.rate / alone),
                copies_of_one: of(&|sample, alone, _| alone / sample.by_active[0].0),
                processor: of(&|_, _, round| round.processor),
                kicks: of(&|_, _, round| round.kicks),
                waited: of(&|_, _, round| round.waited),
            });
        }
    }
    Ok(rates)
}

/// A daemon, and the front ends of its rings.
pub struct Side<'a> {
    /// The daemon.
    pub server: &'a Server,
    /// The front ends.
    pub fronts: &'a mut [Front],
}

impl Side<'_> {
    /// Runs a round of the first `active` rings, after a short one that fills the caches.
    fn round(
        &mut self,
        active: usize,
        rounds: Rounds,
        load: impl Fn(usize) -> Load,
    ) -> Result<Round> {
        let fronts = &mut self.fronts[..active];
        round(fronts, WARM_UP, &load)?;
        for front in fronts.iter_mut() {
            front.times.clear();
        }
        let before = self.server.serving_time()?;
        let mut found = round(fronts, rounds.time, load)?;
        let spent = self.server.serving_time()?.saturating_sub(before);
        found.processor = nanoseconds(spent) / found.requests;
        Ok(found)
    }
}

/// Times at one ring, in nanoseconds.
struct Times {
    p50: f64,
    p99: f64,
}

/// A figure of a round: from its times, those of the round in which all rings are alike, and the
/// round itself.
type Figure<'a> = &'a dyn Fn(&[Times], &[Times], &Round) -> f64;

/// Measures how evenly a thread serves rings, in rounds in turns.
pub fn shares(many: &mut Side<'_>, rounds: Rounds) -> Result<Vec<Share>> {
    let sharing = SHARING.min(many.fronts.len());
    let busier = BUSIER.min(sharing / 2);
    let samples = rounds.each(|| {
        let kinds = BESIDE.iter().map(|(_, first)| {
            let load = |number| if number < busier { *first } else { ONE };
            let round = many.round(sharing, rounds, load)?;
            let times = many.fronts[busier..sharing].iter_mut().map(|front| Times {
                p50: quantile(&mut front.times, 0.5),
                p99: quantile(&mut front.times, 0.99),
            });
            Ok((times.collect::<Vec<_>>(), round))
        });
        kinds.collect::<Result<Vec<_>>>()
    })?;
    let share = |(kind, (beside, _)): (usize, &(&'static str, Load))| {
        let of = |value: Figure<'_>| {
            let value = |sample: &Vec<(Vec<Times>, Round)>| {
                let (times, round) = &sample[kind];
                value(times, &sample[0].0, round)
            };
            median(&mut samples.iter().map(value).collect::<Vec<_>>())
        };
        let p99 = |times: &[Times]| middle(times, |times| times.p99);
        Share {
            beside,
            p50: of(&|times, _, _| middle(times, |times| times.p50)),
            p99: of(&|times, _, _| p99(times)),
            worst: of(&|times, _, _| worst(times) / p99(times)),
            times_quiet: of(&|times, quiet, _| p99(times) / p99(quiet)),
            rate: of(&|_, _, round| round.rate),
            kicks: of(&|_, _, round| round.kicks),
            processor: of(&|_, _, round| round.processor),
        }
    };
    Ok(BESIDE.iter().enumerate().map(share).collect())
}

/// Returns a figure of the median ring.
fn middle(times: &[Times], of: impl Fn(&Times) -> f64) -> f64 {
    median(&mut times.iter().map(of).collect::<Vec<_>>())
}

fn worst(times: &[Times]) -> f64 {
    times.iter().map(|times| times.p99).fold(0.0, f64::max)
}
