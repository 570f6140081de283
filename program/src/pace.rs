//! Pace of log lines that somebody else can cause: a guest, a front end, a client.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lines of one place that may follow each other at once.
const BURST: u32 = 20;

/// Time in which one more line is allowed: a day has at most 86,400 of them.
const PERIOD: Duration = Duration::from_secs(1);

/// Places that have a pace of their own: more than these programs have. All others share one.
const MAX_PLACES: usize = 1024;

/// A place of the code that logs: its file and line, or the record's target and zero.
pub type Place = (String, u32);

/// Pace of one kind of line: a burst at once, and one more each second. The default has no burst.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    burst: u32,
    /// Lines that are allowed now.
    lines: u32,
    /// When the last line was added to them; none before the first line is asked for.
    since: Option<Instant>,
    /// Lines that were held back since the last one that was allowed.
    held_back: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Pace {
    /// Allows `burst` lines at once.
    pub const fn new(burst: u32) -> Self {
        Self { burst, lines: burst, since: None, held_back: 0 }
    }

    /// Returns whether a line may be written now.
    pub fn due(&mut self) -> bool {
        self.take(Instant::now()).is_some()
    }

    /// Takes one line. Returns how many were held back before it; none if this one is held back,
    /// too.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let periods = now.saturating_duration_since(since).as_secs() / PERIOD.as_secs();
        if periods > 0 {
            let more = u32::try_from(periods).unwrap_or(self.burst);
            self.lines = self.lines.saturating_add(more).min(self.burst);
            self.since = Some(now);
        }
        if let Some(rest) = self.lines.checked_sub(1) {
            self.lines = rest;
            return Some(std::mem::take(&mut self.held_back));
        }
        self.held_back += 1;
        None
    }
}

/// Paces of all places.
#[derive(Debug, Default)]
pub struct Paces(HashMap<Place, Pace>);

impl Paces {
    /// Takes one line of `place`. Returns how many were held back before it; none if this one is
    /// held back, too.
    pub fn take(&mut self, place: (&str, u32), now: Instant) -> Option<u64> {
        let mut place = (place.0.to_owned(), place.1);
        if self.0.len() >= MAX_PLACES && !self.0.contains_key(&place) {
            place = Place::default();
        }
        self.0.entry(place).or_insert(Pace::new(BURST)).take(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_without_a_burst_is_one_line_a_second() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert_eq!([pace.take(start), pace.take(start)], [Some(0), None]);
        assert_eq!(pace.take(start + PERIOD / 2), None);
        assert_eq!([pace.take(start + PERIOD), pace.take(start + PERIOD)], [Some(2), None]);
        assert_eq!(pace.take(start + 9 * PERIOD), Some(1));
        assert!(!pace.due(), "the last line was later than now");
    }

    #[test]
    fn place_has_a_burst_and_then_one_line_a_second_with_a_count() {
        let (mut paces, start) = (Paces::default(), Instant::now());
        let logged = (0..2000).filter(|_| paces.take(("a", 1), start).is_some()).count();
        assert_eq!(logged, BURST as usize);
        assert_eq!(paces.take(("a", 2), start), Some(0), "another place");
        let later = start + PERIOD;
        assert_eq!(paces.take(("a", 1), later), Some(2000 - u64::from(BURST)));
        assert_eq!(paces.take(("a", 1), later), None);
        let much_later = later + 1000 * PERIOD;
        let logged = (0..2000).filter(|_| paces.take(("a", 1), much_later).is_some()).count();
        assert_eq!(logged, BURST as usize);
    }

    #[test]
    fn places_are_bounded() {
        let (mut paces, now) = (Paces::default(), Instant::now());
        for line in 0..5000 {
            paces.take(("a", line), now);
        }
        assert!(paces.0.len() <= MAX_PLACES + 1);
    }
}
