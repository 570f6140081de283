//! Verdict on a stream whose ends have died many times, by the logs alone.
//!
//! The visible batches of a producer's run are its first ones: all that were acknowledged, and
//! perhaps those in flight when it died. Those of all runs in a row are the stream. Each consumer's
//! run gets a stretch of it that begins where the run before had freed to, or was about to: so
//! nothing is lost, torn, invented, reordered, or delivered again after it was freed. A lost tail
//! of a log only weakens the lower bounds: what was not logged as promised is not required.

mod violation;

use std::collections::HashMap;

use serde::Serialize;

use crate::load::item::{Recipe, Stamp, hash};
use crate::load::log::Line;

pub use violation::{Place, Violation};

/// The logs of one stream, one per run, in order. The last run of either end has ended by itself.
#[derive(Debug, Clone, Copy)]
pub struct Evidence<'a> {
    /// Maker of the items.
    pub recipe: Recipe,
    /// Logs of the producers.
    pub producers: &'a [Vec<Line>],
    /// Logs of the consumers.
    pub consumers: &'a [Vec<Line>],
    /// Whether the power failed between runs: a batch that was visible, and not acknowledged, may
    /// then be gone.
    pub power_cuts: bool,
}

/// Counts of a sound stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Items whose batch was acknowledged.
    pub acknowledged: u64,
    /// Items delivered, each counted once.
    pub delivered: u64,
    /// Deliveries of items that were delivered before and not freed.
    pub repeated: u64,
    /// Batches not acknowledged when their producer died, which the consumer got.
    pub visible: u64,
    /// Batches not acknowledged when their producer died, which nobody got.
    pub invisible: u64,
    /// Items that were delivered from a batch under way, which a power cut then took back.
    pub taken_back: u64,
}

impl Tally {
    /// Sums of two counts.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            delivered: self.delivered + other.delivered,
            repeated: self.repeated + other.repeated,
            visible: self.visible + other.visible,
            invisible: self.invisible + other.invisible,
            taken_back: self.taken_back + other.taken_back,
        }
    }
}

/// Judges the logs.
pub fn check(evidence: &Evidence<'_>) -> Result<Tally, Violation> {
    let mut runs = Vec::new();
    for log in evidence.producers {
        runs.extend(Run::read(log)?);
    }
    let index = runs.iter().enumerate().map(|(index, run)| (run.id, index)).collect();
    let Evidence { recipe, power_cuts, .. } = *evidence;
    let mut stream = Stream { recipe, runs, index, power_cuts, ..Stream::default() };
    for log in evidence.consumers {
        stream.follow(log)?;
    }
    let end = evidence.consumers.last().and_then(|log| log.last());
    if end != Some(&Line::End) {
        return Err(Violation::Log { line: "no end of the last consumer".to_owned() });
    }
    stream.finish()
}

/// A producer's run.
#[derive(Debug, Default)]
struct Run {
    id: u32,
    /// Batches that it was about to push: the size of each, and the number of its first item.
    batches: Vec<(u32, u32)>,
    /// Number of acknowledged batches.
    acknowledged: u32,
}

impl Run {
    /// `None` for a process that died before its first line.
    fn read(log: &[Line]) -> Result<Option<Self>, Violation> {
        let mut lines = log.iter();
        let id = match lines.next() {
            None => return Ok(None),
            Some(Line::Run(id)) => *id,
            Some(line) => return Err(out_of_place(line)),
        };
        let mut run = Self { id, ..Self::default() };
        for line in lines {
            match *line {
                Line::Attached | Line::End => {}
                Line::Push { batch, size, number } if batch as usize == run.batches.len() => {
                    run.batches.push((size, number));
                }
                Line::Done(batch)
                    if batch == run.acknowledged && (batch as usize) < run.batches.len() =>
                {
                    run.acknowledged += 1;
                }
                Line::Failed(ref text) => {
                    return Err(Violation::Failed(format!("producer, run {id}: {text}")));
                }
                _ => return Err(out_of_place(line)),
            }
        }
        Ok(Some(run))
    }

    fn size(&self, batch: u32) -> u64 {
        self.batches.get(batch as usize).map_or(0, |&(size, _)| size.into())
    }
}

fn out_of_place(line: &Line) -> Violation {
    Violation::Log { line: line.to_string() }
}

