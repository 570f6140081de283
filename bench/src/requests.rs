//! The rows of requests: our backend and its peer in turns.

use crate::backend::Backend;
use crate::bars::{Bar, Found, verdicts};
use crate::error::{Result, doing};
use crate::front::{Front, REGION, Round, START, walked};
use crate::machine::{Processors, clock_cost, copy_rate, nanoseconds, quantile, wake_round_trip};
use crate::rounds::{Counted, Rounds, beside_line};
use crate::rows::{Row, Settings, Waiting};
use serde::Serialize;
use shared_block_ring::device::Mapping;
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest part of the requests per second that the guard may cost.
const GUARD: f64 = 0.05;

/// Time before each round in which the caches are filled.
pub const WARM_UP: Duration = Duration::from_millis(20);

/// Duration of a copy alone.
const COPY: Duration = Duration::from_millis(30);

/// Duration of waking alone, between requests: it changes within seconds.
const WAKES: Duration = Duration::from_millis(20);

/// Settings of the measurement.
#[derive(Debug)]
pub struct Plan {
    /// The daemon.
    pub program: PathBuf,
    /// Arguments that make the daemon fast.
    pub arguments: Vec<String>,
    /// Whether to measure also without the guard.
    pub compare_guard: bool,
    /// Rounds of each row.
    pub rounds: Rounds,
    /// The processors.
    pub processors: Processors,
}

/// Figures of a backend: medians of its rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// Requests per second.
    pub requests: f64,
    /// Median time of a request, in nanoseconds; with one request at a time.
    pub p50: Option<f64>,
    /// Time that all but a hundredth take at most, in nanoseconds.
    pub p99: Option<f64>,
    /// Processor time of the backend per request, in nanoseconds.
    pub processor: f64,
}

/// Outcome of a row.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// The row.
    #[serde(skip)]
    pub row: Row,
    /// Our backend.
    pub ours: Figures,
    /// Our backend with `--guard off`.
    pub unguarded: Option<Figures>,
    /// QEMU's storage daemon.
    pub peer: Figures,
    /// Requests per second, relative to the peer's: the median of pairs of rounds.
    pub times_peer: f64,
    /// Requests per second, relative to those without a guard.
    pub guarded: Option<f64>,
    /// Round trip of a cache line between the processors, in nanoseconds.
    pub line: f64,
    /// Bytes per second of a copy alone.
    pub copy: f64,
    /// Round trip between the processors where the front end sleeps for a request's time and is
    /// woken, and nothing else is done, in nanoseconds.
    pub wake: Option<f64>,
    /// Rounds that count, and all rounds.
    pub rounds: (usize, usize),
    /// Whether the rounds that count were near.
    pub near: bool,
}

/// Figures of one round.
struct Sample {
    ours: Figures,
    unguarded: Option<Figures>,
    peer: Figures,
    line: f64,
    copy: f64,
    wake: Option<f64>,
}

/// The daemons and the tools to measure them.
pub struct Bench {
    plan: Plan,
    fast: Backend,
    default: Option<Backend>,
    unguarded: Option<Backend>,
    peer: Backend,
    scratch: RefCell<Mapping>,
    clock: f64,
}

impl Bench {
    /// Starts the daemons for these rows, with files and sockets in `dir`.
    pub fn new(plan: Plan, rows: &[Row], dir: &Path) -> Result<Self> {
        let bytes = START + REGION;
        let ours = |name, arguments: &[String]| {
            Backend::ours(name, &plan.program, arguments, bytes, dir, plan.processors)
        };
        let fast = ours("blockring", &plan.arguments)?;
        let default = rows.iter().any(|row| row.settings == Settings::Default);
        let default = default.then(|| ours("blockring-default", &[])).transpose()?;
        let unguarded = if plan.compare_guard {
            let off = ["--guard".to_owned(), "off".to_owned()];
            Some(ours("blockring-unguarded", &[plan.arguments.clone(), off.into()].concat())?)
        } else {
            None
        };
        let peer = Backend::peer(bytes, dir, plan.processors)?;
        let what = "making the file that copies go to";
        let file = dir.join("copies");
        let file = File::options().read(true).write(true).create_new(true).open(file);
        let file = file.map_err(doing(what))?;
        shared_block_ring::allocate(&file, bytes).map_err(doing(what))?;
        let scratch = Mapping::new(file, bytes).map_err(doing(what))?;
        let scratch = RefCell::new(scratch);
        Ok(Self { plan, fast, default, unguarded, peer, scratch, clock: clock_cost() })
    }

