//! An allocator that records the largest allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The system's allocator, with a record of the largest allocation.
#[derive(Debug)]
pub struct Watching(AtomicUsize);

impl Watching {
    /// Makes one for a `#[global_allocator]`.
    #[expect(clippy::new_without_default, reason = "a static is not made by Default")]
    pub const fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Forgets earlier allocations.
    pub fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Returns the largest allocation since the last reset, in bytes.
    pub fn largest(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

// SAFETY: everything is passed on to the system's allocator; only the size is noted.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: it was allocated by the same allocator, above.
        unsafe { System.dealloc(at, layout) }
    }
}
