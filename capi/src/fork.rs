//! Which process this is: a forked child has copies of its parent's handles, and must not use them.

use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

/// Forks that lie between the first process that has made a handle and this one.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// A process, among those that have copies of the same handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process(u64);

impl Process {
    /// Returns this process.
    #[inline]
    pub fn this() -> Self {
        Self(FORKS.load(Ordering::Relaxed))
    }

    #[inline]
    pub fn number(self) -> u64 {
        self.0
    }

    /// Has forks be counted from here on.
    pub fn count_forks() {
        static COUNTED: Once = Once::new();
        COUNTED.call_once(|| {
            // SAFETY: the function may run in a forked child: all it does is to add to an atomic.
            // It stays: the shared library is never unloaded (capi/link.sh).
            let refused = unsafe { libc::pthread_atfork(None, None, Some(forked)) };
            // Without memory for it a child is not known as one.
            debug_assert_eq!(refused, 0);
        });
    }
}

extern "C" fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}
