//! Threads beside the attack's own.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Failure;

/// Runs each of `others` in a thread of its own, until `work` is over and they are told to stop.
/// Returns all results.
pub(super) fn meanwhile<T, O: Send>(
    others: impl IntoIterator<Item = impl FnOnce(&Stop) -> O + Send>,
    work: impl FnOnce() -> Result<T, Failure>,
) -> Result<(T, Vec<O>), Failure> {
    let stop = Stop(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let others = others.into_iter().map(|other| scope.spawn(|| other(&stop)));
        // All threads run before the work begins.
        let others: Vec<_> = others.collect();
        let done = {
            let _told = OnDrop(&stop);
            work()
        };
        let outcomes = others
            .into_iter()
            .map(|other| other.join().map_err(|_| Failure::Unsound("a thread died".into())));
        let outcomes = outcomes.collect::<Result<_, _>>()?;
        Ok((done?, outcomes))
    })
}

/// Whether the work is over.
pub(super) struct Stop(AtomicBool);

impl Stop {
    pub(super) fn is_told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The threads are told also where the work panics: otherwise the scope would wait for ever.
struct OnDrop<'a>(&'a Stop);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
