//! How long to poll for requests before sleeping.

use std::time::{Duration, Instant};

/// Polls in succession that cost less than reading the clock.
const POLLS_PER_CLOCK: u32 = 64;

/// The time that it may take to wake us, and the driver that kicks us, from a processor's deepest
/// sleep.
const WAKE: Duration = Duration::from_micros(100);

/// When to poll instead of sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// This long after the last request, as long as that pays.
    For(Duration),
    /// As long as there is a queue.
    Always,
}

/// Decides whether to poll the queue on or to sleep.
///
/// Whether polling pays shows after a sleep: either the next request has come so soon that polling
/// would have met it, or it has not. In the latter case the next sleep comes at once, so that a
/// driver with time between its requests costs no more than their work.
#[derive(Debug)]
pub struct Poller {
    polling: Polling,
    pays: bool,
    /// When the last request before a sleep had been served.
    idle_since: Option<Instant>,
    /// There was a request in this turn.
    worked: bool,
    /// Polls since then without a request.
    polls: u32,
    /// The first reading of the clock among those.
    polling_since: Option<Instant>,
}

impl Poller {
    /// Makes a poller that expects polling to pay.
    pub fn new(polling: Polling) -> Self {
        let (idle_since, polling_since) = (None, None);
        Self { polling, pays: true, idle_since, worked: false, polls: 0, polling_since }
    }

    /// Begins a turn. A thread that was woken without a request goes back to sleep.
    pub fn start_turn(&mut self) {
        (self.worked, self.polls, self.polling_since) = (false, 0, None);
    }

    /// Notes that a request was served. The clock is read only after a sleep.
    pub fn worked(&mut self) {
        if let Some(window) = self.window()
            && let Some(idle_since) = self.idle_since.take()
        {
            self.pays = idle_since.elapsed() <= window + WAKE;
        }
        (self.worked, self.polls, self.polling_since) = (true, 0, None);
    }

    /// How long to poll at most, if that is limited and not zero.
    fn window(&self) -> Option<Duration> {
        match self.polling {
            Polling::For(window) if !window.is_zero() => Some(window),
            Polling::For(_) | Polling::Always => None,
        }
    }

    /// Notes that there was no request. Returns whether to poll again.
    pub fn polls_on(&mut self) -> bool {
        if self.polling == Polling::Always {
            std::hint::spin_loop();
            return true;
        }
        let Some(window) = self.window().filter(|_| self.worked && self.pays) else { return false };
        std::hint::spin_loop();
        self.polls += 1;
        if !self.polls.is_multiple_of(POLLS_PER_CLOCK) {
            return true;
        }
        let now = Instant::now();
        now.duration_since(*self.polling_since.get_or_insert(now)) < window
    }

    /// Notes that the thread goes to sleep.
    pub fn sleeps(&mut self) {
        if self.worked && self.window().is_some() {
            self.idle_since = Some(self.polling_since.unwrap_or_else(Instant::now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Polls until it is time to sleep. Returns how long that took.
    fn poll_to_the_end(poller: &mut Poller) -> Duration {
        let start = Instant::now();
        while poller.polls_on() {}
        poller.sleeps();
        start.elapsed()
    }

    #[test]
    fn poller_sleeps_at_once_after_a_wake_without_a_request() {
        let mut poller = Poller::new(Polling::For(Duration::from_millis(1)));
        assert!(!poller.polls_on());
        poller.worked();
        assert!(poll_to_the_end(&mut poller) >= Duration::from_millis(1));
        poller.start_turn();
        assert!(!poller.polls_on());
    }

    #[test]
    fn poller_sleeps_at_once_when_requests_come_too_late_for_polling() {
        let window = Duration::from_secs(1);
        let mut poller = Poller::new(Polling::For(window));
        poller.worked();
        poller.sleeps();
        poller.start_turn();
        poller.worked();
        assert!(poller.polls_on(), "the next request came soon");
        poller.sleeps();
        poller.idle_since = Instant::now().checked_sub(2 * window);
        poller.start_turn();
        poller.worked();
        assert!(!poller.polls_on(), "it did not");
        poller.sleeps();
        poller.start_turn();
        poller.worked();
        assert!(poller.polls_on(), "it does again");
    }

    #[test]
    fn poller_without_a_window_never_polls_and_always_never_sleeps() {
        let mut none = Poller::new(Polling::For(Duration::ZERO));
        none.worked();
        assert!(!none.polls_on());
        none.sleeps();
        assert_eq!(none.idle_since, None, "nothing needs that time");
        let mut always = Poller::new(Polling::Always);
        assert!((0..1000).all(|_| always.polls_on()));
        assert_eq!(always.polls, 0, "unlimited polls are not counted");
    }
}
