//! How long to poll for requests before sleeping, and how long the queues' thread is busy.

use crate::data_path::counters::Counters;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Polls in succession that cost less than reading the clock.
const POLLS_PER_CLOCK: u32 = 64;

/// Polls of one ring among several that are made in any case: its thread may have been with the
/// others for longer than the window.
const POLLS_IN_TURNS: u32 = 16;

/// The time that it may take to wake us, and the driver that kicks us, from a processor's deepest
/// sleep.
const WAKE: Duration = Duration::from_micros(100);

/// How long to poll after a kick without a request, while most kicks are such: less than what the
/// next one would cost, which wakes the thread.
const STORM_WINDOW: Duration = Duration::from_micros(20);

/// A kick without a request counts two against this, and one with a request takes one back. A
/// driver kicks now and then for what a poll has met already.
const STORM: u8 = 8;

/// When to poll instead of sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Polling {
    /// This long after the last request, as long as that pays.
    For(Duration),
    /// As long as there is a queue.
    Always,
}

/// Whether to poll for a request.
enum Polls {
    No,
    Always,
    /// For this long.
    Within(Duration),
}

/// Decides whether to poll the queue on or to sleep.
///
/// Whether polling pays shows after a sleep: either the next request has come so soon that polling
/// would have met it, or it has not. In the latter case the next sleep comes at once, so that a
/// driver with time between its requests costs no more than their work.
///
/// A storm of kicks without a request wakes the thread for each of them, whatever it decides. It
/// then polls for a moment after each, so that a request in between does not wait for another
/// wake-up.
///
/// The clock is read for these decisions alone: when a sleep ends with a kick, and while there is
/// nothing to do. Between two readings lies a busy stretch; its mean time for a request is counted
/// in [`Counters::service_time`]. A stretch ends up to [`POLLS_PER_CLOCK`] polls after its last
/// request.
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
    /// A kick has begun this turn, and it is not known yet whether there is a request.
    kicked: bool,
    /// Measure of the kicks without a request; a storm of them from [`STORM`] on.
    empty_kicks: u8,
    /// The reading of the clock when the last sleep ended with a kick.
    woken: Option<Instant>,
    /// The last reading of the clock since the last sleep, and the requests taken until then.
    last_reading: Option<(Instant, u64)>,
    counters: Arc<Counters>,
}

impl Poller {
    /// Makes a poller that expects polling to pay.
    pub fn new(polling: Polling, counters: Arc<Counters>) -> Self {
        Self {
            polling,
            pays: true,
            idle_since: None,
            worked: false,
            polls: 0,
            polling_since: None,
            kicked: false,
            empty_kicks: 0,
            woken: None,
            last_reading: None,
            counters,
        }
    }

    /// Begins a turn. A thread that was woken without a request goes back to sleep. `kicked` says
    /// whether there is a request, as far as drivers can be believed; `taken` is the number of
    /// requests so far. The clock is read only after a sleep.
    pub fn start_turn(&mut self, kicked: bool, taken: u64) {
        (self.worked, self.polls, self.polling_since) = (false, 0, None);
        self.kicked = kicked;
        if kicked && self.idle_since.is_some() {
            let now = Instant::now();
            self.woken = Some(now);
            self.last_reading = Some((now, taken));
        }
    }

