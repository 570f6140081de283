//! Queues that are kicked again and again with nothing in them: the worker no longer wakes for
//! them, and looks at them by time, so that such kicks cost the other queues nothing.

use crate::data_path::queue_set::{MAX_QUEUES, QueueSet};
use std::time::{Duration, Instant};

/// Kicks in a row that bring nothing until a queue is muted. A driver that works kicks in vain now
/// and then, where the worker has met its request before, but never twice without another request.
const ENOUGH: u8 = 16;

/// How long a request in a muted queue may have to wait.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long a queue stays muted. If it is still kicked then, it is muted again at once.
const LISTEN_AFTER: Duration = Duration::from_millis(100);

/// What is known of the kicks of each queue.
#[derive(Debug)]
pub struct MutedKicks {
    /// The queue's next available index at its last kick.
    next_avail: [u16; MAX_QUEUES],
    /// Kicks since that index has changed.
    in_vain: [u8; MAX_QUEUES],
    muted: QueueSet,
    look_at: Instant,
    listen_at: Instant,
}

/// The queues whose kicks are to wake the worker no longer, and again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// No longer.
    pub mute: QueueSet,
    /// Again.
    pub listen: QueueSet,
}

impl MutedKicks {
    /// Makes the state in which every kick wakes the worker.
    pub fn new() -> Self {
        let now = Instant::now();
        Self {
            next_avail: [0; MAX_QUEUES],
            in_vain: [0; MAX_QUEUES],
            muted: QueueSet::EMPTY,
            look_at: now,
            listen_at: now,
        }
    }

    /// Notes how far the queues are that were looked at in a turn, because they were kicked or
    /// [`due`](Self::due).
    pub fn after_turn(
        &mut self,
        looked_at: QueueSet,
        now: impl Fn() -> Instant,
        next_avail: impl Fn(usize) -> u16,
    ) -> Change {
        let mut change = Change::default();
        for queue in looked_at {
            let next = next_avail(queue);
            if std::mem::replace(&mut self.next_avail[queue], next) != next {
                self.in_vain[queue] = 0;
                change.listen.set(queue, self.muted.contains(queue));
            } else if !self.muted.contains(queue) {
                self.in_vain[queue] += 1;
                change.mute.set(queue, self.in_vain[queue] >= ENOUGH);
            }
        }
        if self.muted.is_empty() && change.mute.is_empty() {
            return change;
        }
        let now = now();
        if self.muted.is_empty() {
            (self.look_at, self.listen_at) = (now + LOOK_EVERY, now + LISTEN_AFTER);
        } else if now >= self.listen_at {
            self.listen_at = now + LISTEN_AFTER;
            change.listen |= self.muted;
            for queue in self.muted {
                // Listening again to an event that was signalled tells of a kick, which may be an
                // old one.
                self.in_vain[queue] = self.in_vain[queue].min(ENOUGH - 2);
            }
        }
        self.muted |= change.mute;
        self.muted = self.muted.without(change.listen);
        change
    }

    /// Returns the muted queues if it is time to look at them.
    pub fn due(&mut self, now: impl Fn() -> Instant) -> QueueSet {
        if self.muted.is_empty() {
            return QueueSet::EMPTY;
        }
        let now = now();
        if now < self.look_at {
            return QueueSet::EMPTY;
        }
        self.look_at = now + LOOK_EVERY;
        self.muted
    }

    /// How often [`due`](Self::due) has to be called, if at all.
    pub fn tick(&self) -> Option<Duration> {
        (!self.muted.is_empty()).then_some(LOOK_EVERY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kicks queues 3 and 5 in vain until they are muted.
    fn storm(kicks: &mut MutedKicks, now: Instant) -> QueueSet {
        let mut both = QueueSet::EMPTY;
        both.set(3, true);
        both.set(5, true);
        for _ in 1..ENOUGH {
            assert_eq!(kicks.after_turn(both, || now, |_| 0), Change::default());
        }
        let change = kicks.after_turn(both, || now, |_| 0);
        assert_eq!(change, Change { mute: both, listen: QueueSet::EMPTY });
        both
    }

    #[test]
    fn queue_with_requests_is_never_muted() {
        let mut kicks = MutedKicks::new();
        for next in 0..1000 {
            // The second kick comes when the worker has met the request already.
            for _ in 0..2 {
                let change = kicks.after_turn(QueueSet::one(9), Instant::now, |_| next);
                assert_eq!(change, Change::default());
            }
        }
        assert_eq!(kicks.tick(), None);
    }

    #[test]
    fn muted_queues_are_looked_at_by_time_until_one_has_a_request() {
        let (mut kicks, now) = (MutedKicks::new(), Instant::now());
        let both = storm(&mut kicks, now);
        assert_eq!(kicks.tick(), Some(LOOK_EVERY));
        assert_eq!(kicks.due(|| now), QueueSet::EMPTY);
        for look in 1..3 {
            assert_eq!(kicks.due(|| now + LOOK_EVERY * look), both);
            assert_eq!(kicks.after_turn(both, || now, |_| 0), Change::default());
        }
        let change = kicks.after_turn(both, || now, |queue| u16::from(queue == 5));
        assert_eq!(change, Change { mute: QueueSet::EMPTY, listen: QueueSet::one(5) });
        assert_eq!(kicks.due(|| now + LOOK_EVERY * 3), QueueSet::one(3));
    }

    #[test]
    fn worker_listens_again_to_see_whether_the_storm_is_over() {
        let (mut kicks, now) = (MutedKicks::new(), Instant::now());
        let both = storm(&mut kicks, now);
        let later = now + LISTEN_AFTER;
        let change = kicks.after_turn(QueueSet::EMPTY, || later, |_| 0);
        assert_eq!(change, Change { mute: QueueSet::EMPTY, listen: both });
        assert_eq!(kicks.tick(), None, "nothing wakes the worker in vain");
        // What the set tells because the event was signalled once.
        assert_eq!(kicks.after_turn(both, || later, |_| 0), Change::default());
        let change = kicks.after_turn(QueueSet::one(3), || later, |_| 0);
        assert_eq!(change, Change { mute: QueueSet::one(3), listen: QueueSet::EMPTY });
    }
}