/// The stream, as far as consumers have shown it.
#[derive(Debug, Default)]
struct Stream {
    recipe: Recipe,
    runs: Vec<Run>,
    /// Index into `runs`, by the number of the run.
    index: HashMap<u32, usize>,
    power_cuts: bool,
    /// Everything delivered, each item once.
    items: Vec<Stamp>,
    /// Number of freed items, without and with the effect of the last `advance`.
    freed: usize,
    freeing: usize,
    repeated: u64,
    taken_back: u64,
}

impl Stream {
    /// Judges one consumer's run.
    fn follow(&mut self, log: &[Line]) -> Result<(), Violation> {
        let mut lines = log.iter();
        let id = match lines.next() {
            None => return Ok(()),
            Some(Line::Run(id)) => *id,
            Some(line) => return Err(out_of_place(line)),
        };
        // Start of this run in the stream, known from its first item on.
        let mut start = None;
        let mut given = 0;
        for line in lines {
            match *line {
                // The run found an empty ring: the last `advance` had taken effect.
                Line::End if start.is_none() && self.freeing == self.items.len() => {
                    self.freed = self.freeing;
                }
                Line::Attached | Line::End => {}
                Line::Item { stamp, length, hash } => {
                    self.judge_bytes(stamp, length, hash)?;
                    let start = *match &mut start {
                        Some(start) => start,
                        none => none.insert(self.start(stamp)?),
                    };
                    self.deliver(start + given, stamp)?;
                    given += 1;
                }
                Line::Scrap(length) => return Err(Violation::Scrap(length)),
                Line::Free(count) | Line::Freed(count) => {
                    let count = usize::try_from(count).unwrap_or(usize::MAX);
                    let Some(start) = start.filter(|_| count <= given) else {
                        return Err(out_of_place(line));
                    };
                    let end = start + count;
                    match line {
                        Line::Free(_) if self.freed == self.freeing && end > self.freed => {
                            self.freeing = end;
                        }
                        Line::Freed(_) if end == self.freeing => self.freed = end,
                        _ => return Err(out_of_place(line)),
                    }
                }
                Line::Failed(ref text) => {
                    return Err(Violation::Failed(format!("consumer, run {id}: {text}")));
                }
                _ => return Err(out_of_place(line)),
            }
        }
        Ok(())
    }

    /// Returns whether an item is what its stamp says, and that is something that was pushed.
    fn judge_bytes(&self, stamp: Stamp, length: usize, found: u64) -> Result<(), Violation> {
        let pushed = self.run(stamp).and_then(|run| run.batches.get(stamp.batch as usize));
        let known = pushed.is_some_and(|&(size, first)| {
            size == stamp.size && stamp.index < size && first + stamp.index == stamp.number
        });
        if !known {
            return Err(Violation::NeverPushed(Place(stamp)));
        }
        let item = self.recipe.item(stamp);
        if item.len() == length && hash(&item) == found {
            return Ok(());
        }
        Err(Violation::Torn(Place(stamp)))
    }

    fn run(&self, stamp: Stamp) -> Option<&Run> {
        self.index.get(&stamp.run).map(|&index| &self.runs[index])
    }

    /// Returns where a run begins whose first item is this one: where the last one had freed to, or
    /// was about to.
    fn start(&mut self, stamp: Stamp) -> Result<usize, Violation> {
        let candidates = [self.freed, self.freeing];
        let is_due = |&at: &usize| match self.items.get(at) {
            Some(&due) if due == stamp => true,
            Some(_) => self.may_be_gone(at) && self.judge_next(at, stamp).is_ok(),
            None => self.judge_next(at, stamp).is_ok(),
        };
        let start = candidates.into_iter().find(is_due);
        let start = start.ok_or_else(|| self.explain_start(stamp))?;
        (self.freed, self.freeing) = (start, start);
        Ok(start)
    }

    fn explain_start(&self, stamp: Stamp) -> Violation {
        if self.items[..self.freed].contains(&stamp) {
            return Violation::Again(Place(stamp));
        }
        match self.items.get(self.freed) {
            Some(&due) => Violation::Order { expected: Place(due), next: Place(stamp) },
            None => {
                self.judge_next(self.freed, stamp).err().unwrap_or(Violation::Again(Place(stamp)))
            }
        }
    }

