//! Turns of a ring that has limits.
//!
//! A turn begins with a reading of the clock, and each request is charged before the next one is
//! taken. When a limit is used up the turn ends, and the next one takes no request: it goes on with
//! those that were taken, and the ring rests until the time at which another may be taken. What
//! those wait for, and whoever needs the worker, ends the rest for a turn of the same kind.

use super::{TurnEnd, Worker};
use std::time::Instant;

/// Steps of one queue before it is looked whether a limit is used up.
pub(super) const VISIT: usize = 1;

/// Rounds of such visits in the place of one round of longer ones.
const ROUNDS: u32 = 16;

impl Worker {
    /// Begins a turn of a ring with limits. Returns until when it takes no request, if that is so.
    #[cold]
    pub(super) fn begin_limited(&mut self) -> Option<Instant> {
        let limiter = self.limiter.as_mut()?;
        self.visit = VISIT;
        let Some((until, begins)) = limiter.rests(Instant::now()) else {
            self.rounds = self.rounds.saturating_mul(ROUNDS);
            return None;
        };
        if begins {
            self.carrier.counters.rests.count();
        }
        for number in self.unfinished {
            self.carrier.flush_stored(&mut self.progress[number]);
        }
        Some(until)
    }

    /// Charges what was done since the last call, after each step. If a limit is used up then, no
    /// queue takes another step in this turn, which ends with its round: a queue whose request was
    /// answered would take the next one.
    #[cold]
    pub(super) fn charge(&mut self) {
        let Some(limiter) = &mut self.limiter else { return };
        let counters = &self.carrier.counters;
        let bytes = counters.read_bytes.get().wrapping_add(counters.written_bytes.get());
        if !limiter.charge(self.carrier.arrivals, bytes) {
            (self.visit, self.rounds) = (0, 0);
        }
    }
}

/// Returns the end of a turn in which no request was taken until this time, if there was one.
pub(super) fn resting(end: TurnEnd, rest: Option<Instant>) -> TurnEnd {
    match (rest, end) {
        (Some(until), TurnEnd::Sleep(held)) => TurnEnd::Rest {
            until: held.map_or(until, |held| until.min(held)),
            deaf: held.is_none(),
        },
        (_, end) => end,
    }
}
