//! How long to look for more before sleeping.

use std::time::{Duration, Instant};

/// Looks in a row that cost less than to ask for the time.
const LOOKS: u32 = 64;

/// As the daemon was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// This long after the last request.
    For(Duration),
    /// As long as there is a queue.
    Always,
}

/// A look after the other. The clock is read only while there is nothing to do.
#[derive(Debug)]
pub struct Spin {
    polling: Polling,
    looks: u32,
    /// When the time began to run; none before there was a request.
    since: Option<Instant>,
    worked: bool,
}

impl Spin {
    /// Nothing was done yet: who was woken for nothing goes back to sleep.
    pub fn new(polling: Polling) -> Self {
        Self { polling, looks: 0, since: None, worked: false }
    }

    /// There was something to do.
    pub fn again(&mut self) {
        (self.looks, self.since, self.worked) = (0, None, true);
    }

    /// There was nothing. Whether to look again.
    pub fn goes_on(&mut self) -> bool {
        let window = match self.polling {
            Polling::For(window) if self.worked && !window.is_zero() => window,
            Polling::For(_) => return false,
            Polling::Always => Duration::MAX,
        };
        std::hint::spin_loop();
        self.looks += 1;
        if self.looks < LOOKS {
            return true;
        }
        self.looks = 0;
        if window == Duration::MAX {
            return true;
        }
        let now = Instant::now();
        now.duration_since(*self.since.get_or_insert(now)) < window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_woken_for_nothing_goes_back_to_sleep() {
        assert!(!Spin::new(Polling::For(Duration::from_secs(1))).goes_on());
        let mut spin = Spin::new(Polling::For(Duration::from_millis(1)));
        spin.again();
        let start = Instant::now();
        while spin.goes_on() {}
        assert!(start.elapsed() >= Duration::from_millis(1));
        spin.again();
        assert!(spin.goes_on());
    }

    #[test]
    fn none_and_always() {
        let mut none = Spin::new(Polling::For(Duration::ZERO));
        none.again();
        assert!(!none.goes_on());
        let mut always = Spin::new(Polling::Always);
        assert!((0..1000).all(|_| always.goes_on()));
    }
}
