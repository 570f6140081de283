//! The rows of requests: our backend and its peer in turns, in short rounds, since what else the machine does changes within seconds.

use crate::backend::Backend;
use crate::error::{Result, doing};
use crate::front::{REGION, Round, START, walked};
use crate::items::Rounds;
use crate::machine::{
    Processors, clock_cost, copy_rate, line_round_trip, median, nanoseconds, quantile,
};
use crate::rows::{Row, Settings};
use serde::Serialize;
use shared_block_ring::device::Mapping;
use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Round trips of a cache line up to this count as near, nanoseconds: beyond it processors share no cache, and the line is all
/// that is measured.
pub const NEAR: f64 = 150.0;

/// Near rounds that are enough to leave the others out.
const ENOUGH: usize = 3;

/// Before a round: caches hold what the last one left.
const WARM_UP: Duration = Duration::from_millis(20);

/// A copy alone.
const COPY: Duration = Duration::from_millis(30);

/// How to measure.
#[derive(Debug)]
pub struct Plan {
    /// The daemon.
    pub program: PathBuf,
    /// What makes it fast.
    pub arguments: Vec<String>,
    /// Also without its guard.
    pub compare_guard: bool,
    /// Of each row.
    pub rounds: Rounds,
    /// Where.
    pub processors: Processors,
}

/// Of a backend: medians of its rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Figures {
    /// Requests in a second.
    pub requests: f64,
    /// Half of the requests took at most this, nanoseconds; of one at a time.
    pub p50: Option<f64>,
    /// All but a hundredth.
    pub p99: Option<f64>,
    /// Processor time of the backend for a request, nanoseconds.
    pub processor: f64,
}

/// A row's outcome.
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
    /// Requests in a second, to the peer's: the median of pairs of rounds.
    pub times_peer: f64,
    /// Requests in a second, to those without a guard.
    pub guarded: Option<f64>,
    /// There and back between the processors, nanoseconds.
    pub line: f64,
    /// Bytes in a second of a copy alone.
    pub copy: f64,
    /// Rounds that count, and of how many.
    pub rounds: (usize, usize),
    /// Whether those were near.
    pub near: bool,
}

/// One round of everything.
struct Sample {
    ours: Figures,
    unguarded: Option<Figures>,
    peer: Figures,
    line: f64,
    copy: f64,
}

/// The daemons, and what they are measured with.
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
    /// Starts what these rows need, with files and sockets in `dir`.
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

    /// What a look at the clock costs, nanoseconds: taken off from single requests' times.
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
        let mut samples = Vec::new();
        for _ in 0..self.plan.rounds.count {
            let line = line_round_trip(self.plan.processors)?;
            let region = walked(row.bytes);
            let copy = copy_rate(
                self.plan.processors,
                &mut self.scratch.borrow_mut(),
                region,
                &row,
                COPY,
            )?;
            let ours = ours.round(self)?;
            let unguarded = unguarded.as_mut().map(|runner| runner.round(self)).transpose()?;
            let peer = peer.round(self)?;
            let line = line.max(line_round_trip(self.plan.processors)?);
            samples.push(Sample { ours, unguarded, peer, line, copy });
        }
        Ok(Outcome::of(row, &samples))
    }
}

impl Outcome {
    /// Bytes moved, of what a copy alone moves.
    pub fn copied(&self) -> f64 {
        self.ours.requests * f64::from(self.row.bytes) / self.copy
    }

    fn of(row: Row, samples: &[Sample]) -> Self {
        let near: Vec<_> = samples.iter().filter(|sample| sample.line <= NEAR).collect();
        let is_near = near.len() >= ENOUGH.min(samples.len());
        let counted = if is_near { near } else { samples.iter().collect() };
        let of = |value: &dyn Fn(&Sample) -> Option<f64>| {
            let mut values: Vec<_> = counted.iter().filter_map(|sample| value(sample)).collect();
            (!values.is_empty()).then(|| median(&mut values))
        };
        let sure =
            |value: &dyn Fn(&Sample) -> f64| of(&|sample| Some(value(sample))).unwrap_or(f64::NAN);
        let figures = |whose: &dyn Fn(&Sample) -> Figures| Figures {
            requests: sure(&|sample| whose(sample).requests),
            p50: of(&|sample| whose(sample).p50),
            p99: of(&|sample| whose(sample).p99),
            processor: sure(&|sample| whose(sample).processor),
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
            times_peer: sure(&|sample| sample.ours.requests / sample.peer.requests),
            guarded: of(&guarded),
            line: sure(&|sample| sample.line),
            copy: sure(&|sample| sample.copy),
            rounds: (counted.len(), samples.len()),
            near: is_near,
        }
    }
}

/// A row on a backend.
struct Runner<'a> {
    backend: &'a Backend,
    front: crate::front::Front,
    row: Row,
}

impl<'a> Runner<'a> {
    fn new(backend: &'a Backend, row: Row) -> Result<Self> {
        backend.resume()?;
        let front = backend.front(row.bytes, row.depth)?;
        backend.halt()?;
        Ok(Self { backend, front, row })
    }

    fn round(&mut self, bench: &Bench) -> Result<Figures> {
        self.backend.resume()?;
        self.front.round(&self.row, WARM_UP)?;
        let before = self.backend.cpu_time()?;
        let mut round = self.front.round(&self.row, bench.plan.rounds.time)?;
        let processor = self.backend.cpu_time()?.saturating_sub(before);
        self.backend.halt()?;
        Ok(figures(&mut round, processor, &self.row, bench.clock))
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
    use super::*;
    use crate::rows::ROWS;

    /// A round with a line of so many nanoseconds, and so many requests of ours for each of the peer's.
    fn sample(line: f64, times: f64) -> Sample {
        let figures = |requests| Figures { requests, p50: Some(line), p99: None, processor: 1.0 };
        Sample { ours: figures(times), unguarded: None, peer: figures(1.0), line, copy: 1.0 }
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
}