    /// Notes that a request was served. The clock is read only after a sleep that ended without a
    /// kick.
    pub fn worked(&mut self) {
        if std::mem::take(&mut self.kicked) {
            self.empty_kicks = self.empty_kicks.saturating_sub(1);
        }
        if let Some(window) = self.window()
            && let Some(idle_since) = self.idle_since.take()
        {
            let now = self.woken.take().unwrap_or_else(Instant::now);
            self.pays = now.duration_since(idle_since) <= window + WAKE;
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

    /// Notes a reading of the clock while there is nothing to do: the end of a busy stretch, if one
    /// was begun.
    fn note_reading(&mut self, now: Instant, taken: u64) {
        if let Some((then, before)) = self.last_reading.replace((now, taken)) {
            let requests = taken.wrapping_sub(before);
            self.counters.service_time.observe_parts(now.duration_since(then), requests);
        }
    }

    /// Notes that there was no request; `taken` as in [`start_turn`](Self::start_turn). Returns
    /// whether to poll again.
    pub fn polls_on(&mut self, taken: u64) -> bool {
        let window = match self.polls_at_all() {
            Polls::No => return false,
            Polls::Always => return true,
            Polls::Within(window) => window,
        };
        self.polls += 1;
        if !self.polls.is_multiple_of(POLLS_PER_CLOCK) {
            return true;
        }
        self.is_within(window, Instant::now(), taken)
    }

    /// As [`polls_on`](Self::polls_on), for a thread that polls several rings in turn, and reads
    /// the clock for all of them: `now`, if it has just done so.
    pub fn polls_on_at(&mut self, now: Option<Instant>, taken: u64) -> bool {
        match self.polls_at_all() {
            Polls::No => false,
            Polls::Always => true,
            Polls::Within(window) => {
                self.polls += 1;
                self.polls < POLLS_IN_TURNS
                    || now.is_none_or(|now| self.is_within(window, now, taken))
            }
        }
    }

    fn polls_at_all(&mut self) -> Polls {
        if self.polling == Polling::Always {
            std::hint::spin_loop();
            return Polls::Always;
        }
        if std::mem::take(&mut self.kicked) {
            self.empty_kicks = (self.empty_kicks + 2).min(2 * STORM);
        }
        if self.is_in_a_storm() {
            std::hint::spin_loop();
            return Polls::Within(STORM_WINDOW);
        }
        let Some(window) = self.window().filter(|_| self.worked && self.pays) else {
            return Polls::No;
        };
        std::hint::spin_loop();
        Polls::Within(window)
    }

    /// Whether most kicks come without a request, as the one that has begun this turn.
    fn is_in_a_storm(&self) -> bool {
        !self.worked && self.empty_kicks >= STORM
    }

    fn is_within(&mut self, window: Duration, now: Instant, taken: u64) -> bool {
        if !self.is_in_a_storm() {
            self.note_reading(now, taken);
        }
        now.saturating_duration_since(*self.polling_since.get_or_insert(now)) < window
    }

    /// Notes that the thread goes to sleep; `taken` as in [`start_turn`](Self::start_turn).
    pub fn sleeps(&mut self, taken: u64) {
        if self.worked && self.window().is_some() {
            self.idle_since = Some(self.polling_since.unwrap_or_else(|| {
                let now = Instant::now();
                self.note_reading(now, taken);
                now
            }));
        }
        (self.woken, self.last_reading) = (None, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn poller(polling: Polling) -> Poller {
        Poller::new(polling, Arc::default())
    }

    /// Polls until it is time to sleep. Returns how long that took.
    fn poll_to_the_end(poller: &mut Poller) -> Duration {
        let start = Instant::now();
        while poller.polls_on(0) {}
        poller.sleeps(0);
        start.elapsed()
    }

    #[test]
    fn poller_sleeps_at_once_after_a_wake_without_a_request() {
        let mut poller = poller(Polling::For(Duration::from_millis(1)));
        assert!(!poller.polls_on(0));
        poller.worked();
        assert!(poll_to_the_end(&mut poller) >= Duration::from_millis(1));
        poller.start_turn(false, 0);
        assert!(!poller.polls_on(0));
    }

    #[test]
    fn poller_sleeps_at_once_when_requests_come_too_late_for_polling() {
        let window = Duration::from_secs(1);
        let mut poller = poller(Polling::For(window));
        poller.worked();
        poller.sleeps(0);
        poller.start_turn(false, 0);
        poller.worked();
        assert!(poller.polls_on(0), "the next request came soon");
        poller.sleeps(0);
        poller.idle_since = Instant::now().checked_sub(2 * window);
        poller.start_turn(false, 0);
        poller.worked();
        assert!(!poller.polls_on(0), "it did not");
        poller.sleeps(0);
        poller.start_turn(false, 0);
        poller.worked();
        assert!(poller.polls_on(0), "it does again");
    }

    #[test]
    fn poller_polls_in_a_storm_of_kicks_without_requests_and_not_after_it() {
        let mut poller = poller(Polling::For(Duration::ZERO));
        let mut turn = |has_request: bool| {
            poller.start_turn(true, 0);
            if has_request {
                poller.worked();
            }
            let polls = poller.polls_on(0);
            while poller.polls_on(0) {}
            poller.sleeps(0);
            polls
        };
        let calm = (0..100).filter(|number| turn(number % 3 != 0)).count();
        assert_eq!(calm, 0, "one of three kicks has nothing");
        let storm = (0..100).filter(|_| turn(false)).count();
        assert!(storm > 90, "{storm}");
        assert!(!turn(true), "a request is no reason to poll");
        assert!((0..20).all(|_| !turn(true)));
        assert!(!turn(false), "the storm is over");
        let both = (0..100).filter(|_| turn(true) || turn(false)).count();
        assert!(both > 90, "every second kick has nothing: {both}");
        assert_eq!(counted(&poller), 0, "the clock tells nothing of requests");
    }

    #[test]
    fn poller_without_a_window_never_polls_and_always_never_sleeps() {
        let mut none = poller(Polling::For(Duration::ZERO));
        none.worked();
        assert!(!none.polls_on(0));
        none.sleeps(0);
        assert_eq!(none.idle_since, None, "nothing needs that time");
        none.start_turn(true, 0);
        none.worked();
        assert!(!none.polls_on(1));
        none.sleeps(1);
        assert_eq!(counted(&none), 0, "the clock is not read");
        let mut always = poller(Polling::Always);
        assert!((0..1000).all(|_| always.polls_on(0)));
        assert_eq!(always.polls, 0, "unlimited polls are not counted");
    }

    /// The number of requests that were counted.
    fn counted(poller: &Poller) -> u64 {
        poller.counters.service_time.buckets().iter().map(|(_, count)| count).sum()
    }

    #[test]
    fn busy_stretch_counts_each_of_its_requests_once() {
        let mut poller = poller(Polling::For(Duration::from_secs(1)));
        poller.worked();
        poller.sleeps(1);
        assert_eq!(counted(&poller), 0, "its begin is not known");
        poller.start_turn(true, 1);
        poller.worked();
        while poller.last_reading.is_some_and(|(_, taken)| taken == 1) {
            assert!(poller.polls_on(4));
        }
        assert_eq!(counted(&poller), 3);
        poller.worked();
        poller.sleeps(6);
        assert_eq!(counted(&poller), 5, "a stretch between polls and sleep");
        poller.start_turn(false, 6);
        poller.sleeps(6);
        poller.start_turn(false, 6);
        poller.worked();
        poller.sleeps(7);
        assert_eq!(counted(&poller), 5, "what no kick has begun");
    }
}