    /// Returns the cost of a look at the clock in nanoseconds, which is subtracted from single
    /// requests' times.
    pub fn clock(&self) -> f64 {
        self.clock
    }

    /// Measures a row.
    pub fn run(&self, row: Row) -> Result<Outcome> {
        let ours = match (&self.default, row.settings) {
            (Some(default), Settings::Default) => default,
            _ => &self.fast,
        };
        let unguarded = self.unguarded.as_ref().filter(|_| row.settings == Settings::Fast);
        let mut ours = Runner::new(ours, row)?;
        let mut unguarded = unguarded.map(|backend| Runner::new(backend, row)).transpose()?;
        let mut peer = Runner::new(&self.peer, row)?;
        let Plan { rounds, processors, .. } = self.plan;
        let samples = rounds.each(|| {
            let round = || {
                let (mut scratch, region) = (self.scratch.borrow_mut(), walked(row.bytes));
                let copy = copy_rate(processors, &mut scratch, region, &row, COPY)?;
                let sleeps = row.waiting == Waiting::Sleeping;
                let wake = sleeps.then(|| wake_round_trip(processors, WAKES)).transpose()?;
                let ours = ours.round(rounds.time, self.clock)?;
                let unguarded = unguarded.as_mut();
                let unguarded = unguarded.map(|runner| runner.round(rounds.time, self.clock));
                let unguarded = unguarded.transpose()?;
                let peer = peer.round(rounds.time, self.clock)?;
                Ok(Sample { ours, unguarded, peer, copy, wake, line: f64::NAN })
            };
            let (sample, line) = beside_line(processors, round)?;
            Ok(Sample { line, ..sample })
        })?;
        Ok(Outcome::of(row, &samples))
    }
}

impl Outcome {
    /// Returns the figures for the bars.
    pub fn found(&self) -> Found {
        Found {
            lines: self.ours.p50.map(|p50| p50 / self.line),
            times_peer: Some(self.times_peer),
            of_peer_time: Some(self.ours.processor / self.peer.processor),
            far: !self.near,
            of_copy: Some(self.ours.requests * f64::from(self.row.bytes) / self.copy),
            of_unguarded: self.guarded,
            ..Found::default()
        }
    }

    /// Returns the bars, and whether each is met.
    pub fn wanted(&self) -> String {
        let guard = self.guarded.map(|_| Bar::Guard(GUARD));
        let bars: Vec<_> = self.row.bars.iter().copied().chain(guard).collect();
        verdicts(&bars, &self.found())
    }

    fn of(row: Row, samples: &[Sample]) -> Self {
        let counted = Counted::of(samples, |sample| sample.line);
        let figures = |whose: &dyn Fn(&Sample) -> Figures| Figures {
            requests: counted.median(|sample| whose(sample).requests),
            p50: counted.of_some(|sample| whose(sample).p50),
            p99: counted.of_some(|sample| whose(sample).p99),
            processor: counted.median(|sample| whose(sample).processor),
        };
        let guarded = |sample: &Sample| Some(sample.ours.requests / sample.unguarded?.requests);
        Self {
            name: row.name(),
            row,
            ours: figures(&|sample| sample.ours),
            unguarded: samples
                .iter()
                .all(|sample| sample.unguarded.is_some())
                .then(|| figures(&|sample| sample.unguarded.unwrap_or(sample.ours))),
            peer: figures(&|sample| sample.peer),
            times_peer: counted.median(|sample| sample.ours.requests / sample.peer.requests),
            guarded: counted.of_some(guarded),
            line: counted.median(|sample| sample.line),
            copy: counted.median(|sample| sample.copy),
            wake: counted.of_some(|sample| sample.wake),
            rounds: (counted.rounds.len(), samples.len()),
            near: counted.near,
        }
    }
}

