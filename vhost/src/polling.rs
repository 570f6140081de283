//! How long to look for more before sleeping.

use std::time::{Duration, Instant};

/// Looks in a row that cost less than to ask for the time.
const LOOKS: u32 = 64;

/// What it may take to wake us, and whoever kicks us, out of a processor's deepest sleep.
const WAKE: Duration = Duration::from_micros(100);

/// As the daemon was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// This long after the last request, as long as that pays.
    For(Duration),
    /// As long as there is a queue.
    Always,
}

/// Looks for requests, and sleeps between them.
///
/// Whether it pays to look on shows after a sleep: the next request has come so soon that looking on would have met it, or it has
/// not. In the latter case the next sleep comes at once, so that a driver with time between its requests costs no more than their work.
#[derive(Debug)]
pub struct Looking {
    polling: Polling,
    pays: bool,
    /// When the last request before a sleep had been dealt with.
    idle: Option<Instant>,
    /// There was a request in this turn.
    worked: bool,
    /// Looks since then without one, and when the clock was first asked.
    looks: u32,
    since: Option<Instant>,
}

impl Looking {
    /// Expecting that it pays.
    pub fn new(polling: Polling) -> Self {
        Self { polling, pays: true, idle: None, worked: false, looks: 0, since: None }
    }

    /// A turn begins. Who was woken for nothing goes back to sleep.
    pub fn begin(&mut self) {
        (self.worked, self.looks, self.since) = (false, 0, None);
    }

    /// There was something to do. The clock is asked only after a sleep.
    pub fn worked(&mut self) {
        if let Some(window) = self.window()
            && let Some(idle) = self.idle.take()
        {
            self.pays = idle.elapsed() <= window + WAKE;
        }
        (self.worked, self.looks, self.since) = (true, 0, None);
    }

    /// How long to look on at most, if there is a limit to that and it is not nothing.
    fn window(&self) -> Option<Duration> {
        match self.polling {
            Polling::For(window) if !window.is_zero() => Some(window),
            Polling::For(_) | Polling::Always => None,
        }
    }

    /// There was nothing. Whether to look again.
    pub fn goes_on(&mut self) -> bool {
        if self.polling == Polling::Always {
            std::hint::spin_loop();
            return true;
        }
        let Some(window) = self.window().filter(|_| self.worked && self.pays) else { return false };
        std::hint::spin_loop();
        self.looks += 1;
        if !self.looks.is_multiple_of(LOOKS) {
            return true;
        }
        let now = Instant::now();
        now.duration_since(*self.since.get_or_insert(now)) < window
    }

    /// Goes to sleep.
    pub fn sleeps(&mut self) {
        if self.worked && self.window().is_some() {
            self.idle = Some(self.since.unwrap_or_else(Instant::now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks_on(looking: &mut Looking) -> Duration {
        let start = Instant::now();
        while looking.goes_on() {}
        looking.sleeps();
        start.elapsed()
    }

    #[test]
    fn who_is_woken_for_nothing_goes_back_to_sleep() {
        let mut looking = Looking::new(Polling::For(Duration::from_millis(1)));
        assert!(!looking.goes_on());
        looking.worked();
        assert!(looks_on(&mut looking) >= Duration::from_millis(1));
        looking.begin();
        assert!(!looking.goes_on());
    }

    #[test]
    fn a_driver_that_takes_its_time_is_not_looked_for() {
        let window = Duration::from_secs(1);
        let mut looking = Looking::new(Polling::For(window));
        looking.worked();
        looking.sleeps();
        looking.begin();
        looking.worked();
        assert!(looking.goes_on(), "the next request came soon");
        looking.sleeps();
        looking.idle = Instant::now().checked_sub(2 * window);
        looking.begin();
        looking.worked();
        assert!(!looking.goes_on(), "it did not");
        looking.sleeps();
        looking.begin();
        looking.worked();
        assert!(looking.goes_on(), "it does again");
    }

    #[test]
    fn none_and_always() {
        let mut none = Looking::new(Polling::For(Duration::ZERO));
        none.worked();
        assert!(!none.goes_on());
        none.sleeps();
        assert_eq!(none.idle, None, "nobody will ask how long");
        let mut always = Looking::new(Polling::Always);
        assert!((0..1000).all(|_| always.goes_on()));
        assert_eq!(always.looks, 0, "there is no end to them");
    }
}
