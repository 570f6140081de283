//! One ring's stream over the runs of its ends: their logs as they grow, and the verdict at the
//! end.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::str;
use std::time::Duration;

use shared_block_ring::format::Side;

use super::check::{Evidence, Tally, check};
use super::{Failure, Result, unsound};
use crate::load::item::Recipe;
use crate::load::log::Line;
use crate::process::wait_until;

/// Bound on waits for what takes seconds on an idle machine.
pub(super) const SOON: Duration = Duration::from_secs(90);

/// A log that is being written.
#[derive(Debug)]
pub(super) struct Follower {
    path: PathBuf,
    read: u64,
    /// A last line without its end.
    rest: Vec<u8>,
    lines: Vec<Line>,
    /// Number of lines about an `advance` that has returned.
    progress: u64,
    /// Whether the kernel below shuts its devices down: what the writer had begun then fails.
    is_shut_down: bool,
}

/// The words of a write that the writer's own kernel has not carried out.
const NOT_CARRIED_OUT: &str = "Input/output error";

impl Follower {
    fn new(path: &Path) -> Self {
        let path = path.to_owned();
        let (rest, lines) = (Vec::new(), Vec::new());
        Self { path, read: 0, rest, lines, progress: 0, is_shut_down: false }
    }

    /// Reads new lines.
    fn catch_up(&mut self) -> Result<()> {
        let Ok(mut file) = File::open(&self.path) else {
            // Its writer has not started.
            return Ok(());
        };
        let read = |file: &mut File, bytes: &mut Vec<u8>| {
            file.seek(SeekFrom::Start(self.read)).and_then(|_| file.read_to_end(bytes))
        };
        let count =
            read(&mut file, &mut self.rest).map_err(crate::Error::file("reading", &self.path))?;
        self.read += count as u64;
        let whole = self.rest.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let bad = |line: &str| {
            let text = format!("{} has a line that no load writes: {line:?}", self.path.display());
            Failure::Unsound(text)
        };
        let text = str::from_utf8(&self.rest[..whole]).map_err(|_| bad("no UTF-8"))?;
        for text in text.lines() {
            let line = text.parse().map_err(|_| bad(text))?;
            let is_its_kernels =
                matches!(&line, Line::Failed(text) if text.contains(NOT_CARRIED_OUT));
            if is_its_kernels && self.is_shut_down {
                // It ends as by a kill, a moment later.
                continue;
            }
            self.progress += u64::from(matches!(line, Line::Done(_) | Line::Freed(_)));
            self.lines.push(line);
        }
        self.rest.drain(..whole);
        Ok(())
    }
}

/// A ring's stream.
#[derive(Debug)]
pub(super) struct Stream {
    recipe: Recipe,
    power_cuts: bool,
    producers: Vec<Follower>,
    consumers: Vec<Follower>,
    runs: u32,
}

impl Stream {
    pub fn new(recipe: Recipe) -> Self {
        Self { recipe, power_cuts: false, producers: Vec::new(), consumers: Vec::new(), runs: 0 }
    }

    /// Makes a stream whose power fails between runs.
    pub fn with_power_cuts(mut self) -> Self {
        self.power_cuts = true;
        self
    }

    pub fn recipe(&self) -> Recipe {
        self.recipe
    }

    /// Returns a number for the next run of either end.
    pub fn next_run(&mut self) -> u32 {
        self.runs += 1;
        self.runs
    }

    /// Begins a run of `side` that logs to `path`.
    pub fn follow(&mut self, side: Side, path: &Path) {
        self.logs(side).push(Follower::new(path));
    }

    fn logs(&mut self, side: Side) -> &mut Vec<Follower> {
        match side {
            Side::Producer => &mut self.producers,
            Side::Consumer => &mut self.consumers,
        }
    }

    /// Returns the number of advances of the last run of `side`: a consumer may get items out of
    /// its own memory.
    pub fn progress(&mut self, side: Side) -> Result<u64> {
        let Some(log) = self.logs(side).last_mut() else { return Ok(0) };
        log.catch_up()?;
        Ok(log.progress)
    }

    /// Waits until the last run of `side` has come further than `from` by `steps`.
    pub fn wait_for_progress(&mut self, side: Side, from: u64, steps: u64) -> Result<()> {
        self.wait(&format!("the {side} moves"), |stream| Ok(stream.progress(side)? >= from + steps))
    }

