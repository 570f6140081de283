//! Rounds: short ones in turns, since what else the machine does changes within seconds.

use crate::error::Result;
use crate::machine::{Processors, line_round_trip, median};
use std::time::{Duration, Instant};

/// Round trips of a cache line up to this count as near, nanoseconds: beyond it processors share no cache, and the line is all
/// that is measured.
pub const NEAR: f64 = 150.0;

/// Near rounds that are enough to leave the others out.
const ENOUGH: usize = 3;

/// How long, how often.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Of each kind.
    pub count: u32,
    /// Of each.
    pub time: Duration,
}

impl Rounds {
    /// What each round brings.
    pub fn each<T>(self, round: impl FnMut() -> Result<T>) -> Result<Vec<T>> {
        std::iter::repeat_with(round).take(self.count as usize).collect()
    }

    /// One round of steps, each of which tells how many it has done; so many in a second.
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

/// The same, with what a cache line costs meanwhile: there and back, nanoseconds, the worse of before and after.
pub fn beside_line<T>(cpus: Processors, round: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = line_round_trip(cpus)?;
    let found = round()?;
    Ok((found, before.max(line_round_trip(cpus)?)))
}

/// The rounds that count, and whether they were near.
pub struct Counted<'a, T> {
    /// Those with a near line where there are enough of them, else all.
    pub rounds: Vec<&'a T>,
    /// Whether they are such.
    pub near: bool,
}

impl<'a, T> Counted<'a, T> {
    /// Of these, each with its line.
    pub fn of(all: &'a [T], line: impl Fn(&T) -> f64) -> Self {
        let near: Vec<_> = all.iter().filter(|round| line(round) <= NEAR).collect();
        if near.len() >= ENOUGH.min(all.len()) {
            Self { rounds: near, near: true }
        } else {
            Self { rounds: all.iter().collect(), near: false }
        }
    }

    /// The median of a figure that rounds may have.
    pub fn of_some(&self, value: impl Fn(&T) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<_> = self.rounds.iter().filter_map(|round| value(round)).collect();
        (!values.is_empty()).then(|| median(&mut values))
    }

    /// The median of a figure that every round has.
    pub fn median(&self, value: impl Fn(&T) -> f64) -> f64 {
        self.of_some(|round| Some(value(round))).unwrap_or(f64::NAN)
    }
}
