//! Our backend beside the bare loop of `reference-loop`, in turns.

use crate::backend::Backend;
use crate::bars::{Bar, Found, verdicts};
use crate::error::Result;
use crate::front::{REGION, START};
use crate::requests::{Figures, Plan, Runner};
use crate::rounds::{Counted, beside_line};
use crate::rows::Row;
use serde::Serialize;
use std::path::Path;

/// Outcome of a row: medians of its rounds.
#[derive(Debug, Serialize)]
pub struct Against {
    /// Its name.
    pub name: String,
    #[serde(skip)]
    bars: &'static [Bar],
    /// Our backend.
    pub ours: Figures,
    /// The bare loop.
    pub reference: Figures,
    /// Requests per second, relative to the loop's: the median of pairs of rounds.
    pub of_loop: f64,
    /// Processor time per request, relative to the loop's.
    pub of_loop_time: f64,
    /// Round trip of a cache line between the processors, in nanoseconds.
    pub line: f64,
}

impl Against {
    /// Returns the bars, and whether each is met.
    pub fn wanted(&self) -> String {
        let found = Found {
            of_loop: Some(self.of_loop),
            of_loop_time: Some(self.of_loop_time),
            ..Found::default()
        };
        verdicts(self.bars, &found)
    }
}

/// Measures the rows. `program` is the bare loop.
pub fn all(plan: &Plan, program: &Path, rows: &[Row], dir: &Path) -> Result<Vec<Against>> {
    let bytes = START + REGION;
    let ours =
        Backend::ours("blockring", &plan.program, &plan.arguments, bytes, dir, plan.processors)?;
    let reference = Backend::reference(program, bytes, dir, plan.processors)?;
    rows.iter().map(|&row| one(plan, row, &ours, &reference)).collect()
}

fn one(plan: &Plan, row: Row, ours: &Backend, reference: &Backend) -> Result<Against> {
    let (mut ours, mut reference) = (Runner::new(ours, row)?, Runner::new(reference, row)?);
    let (time, mut pair) = (plan.rounds.time, 0);
    let samples = plan.rounds.each(|| {
        pair += 1;
        let round = || {
            // Which of both comes first changes, so that what changes with time cancels out.
            let first = (pair % 2 == 0).then(|| reference.round(time, 0.0)).transpose()?;
            let ours = ours.round(time, 0.0)?;
            Ok((ours, first.map_or_else(|| reference.round(time, 0.0), Ok)?))
        };
        beside_line(plan.processors, round)
    })?;
    let counted = Counted::of(&samples, |&(_, line)| line);
    let figures = |whose: &dyn Fn(&(Figures, Figures)) -> Figures| Figures {
        requests: counted.median(|(sample, _)| whose(sample).requests),
        p50: counted.of_some(|(sample, _)| whose(sample).p50),
        p99: counted.of_some(|(sample, _)| whose(sample).p99),
        processor: counted.median(|(sample, _)| whose(sample).processor),
    };
    Ok(Against {
        name: row.name(),
        bars: row.bars,
        ours: figures(&|sample| sample.0),
        reference: figures(&|sample| sample.1),
        of_loop: counted.median(|((ours, reference), _)| ours.requests / reference.requests),
        of_loop_time: counted.median(|((ours, reference), _)| ours.processor / reference.processor),
        line: counted.median(|&(_, line)| line),
    })
}
