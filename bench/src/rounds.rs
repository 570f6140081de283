//! Rounds: short, and in turns, since the machine's other load changes within seconds.

use crate::error::Result;
use crate::machine::{Processors, line_round_trip, median};
use std::time::{Duration, Instant};

/// Longest round trip of a cache line that counts as near, in nanoseconds: beyond it processors
/// share no cache, and the line is all that is measured.
pub const NEAR: f64 = 150.0;

/// Number of near rounds that suffices to leave out the others.
const ENOUGH: usize = 3;

/// Length and number of rounds.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Number of rounds of each kind.
    pub count: u32,
    /// Length of each round.
    pub time: Duration,
}

impl Rounds {
    /// Runs all rounds, and returns their figures.
    pub fn each<T>(self, round: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        std::iter::repeat_with(round).take(self.count as usize).collect()
    }

    /// Runs one round of steps, each of which returns how many operations it has done. Returns the
    /// operations per second.
    pub fn one(self, mut step: impl FnMut() -> Result<usize>) -> Result<f64> {
        let start = Instant::now();
        let (mut done, mut passed) = (0, Duration::ZERO);
        while passed < self.time {
            done += step()?;
            passed = start.elapsed();
        }
        Ok(done as f64 / passed.as_secs_f64())
    }
}

/// Runs all rounds with the round trip of a cache line beside each, in nanoseconds: the worse of
/// before and after.
pub fn beside_line<T>(cpus: Processors, round: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = line_round_trip(cpus)?;
    let found = round()?;
    Ok((found, before.max(line_round_trip(cpus)?)))
}

/// The rounds that count, and whether they were near.
pub struct Counted<'a, T> {
    /// Chooses the rounds with a near line where there are enough of them, otherwise all.
    pub rounds: Vec<&'a T>,
    /// Whether those rounds are near.
    pub near: bool,
}

impl<'a, T> Counted<'a, T> {
    /// Chooses among these rounds, each with its line.
    pub fn of(all: &'a [T], line: impl Fn(&T) -> f64) -> Self {
        let near: Vec<_> = all.iter().filter(|round| line(round) <= NEAR).collect();
        if near.len() >= ENOUGH.min(all.len()) {
            Self { rounds: near, near: true }
        } else {
            Self { rounds: all.iter().collect(), near: false }
        }
    }

    /// Returns the median of a figure that rounds may have.
    pub fn of_some(&self, value: impl Fn(&T) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<_> = self.rounds.iter().filter_map(|round| value(round)).collect();
        (!values.is_empty()).then(|| median(&mut values))
    }

    /// Returns the median of a figure that every round has.
    pub fn median(&self, value: impl Fn(&T) -> f64) -> f64 {
        self.of_some(|round| Some(value(round))).unwrap_or(f64::NAN)
    }
}
