//! Attempts that are repeated, and what is said of them.

use std::time::{Duration, Instant};

/// The pause after the first failure.
const FIRST: Duration = Duration::from_millis(100);

/// The longest pause.
const LONGEST: Duration = Duration::from_secs(5);

/// The time after which a failure that goes on is said again.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// The time after which a success counts as the end of the failures: what fails again before that
/// has not been well.
const SETTLED: Duration = Duration::from_secs(10);

/// Failures in a row of one thing.
#[derive(Debug, Default)]
pub struct Retry {
    /// All failures, whatever came between them.
    total: u64,
    failures: u32,
    /// The last one that was said, and when.
    said: Option<(String, Instant)>,
    /// The last success since the last failure that was said.
    succeeded: Option<Instant>,
}

impl Retry {
    /// Notes a failure. Returns the pause before the next attempt, and whether the failure is to be
    /// said: a new one is, and one that goes on is once a minute.
    pub fn failed(&mut self, message: &str) -> (Duration, bool) {
        if self.succeeded.is_some_and(|at| at.elapsed() >= SETTLED) {
            *self = Self { total: self.total, ..Self::default() };
        }
        self.total += 1;
        let pause = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        let now = Instant::now();
        let is_new = match &self.said {
            Some((said, at)) => said != message || now.duration_since(*at) >= SAY_AGAIN,
            None => true,
        };
        if is_new {
            self.said = Some((message.to_owned(), now));
            self.succeeded = None;
        }
        (pause, is_new)
    }

    /// Returns the number of failures so far.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Notes that something was achieved: the next pause is a short one. Returns whether it is to
    /// be said.
    pub fn progressed(&mut self) -> bool {
        self.failures = 0;
        self.succeeded()
    }

    /// Notes a success after which the same can fail at once. Returns whether it is to be said: the
    /// first one after a failure that was.
    pub fn succeeded(&mut self) -> bool {
        self.succeeded.replace(Instant::now()).is_none() && self.said.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_that_goes_on_is_said_once_and_its_pauses_grow() {
        let mut retry = Retry::default();
        assert_eq!(retry.failed("a"), (FIRST, true));
        assert_eq!(retry.failed("a"), (2 * FIRST, false));
        assert_eq!(retry.failed("b"), (4 * FIRST, true));
        for _ in 0..50 {
            retry.failed("b");
        }
        assert_eq!(retry.failed("b"), (LONGEST, false));
        assert!(retry.succeeded() && !retry.succeeded());
        assert_eq!(retry.failed("b"), (LONGEST, false), "it was not well for long");
        assert!(!retry.succeeded(), "nor is that said each time");
        assert_eq!(retry.failed("c"), (LONGEST, true));
        assert!(retry.progressed());
        assert_eq!(retry.failed("c"), (FIRST, false));
        retry.succeeded = Instant::now().checked_sub(SETTLED);
        assert_eq!(retry.failed("c"), (FIRST, true));
    }
}
