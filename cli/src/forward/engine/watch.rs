//! Warnings about waits that last, and the end of a `--drain` that has a limit.

use super::super::super::failure::{Failure, Outcome};
use super::super::ring::{Phase, Ring};
use super::Engine;
use ring_program::text::items;
use std::time::{Duration, Instant};

/// The time after which the warning about a drain is repeated.
const WARN_AGAIN: Duration = Duration::from_secs(60);

/// The most rings that a message names: hundreds may wait for the same thing.
const NAMED: usize = 3;

/// A wait for everything to arrive.
#[derive(Debug)]
pub struct Drain {
    begin: Instant,
    limit: Option<Duration>,
    /// Time of the next warning that the wait goes on.
    next_warning: Instant,
}

impl Drain {
    pub fn new(limit: Option<Duration>, warn_after: Duration) -> Self {
        let begin = Instant::now();
        Self { begin, limit, next_warning: later(begin, warn_after) }
    }
}

/// Returns the time after a duration; no more than 34 years later, which every clock can express.
fn later(begin: Instant, time: Duration) -> Instant {
    const NEVER: Duration = Duration::from_secs(1 << 30);
    begin + time.min(NEVER)
}

impl Engine<'_, '_> {
    /// Returns the time of the next look at waits, if there is one to look at.
    pub fn next_watch(&self) -> Option<Instant> {
        let flights = (self.memory.used() > 0).then_some(self.next_watch);
        let drain = self.drain.as_ref().map(|drain| {
            let limit = drain.limit.map(|limit| later(drain.begin, limit));
            limit.map_or(drain.next_warning, |limit| limit.min(drain.next_warning))
        });
        [flights, drain].into_iter().flatten().min()
    }

    /// Logs which waits have become long.
    pub fn watch(&mut self, now: Instant) {
        const SELDOM: Duration = Duration::from_secs(5);
        let warn_after = self.settings.warn_after;
        if self.memory.used() > 0 && self.next_watch <= now {
            let often = Duration::from_millis(10);
            self.next_watch = now + (warn_after / 4).clamp(often, SELDOM);
            self.warn_of_slow_rings(now, warn_after);
        }
        if self.drain.as_ref().is_some_and(|drain| drain.next_warning <= now) {
            log::warn!("--drain waits for {} (--drain-timeout S ends the wait)", self.left_rings());
            if let Some(drain) = &mut self.drain {
                drain.next_warning = now + WARN_AGAIN;
            }
        }
    }

    fn warn_of_slow_rings(&mut self, now: Instant, warn_after: Duration) {
        let hint = self.settings.to.acknowledgement_hint();
        let (mut lines, mut others) = (Vec::new(), 0);
        for number in self.names.values() {
            let Some(ring) = self.rings.get_mut(number) else { continue };
            // A failure that goes on has been logged, with its reason.
            if ring.trouble.is_some() {
                continue;
            }
            let Some(waiting) = ring.opened().and_then(|opened| opened.waiting(now)) else {
                continue;
            };
            if waiting.seconds < warn_after.as_secs_f64() || !ring.slow.failed("").1 {
                continue;
            }
            if lines.len() == NAMED {
                others += 1;
                continue;
            }
            lines.push(format!(
                "{}: waiting for acknowledgement of position {} for {:.0} s, with {} {} in flight{hint}",
                ring.name, waiting.position, waiting.seconds, waiting.items, items(waiting.items as u64)
            ));
        }
        for line in lines {
            log::warn!("{line}");
        }
        if others > 0 {
            log::warn!("{others} more rings wait for an acknowledgement as long");
        }
    }

    /// Returns the rings whose items have not all arrived, with the reasons that are known.
    fn left_rings(&self) -> String {
        let left = |ring: &Ring| match &ring.phase {
            Phase::Open(opened) => !opened.is_done(),
            Phase::Closed | Phase::Opening | Phase::Stopped => true,
        };
        let rings = self.names.values().filter_map(|number| self.rings.get(number));
        let all: Vec<_> = rings.filter(|ring| left(ring)).collect();
        let reason = |ring: &&Ring| {
            let in_flight = match &ring.phase {
                Phase::Open(opened) => opened.flights.len(),
                _ => 0,
            };
            let known = ring.report.error.clone().or_else(|| ring.trouble.clone());
            match known {
                Some(known) => format!("{}: {known}", ring.name),
                None => format!("{}: {in_flight} {} in flight", ring.name, items(in_flight as u64)),
            }
        };
        let named: Vec<_> = all.iter().take(NAMED).map(reason).collect();
        let more = if all.len() > NAMED { "; …" } else { "" };
        let rings = if all.len() == 1 { "ring" } else { "rings" };
        format!("{} {rings}: {}{more}", all.len(), named.join("; "))
    }

    /// Returns the error that ends a wait for everything to arrive, once it has taken too long.
    pub fn drain_overdue(&self, now: Instant) -> Option<Outcome> {
        let drain = self.drain.as_ref()?;
        let limit = drain.limit?;
        let what = || format!("not everything has arrived of {}", self.left_rings());
        (later(drain.begin, limit) <= now)
            .then(|| Err(Failure::TimedOut { seconds: limit.as_secs_f64(), what: what() }))
    }
}