    /// Notes that the kernel below the last run of `side` is about to shut its devices down, as
    /// before a reboot.
    pub fn shut_down(&mut self, side: Side) -> Result<()> {
        let Some(log) = self.logs(side).last_mut() else { return Ok(()) };
        // An error from before is none of that.
        log.catch_up()?;
        log.is_shut_down = true;
        Ok(())
    }

    /// Waits until the last run of both ends has advanced.
    pub fn wait_for_flow(&mut self) -> Result<()> {
        self.wait_for_progress(Side::Producer, 0, 1)?;
        self.wait_for_progress(Side::Consumer, 0, 1)
    }

    /// Waits for a condition, and fails where an end has given up.
    pub fn wait_while_alive(&mut self, what: &str, condition: impl Fn() -> bool) -> Result<()> {
        self.wait(what, |_| Ok(condition()))
    }

    /// Returns the last batch that a producer was about to push: its run, and its number there.
    pub fn pushed(&mut self) -> Result<(u32, u32)> {
        let mut last = (0, 0);
        for log in &mut self.producers {
            log.catch_up()?;
            let mut run = 0;
            for line in &log.lines {
                match *line {
                    Line::Run(id) => run = id,
                    Line::Push { batch, .. } => last = last.max((run, batch)),
                    _ => {}
                }
            }
        }
        Ok(last)
    }

    /// Waits until an item has arrived that was not to be pushed yet when [`Stream::pushed`] has
    /// answered `mark`.
    pub fn wait_for_arrival(&mut self, mark: (u32, u32)) -> Result<()> {
        self.wait("something new arrives", |stream| {
            let is_new = |line: &Line| matches!(line, Line::Item { stamp, .. } if (stamp.run, stamp.batch) > mark);
            // The consumer before may have got the item, too, while it ended.
            for log in stream.consumers.iter_mut().rev() {
                log.catch_up()?;
                if log.lines.iter().rev().any(is_new) {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Waits until the last run of `side` gives up with these words, which is not held against it.
    pub fn expect_failure(&mut self, side: Side, words: &str) -> Result<()> {
        let mut said = None;
        wait_until(SOON, || {
            let Some(log) = self.logs(side).last_mut() else { return false };
            if let Err(failure) = log.catch_up() {
                said = Some(Err(failure));
            } else if let Some(Line::Failed(text)) = log.lines.last() {
                said = Some(Ok(text.clone()));
                log.lines.pop();
            }
            said.is_some()
        });
        match said.transpose()? {
            Some(text) if text.contains(words) => Ok(()),
            Some(text) => unsound(format!("the {side} has given up: {text:?} lacks {words:?}")),
            None => unsound(format!("the {side} does not give up within {SOON:?}")),
        }
    }

    fn wait(
        &mut self,
        what: &str,
        mut condition: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        let over = wait_until(SOON, || match self.look(&mut condition) {
            Ok(met) => met,
            Err(failure) => {
                outcome = Err(failure);
                true
            }
        });
        if over {
            return outcome;
        }
        let [producer, consumer] = [&self.producers, &self.consumers]
            .map(|logs| logs.last().and_then(|log| log.lines.last()));
        unsound(format!(
            "{what}: not within {SOON:?}; the producer says {producer:?}, the consumer {consumer:?}"
        ))
    }

    fn look(&mut self, condition: &mut impl FnMut(&mut Self) -> Result<bool>) -> Result<bool> {
        if condition(self)? {
            return Ok(true);
        }
        for (side, logs) in
            [(Side::Producer, &mut self.producers), (Side::Consumer, &mut self.consumers)]
        {
            let Some(log) = logs.last_mut() else { continue };
            log.catch_up()?;
            if let Some(Line::Failed(text)) = log.lines.last() {
                return unsound(format!("the {side} has given up: {text}"));
            }
        }
        Ok(false)
    }

    /// Returns the verdict, when the last run of both ends has ended.
    pub fn judge(mut self) -> Result<Tally> {
        for log in self.producers.iter_mut().chain(&mut self.consumers) {
            log.catch_up()?;
        }
        let lines =
            |logs: Vec<Follower>| -> Vec<_> { logs.into_iter().map(|log| log.lines).collect() };
        let (producers, consumers) = (lines(self.producers), lines(self.consumers));
        let (recipe, power_cuts) = (self.recipe, self.power_cuts);
        let evidence =
            Evidence { recipe, producers: &producers, consumers: &consumers, power_cuts };
        check(&evidence).map_err(Failure::Violation)
    }
}
