//! Log lines that somebody else can cause: no more than so many.

use std::time::{Duration, Instant};

/// At most one line of a kind in this time: whatever a guest or a front end does, a day has 86,400 of them.
const PERIOD: Duration = Duration::from_secs(1);

/// One kind of line.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace(Option<Instant>);

impl Pace {
    /// Whether a line may be written now.
    pub fn due(&mut self) -> bool {
        let now = Instant::now();
        let due = self.0.is_none_or(|last| now.duration_since(last) >= PERIOD);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_period() {
        let mut pace = Pace::default();
        assert!(pace.due() && !pace.due());
        let mut old = Pace(Instant::now().checked_sub(PERIOD));
        assert!(old.due() && !old.due());
    }
}
