//! The end of a forwarder: asked for, or reached.

use super::super::super::failure::{Failure, Outcome};
use super::super::ring::{Phase, Ring};
use super::{Engine, Report};
use std::time::Instant;

/// The part of the grace that is for the sink's own end: its children, its threads.
const SINKS_SHARE: u32 = 4;

impl Engine<'_, '_> {
    /// Returns the end, if it is reached without being asked for.
    pub fn outcome(&self) -> Option<Outcome> {
        let is_stopped = |ring: &Ring| matches!(ring.phase, Phase::Stopped);
        if !self.rings.is_empty() && self.rings.values().all(is_stopped) {
            return Some(Err(Failure::Refused(self.first_error().unwrap_or_default())));
        }
        self.drain.as_ref()?;
        if self.rings.is_empty() && self.former.rings.is_empty() {
            let text = "there is no ring to drain: no file or socket matches the patterns";
            return Some(Err(Failure::Refused(text.to_owned())));
        }
        let is_settled = |ring: &Ring| match &ring.phase {
            Phase::Open(opened) => opened.is_done() || ring.report.error.is_some(),
            Phase::Closed | Phase::Stopped => ring.report.error.is_some(),
            Phase::Opening => false,
        };
        if !self.rings.values().all(is_settled) {
            // A ring whose producer is busy may be unsettled in each turn.
            return self.drain_overdue(Instant::now());
        }
        if self.is_unsettled {
            return None;
        }
        Some(self.first_error().map_or(Ok(()), |error| Err(Failure::Refused(error))))
    }

    /// Returns the first error that keeps a ring from being forwarded, or did so until the ring was
    /// gone.
    pub fn first_error(&self) -> Option<String> {
        let rings = self.names.values().filter_map(|number| Some(&self.rings.get(number)?.report));
        let is_gone = |name: &String| !self.names.contains_key(name);
        let gone = self.former.rings.iter().filter(|(name, _)| is_gone(name));
        rings.chain(gone.map(|(_, report)| report)).find_map(|report| report.error.clone())
    }

    /// Reads nothing more, and waits for what is in flight, within the grace.
    pub fn finish(&mut self) -> Outcome {
        self.told.stopping("waiting for what is in flight");
        let grace = self.settings.grace;
        let begin = Instant::now();
        let deadline = begin + grace.saturating_sub(grace / SINKS_SHARE);
        // It stays readable; a second signal ends the wait by itself.
        let unwatched = self.set.unwatch(self.stop.fd());
        unwatched.map_err(Failure::io("cannot wait for the rings"))?;
        self.hungry.clear();
        self.starved.clear();
        for lane in self.rings.values_mut().filter_map(|ring| ring.opened()?.lane.as_mut()) {
            lane.lane.finish();
        }
        let mut occurrences = Vec::new();
        loop {
            self.take_events();
            self.free();
            self.board.leave(|| self.status());
            let in_flight = self.memory.used() > 0;
            let left = deadline.saturating_duration_since(Instant::now());
            // A second request ends the grace.
            let is_asked_again = self.stop.requests() > 1;
            if !in_flight || left.is_zero() || is_asked_again {
                let now = Instant::now();
                let end = if is_asked_again { now + grace / SINKS_SHARE } else { begin + grace };
                self.sink.end_by(end);
                return Ok(());
            }
            let waited = self.set.wait(Some(left), &mut occurrences);
            waited.map_err(Failure::io("cannot wait for the rings"))?;
            occurrences.clear();
            self.drain_wake();
            self.hangup.take();
            self.folders.take();
        }
    }

    /// Ends the sink and writes all pointers, and returns the report.
    pub fn end(mut self) -> Report {
        let numbers: Vec<_> = self.names.values().copied().collect();
        let now = Instant::now();
        for number in numbers {
            if let Some(ring) = self.rings.get_mut(&number) {
                ring.report.waiting = ring.opened().and_then(|opened| opened.waiting(now));
                let trouble = ring.trouble.take().map(|words| format!("{}: {words}", ring.name));
                ring.report.error = ring.report.error.take().or(trouble);
            }
            self.take_ring(number);
        }
        // It ends its children and threads, within bounds.
        drop(self.sink);
        self.former.peak_memory = self.peak;
        self.former
    }
}
