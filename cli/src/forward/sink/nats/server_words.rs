//! Errors that the server sends by themselves, not as answers: it does not answer a message that it
//! refuses for want of a permission.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time after which the same error is logged again.
const REMINDER: Duration = Duration::from_secs(60);

/// Errors that are logged in that time. A refused subject is told for each message, of each ring;
/// the lanes say it, too.
const LOGGED: usize = 10;

/// Different errors that are remembered.
const MOST: usize = 1000;

/// Time in which an error explains why there is no answer.
const RECENT: Duration = Duration::from_secs(20);

/// The errors of late.
#[derive(Debug, Default)]
pub struct ServerWords {
    errors: Mutex<HashMap<String, Times>>,
}

#[derive(Debug, Clone, Copy)]
struct Times {
    sent: Instant,
    logged: Option<Instant>,
}

impl ServerWords {
    /// Notes an error, and logs it unless that was done of late.
    pub fn note(&self, words: &str) {
        if self.is_new(words, Instant::now()) {
            log::warn!("the server says: {words}");
        }
    }

    /// Notes an error, and returns whether to log it.
    fn is_new(&self, words: &str, now: Instant) -> bool {
        let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let is_of_late =
            |at: Option<Instant>| at.is_some_and(|at| now.duration_since(at) < REMINDER);
        let logged = errors.values().filter(|times| is_of_late(times.logged)).count();
        if errors.len() >= MOST && !errors.contains_key(words) {
            errors.clear();
        }
        let times = errors.entry(words.to_owned()).or_insert(Times { sent: now, logged: None });
        times.sent = now;
        let is_new = !is_of_late(times.logged) && logged < LOGGED;
        if is_new {
            times.logged = Some(now);
        }
        is_new
    }

    /// Returns the last recent error that is about a subject, or about the questions that all lanes
    /// ask.
    pub fn about(&self, subject: &str) -> Option<String> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = errors.iter().filter(|(_, times)| times.sent.elapsed() < RECENT);
        let quoted = format!("\"{subject}\"");
        let its = recent.filter(|(words, _)| {
            words.contains(&quoted) || words.contains("\"$JS.") || words.contains("\"_INBOX.")
        });
        its.max_by_key(|(words, times)| (words.contains(&quoted), times.sent))
            .map(|(words, _)| words.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_is_logged_once_in_a_while_and_few_in_all() {
        let words = ServerWords::default();
        let now = Instant::now();
        assert!(words.is_new("a", now) && !words.is_new("a", now));
        assert!(words.is_new("a", now + REMINDER));
        let others = (0..50).filter(|n| words.is_new(&n.to_string(), now + REMINDER));
        assert_eq!(others.count(), LOGGED - 1);
    }

    #[test]
    fn error_explains_the_lane_whose_subject_it_has() {
        let words = ServerWords::default();
        let of = |subject: &str| format!("Permissions Violation for Publish to \"{subject}\"");
        words.note(&of("vm.a.log"));
        words.note(&of("vm.b.log"));
        assert_eq!(words.about("vm.a.log"), Some(of("vm.a.log")));
        assert_eq!(words.about("vm.c.log"), None);
        words.note(&of("$JS.API.STREAM.MSG.GET.S"));
        assert_eq!(words.about("vm.c.log"), Some(of("$JS.API.STREAM.MSG.GET.S")));
        assert_eq!(words.about("vm.a.log"), Some(of("vm.a.log")));
    }
}
