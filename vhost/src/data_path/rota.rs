//! Which of the open queues a round visits, so that idle ones cost the busy ones nothing.

use crate::data_path::queue_set::{MAX_QUEUES, QueueSet};

/// So many queues are visited in every round: that costs less than choosing.
const ALWAYS: usize = 4;

/// Rounds without work until a queue is taken for an idle one, or twice as many.
const LATELY: u32 = 64;

/// The choice, from the beginning of a turn to its end. Queues are numbered by their places here,
/// in the order in which they were opened.
///
/// A round visits every queue that had a request lately, and one of the others. A queue whose
/// driver offers one request after the other is thus met as fast beside many idle queues as alone.
#[derive(Debug)]
pub struct Rota {
    lately: QueueSet,
    before: QueueSet,
    rounds: u32,
    next: usize,
    all: bool,
}

impl Rota {
    /// Takes every queue for a busy one.
    pub fn new() -> Self {
        let all = QueueSet::first(MAX_QUEUES);
        Self { lately: all, before: all, rounds: 0, next: 0, all: true }
    }

    /// Returns the places, of so many in all, that are visited in the next round.
    pub fn round(&mut self, places: usize) -> QueueSet {
        let all = QueueSet::first(places);
        if places <= ALWAYS {
            self.all = true;
            return all;
        }
        self.rounds += 1;
        if self.rounds.is_multiple_of(LATELY) {
            self.before = std::mem::take(&mut self.lately);
        }
        self.next = if self.next + 1 < places { self.next + 1 } else { 0 };
        let mut visited = QueueSet::one(self.next);
        visited |= self.lately;
        visited |= self.before;
        let visited = visited.and(all);
        self.all = visited == all;
        visited
    }

    /// Whether the last round visited every queue.
    pub fn visited_all(&self) -> bool {
        self.all
    }

    /// Notes that a queue had work.
    pub fn worked(&mut self, place: usize) {
        self.lately.set(place, true);
    }

    /// Has the next round visit every queue.
    pub fn visit_all(&mut self) {
        self.lately = QueueSet::first(MAX_QUEUES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_queues_are_all_visited_in_every_round() {
        let mut rota = Rota::new();
        assert!((0..1000).all(|_| rota.round(ALWAYS) == QueueSet::first(ALWAYS)));
    }

    #[test]
    fn busy_queue_is_visited_in_every_round_and_each_idle_one_in_its_turn() {
        let mut rota = Rota::new();
        let mut visits = [0; 63];
        for _ in 1..2 * LATELY {
            assert_eq!(rota.round(63).into_iter().count(), 63, "any of them may be busy");
            rota.worked(5);
        }
        for _ in 0..6300 {
            let round = rota.round(63);
            assert!(round.contains(5) && round.into_iter().count() <= 2 && !rota.visited_all());
            round.into_iter().for_each(|place| visits[place] += 1);
            rota.worked(5);
        }
        assert_eq!(visits[5], 6300);
        assert!(visits.iter().all(|visits| *visits >= 100), "{visits:?}");
        rota.visit_all();
        assert!(rota.round(63).into_iter().count() == 63 && rota.visited_all());
    }
}
