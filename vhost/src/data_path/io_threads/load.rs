//! How busy a thread is, and which of its rings another one should have.

use super::RingNumber;
use std::time::{Duration, Instant};

/// The time over which it is measured how busy a thread is.
pub(super) const MEASURE: Duration = Duration::from_millis(50);

/// Thousandths of its time that a thread is busy when it looks for one that is less so.
const TOO_BUSY: u32 = 800;

/// How much less busy that one has to be, in thousandths.
const FAR_LESS: u32 = 300;

/// How busy the thread is.
pub(super) struct Load {
    /// The last reading of the clock, and turns since then.
    pub clock: Instant,
    pub turns: u32,
    /// A turn has had work since then.
    pub worked: bool,
    since: Instant,
    busy: Duration,
    pub looked: Instant,
}

impl Load {
    pub fn new() -> Self {
        let now = Instant::now();
        let busy = Duration::ZERO;
        Self { clock: now, turns: 0, worked: false, since: now, busy, looked: now }
    }

    /// Reads the clock. The time since the last reading was busy if there was work.
    pub fn read(&mut self) -> Instant {
        let now = Instant::now();
        if std::mem::take(&mut self.worked) {
            self.busy += now.saturating_duration_since(self.clock);
        }
        (self.clock, self.turns) = (now, 0);
        now
    }

    /// Takes the thousandths of the time in which the thread was busy, if it was measured for long
    /// enough.
    pub fn take(&mut self) -> Option<u32> {
        let all = self.clock.saturating_duration_since(self.since);
        if all < MEASURE {
            return None;
        }
        let share = self.busy.as_micros() * 1000 / all.as_micros().max(1);
        (self.since, self.busy) = (self.clock, Duration::ZERO);
        Some(u32::try_from(share).unwrap_or(u32::MAX))
    }
}

/// Returns the ring that a thread gives to another one, if it is too busy and that one far less so.
/// Both are so busy in thousandths; `served` has the rings that have had requests lately, each with
/// their number.
pub(super) fn to_give(
    busy: u32,
    other: u32,
    served: &mut [(u64, RingNumber)],
) -> Option<RingNumber> {
    let difference = busy.saturating_sub(other);
    if busy < TOO_BUSY || difference < FAR_LESS || served.len() < 2 {
        return None;
    }
    // Of the rings that make up at most half of the difference, the one with most requests: more
    // would only turn the scales.
    let all: u64 = served.iter().map(|(requests, _)| requests).sum();
    let most = all * u64::from(difference) / u64::from(busy) / 2;
    served.sort_unstable();
    let fits = served.iter().rev().find(|(requests, _)| *requests <= most);
    fits.map(|(_, number)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_thread_gives_the_ring_that_evens_the_load_out() {
        let give = |busy, other, requests: &[u64]| {
            let numbers = (1..).map(RingNumber);
            let mut served: Vec<_> = requests.iter().copied().zip(numbers).collect();
            to_give(busy, other, &mut served).map(|RingNumber(number)| number)
        };
        assert_eq!(give(1000, 0, &[100, 300, 100]), Some(3), "300 of 500 would be too much");
        assert_eq!(give(1000, 0, &[100, 240, 160]), Some(2));
        assert_eq!(give(1000, 600, &[100, 240, 160]), Some(1), "a fifth of the load");
        assert_eq!(give(1000, 800, &[100, 100]), None, "the other one has little less");
        assert_eq!(give(700, 0, &[100, 100]), None, "it is not too busy");
        assert_eq!(give(1000, 0, &[100]), None, "its only ring");
        assert_eq!(give(1000, 0, &[400, 500]), Some(1));
        assert_eq!(give(1000, 600, &[500, 500]), None, "each would turn the scales");
    }
}