/// A row on a backend.
pub struct Runner<'a> {
    backend: &'a Backend,
    front: Front,
    row: Row,
}

impl<'a> Runner<'a> {
    /// Makes a row on a backend, which is stopped until a round.
    pub fn new(backend: &'a Backend, row: Row) -> Result<Self> {
        backend.resume()?;
        let front = backend.front(row.bytes, row.depth)?;
        backend.halt()?;
        Ok(Self { backend, front, row })
    }

    /// Makes requests for `time`; `clock` is the cost of a look at the clock.
    pub fn round(&mut self, time: Duration, clock: f64) -> Result<Figures> {
        self.backend.resume()?;
        self.front.round(&self.row, WARM_UP)?;
        let before = self.backend.cpu_time()?;
        let mut round = self.front.round(&self.row, time)?;
        let processor = self.backend.cpu_time()?.saturating_sub(before);
        self.backend.halt()?;
        Ok(figures(&mut round, processor, &self.row, clock))
    }
}

fn figures(round: &mut Round, processor: Duration, row: &Row, clock: f64) -> Figures {
    let mut part =
        |part| (row.depth == 1).then(|| (quantile(&mut round.latencies, part) - clock).max(0.0));
    let (p50, p99) = (part(0.5), part(0.99));
    Figures {
        requests: round.requests as f64 / round.time.as_secs_f64(),
        p50,
        p99,
        processor: nanoseconds(processor) / round.requests as f64,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::rows::ROWS;

    /// Makes a round with a line of that many nanoseconds, and that many of our requests for each
    /// of the peer's.
    fn sample(line: f64, times: f64) -> Sample {
        let figures = |requests| Figures { requests, p50: Some(line), p99: None, processor: 1.0 };
        let (ours, peer) = (figures(times), figures(1.0));
        Sample { ours, unguarded: None, peer, line, copy: 1.0, wake: None }
    }

    fn outcome(samples: &[(f64, f64)]) -> Outcome {
        let samples: Vec<_> = samples.iter().map(|&(line, times)| sample(line, times)).collect();
        Outcome::of(ROWS[0], &samples)
    }

    #[test]
    fn rounds_with_a_far_line_do_not_count_where_enough_are_near() {
        let some = [(100.0, 9.0), (400.0, 1.0), (110.0, 10.0), (500.0, 1.0), (120.0, 11.0)];
        let some = outcome(&some);
        assert_eq!((some.rounds, some.near), ((3, 5), true));
        assert!((some.times_peer - 10.0).abs() < 1e-9 && (some.line - 110.0).abs() < 1e-9);
        let few = outcome(&[(100.0, 9.0), (400.0, 1.0), (110.0, 10.0), (500.0, 1.0), (510.0, 1.0)]);
        assert_eq!((few.rounds, few.near), ((5, 5), false));
        assert!((few.times_peer - 1.0).abs() < 1e-9);
    }

    #[test]
    fn rows_with_think_time_ignore_the_rate_and_compare_processor_time() {
        let row = *ROWS.iter().find(|row| row.bars == [Bar::Thrift]).unwrap();
        let said = |times, processor| {
            let mut round = sample(100.0, times);
            round.ours.processor = processor;
            Outcome::of(row, &[round]).wanted()
        };
        let bar = ">= 1 x qsd for less processor time";
        assert_eq!(said(1.0, 0.9), format!("{bar}: yes"));
        assert_eq!(said(0.99, 0.9), format!("{bar}: NO"));
        assert_eq!(said(1.1, 1.0), format!("{bar}: NO"));
    }
}
