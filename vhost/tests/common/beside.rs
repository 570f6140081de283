//! Another processor of the guest.

use std::sync::atomic::{AtomicBool, Ordering};

/// Has another thread do `work` again and again while `test` runs, and no longer, also where that fails.
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