    /// Takes an item in its place: the one that was there before, or the next one of the stream.
    fn deliver(&mut self, at: usize, stamp: Stamp) -> Result<(), Violation> {
        match self.items.get(at) {
            Some(&due) if due == stamp => {
                self.repeated += 1;
                return Ok(());
            }
            Some(&due) if !self.may_be_gone(at) => {
                return Err(Violation::Order { expected: Place(due), next: Place(stamp) });
            }
            _ => {}
        }
        self.judge_next(at, stamp)?;
        self.taken_back += (self.items.len() - at) as u64;
        self.items.truncate(at);
        self.items.push(stamp);
        Ok(())
    }

    /// Returns whether a power cut may have taken back what was delivered from this place on: one
    /// batch under way, and the last one.
    fn may_be_gone(&self, at: usize) -> bool {
        let (Some(first), Some(last)) = (self.items.get(at), self.items.last()) else {
            return false;
        };
        let under_way = self.run(*first).is_some_and(|run| first.batch >= run.acknowledged);
        let same = (first.run, first.batch) == (last.run, last.batch);
        self.power_cuts && under_way && same && first.index == 0
    }

    /// Returns whether the stream, cut at `at`, may go on with this item, which was pushed.
    fn judge_next(&self, at: usize, next: Stamp) -> Result<(), Violation> {
        let last = at.checked_sub(1).and_then(|before| self.items.get(before)).copied();
        match last {
            Some(last) if last.has_next() => {
                let due = Stamp { index: last.index + 1, number: last.number + 1, ..last };
                return if next == due {
                    Ok(())
                } else {
                    Err(Violation::Partial { last: Place(last), next: Place(next) })
                };
            }
            Some(last) if next.index > 0 => {
                return Err(Violation::Partial { last: Place(last), next: Place(next) });
            }
            None if next.index > 0 => {
                let first = Stamp { index: 0, number: next.number - next.index, ..next };
                return Err(Violation::Order { expected: Place(first), next: Place(next) });
            }
            _ => {}
        }
        let from = last.map_or((0, 0), |last| (self.index[&last.run], last.batch + 1));
        let to = (self.index[&next.run], next.batch);
        if let Some(last) = last.filter(|_| to < from) {
            return Err(Violation::Order { expected: Place(last), next: Place(next) });
        }
        self.judge_skipped(from, to)
    }

    /// Returns whether nothing between two batches (of these runs, with these numbers) was
    /// published.
    fn judge_skipped(&self, from: (usize, u32), to: (usize, u32)) -> Result<(), Violation> {
        for index in from.0..=to.0 {
            let Some(run) = self.runs.get(index) else { break };
            let first = if index == from.0 { from.1 } else { 0 };
            // A later batch of the same run shows that the earlier ones were published.
            let published = if index == to.0 { to.1 } else { run.acknowledged };
            if first < published {
                return Err(Violation::Lost { run: run.id, batch: first });
            }
        }
        Ok(())
    }

    /// Judges the end: everything is delivered and freed.
    fn finish(mut self) -> Result<Tally, Violation> {
        if self.may_be_gone(self.freed) {
            self.taken_back += (self.items.len() - self.freed) as u64;
            self.items.truncate(self.freed);
        }
        let delivered = self.items.len();
        if self.freed != delivered || self.freeing != delivered {
            return Err(Violation::Left { delivered, freed: self.freed });
        }
        let last = self.items.last().copied();
        if let Some(last) = last.filter(|last| last.has_next()) {
            return Err(Violation::Partial { last: Place(last), next: Place(last) });
        }
        let from = last.map_or((0, 0), |last| (self.index[&last.run], last.batch + 1));
        self.judge_skipped(from, (self.runs.len(), 0))?;
        Ok(self.tally())
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally {
            delivered: self.items.len() as u64,
            repeated: self.repeated,
            taken_back: self.taken_back,
            ..Tally::default()
        };
        // Number of batches of each run that were delivered.
        let mut reached = vec![0; self.runs.len()];
        for item in &self.items {
            reached[self.index[&item.run]] = u64::from(item.batch) + 1;
        }
        for (run, reached) in self.runs.iter().zip(reached) {
            let acknowledged = u64::from(run.acknowledged);
            tally.acknowledged += (0..run.acknowledged).map(|batch| run.size(batch)).sum::<u64>();
            tally.visible += reached.saturating_sub(acknowledged);
            tally.invisible += run.batches.len() as u64 - reached.max(acknowledged);
        }
        tally
    }
}

#[cfg(test)]
mod tests;
