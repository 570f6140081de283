//! Which of its rings a thread leaves out of a sweep, so that one whose turns cost much takes fewer
//! of them: each has the same part of the thread's time, and what a ring does not use of its part
//! is for those that have more to do.

/// What a turn may cost, in bytes that the processor could have copied instead, for a ring that
/// takes one in every sweep: a request or two.
const QUANTUM: u64 = 8 << 10;

/// The most sweeps that a ring is left out of: a request of many megabytes is long over by then.
const MOST: u64 = 256;

/// The number of a sweep. One ring's is the first in which it takes a turn again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sweep(u64);

/// The sweeps of a thread.
#[derive(Debug, Default)]
pub(super) struct Parts {
    now: Sweep,
    /// The first sweep in which one of the rings that this one has met takes a turn again.
    next: Option<Sweep>,
}

impl Parts {
    /// Whether a ring takes a turn in this sweep that takes none before `due`.
    pub fn takes_turn(&mut self, due: Sweep) -> bool {
        let takes = due <= self.now;
        if !takes {
            self.note(due);
        }
        takes
    }

    /// Returns when a ring takes a turn again whose turn of this sweep has cost so much.
    pub fn charge(&mut self, cost: u64) -> Sweep {
        let due = Sweep(self.now.0 + cost.div_ceil(QUANTUM).clamp(1, MOST));
        self.note(due);
        due
    }

    fn note(&mut self, due: Sweep) {
        self.next = Some(self.next.map_or(due, |next| next.min(due)));
    }

    /// Ends the sweep. Those in which no ring would take a turn are passed over.
    pub fn end_sweep(&mut self) {
        let next = Sweep(self.now.0 + 1);
        self.now = self.next.take().map_or(next, |found| found.max(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sweeps over rings whose turns cost so much. Returns how many turns each has had.
    fn sweeps<const N: usize>(costs: [u64; N], sweeps: usize) -> [u32; N] {
        let (mut parts, mut due, mut turns) = (Parts::default(), [Sweep::default(); N], [0; N]);
        for _ in 0..sweeps {
            for ring in 0..N {
                if parts.takes_turn(due[ring]) {
                    due[ring] = parts.charge(costs[ring]);
                    turns[ring] += 1;
                }
            }
            parts.end_sweep();
        }
        turns
    }

    #[test]
    fn ring_with_dear_turns_takes_as_many_as_make_its_part() {
        let [light, empty, dear] = sweeps([QUANTUM, 0, 10 * QUANTUM], 1000);
        assert_eq!((light, empty, dear), (1000, 1000, 100));
        let [light, dear] = sweeps([QUANTUM, u64::MAX], 1000);
        assert_eq!((light, dear), (1000, 4), "there is a bound");
    }

    #[test]
    fn no_sweep_is_without_a_turn() {
        for cost in [0, QUANTUM, QUANTUM + 1, 50 * QUANTUM] {
            assert_eq!(sweeps([cost; 3], 1000), [1000; 3], "rings that are alike");
            assert_eq!(sweeps([cost], 1000), [1000], "one alone");
        }
        let [less, more] = sweeps([20 * QUANTUM, 40 * QUANTUM], 1000);
        assert_eq!((less, more), (1000, 500), "the same part for both");
    }
}
