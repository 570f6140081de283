//! Work beside a test, as another processor of the guest does it.

use std::sync::atomic::{AtomicBool, Ordering};

/// Repeats `work` on another thread while `test` runs, and no longer, also where the test panics.
pub fn beside<T>(mut work: impl FnMut() + Send, test: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                work();
            }
        });
        let _stop = Stop(&stop);
        test()
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
