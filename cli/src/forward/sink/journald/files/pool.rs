//! The threads that run programs: a few for all rings, since each run takes a processor for some
//! milliseconds and ends with a flush.

use super::ring::{Ring, Turn};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

/// Rings that are written at the same time.
const THREADS: usize = 4;

/// Stack of a thread in bytes.
const STACK: usize = 512 << 10;

/// The threads, and the rings that have something for them. They end after what they are at when
/// the pool is dropped.
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    /// Rings by the time of their turn. A ring that is not wanted any more is gone.
    due: BTreeMap<(Instant, u64), Weak<Ring>>,
    turns: u64,
    threads: usize,
    idle: usize,
    is_ended: bool,
}

impl Pool {
    pub fn new() -> Self {
        let shared = Shared { queue: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared) }
    }

    /// Gives the ring a turn at that time.
    pub fn schedule(&self, ring: &Arc<Ring>, at: Instant) {
        let mut queue = self.shared.lock();
        queue.add(Arc::downgrade(ring), at);
        if queue.idle == 0 && queue.threads < THREADS {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("journald".to_owned()).stack_size(STACK);
            match thread.spawn(move || shared.work()) {
                Ok(_) => queue.threads += 1,
                Err(e) if queue.threads == 0 => {
                    // Nobody would do the work.
                    log::error!("cannot start a thread (a limit on processes or on memory?): {e}");
                    ring_program::fail();
                }
                Err(_) => {}
            }
        }
        drop(queue);
        self.shared.changed.notify_one();
    }

    pub fn share(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }

    /// Ends the threads after what they are at.
    pub fn end(&self) {
        self.shared.lock().is_ended = true;
        self.shared.changed.notify_all();
    }
}

impl Queue {
    fn add(&mut self, ring: Weak<Ring>, at: Instant) {
        self.turns += 1;
        self.due.insert((at, self.turns), ring);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(ring) = self.next() {
            // The lane is gone, or has its turn.
            let Some(ring) = ring.upgrade() else { continue };
            if let Turn::Again(at) = ring.turn() {
                self.lock().add(Arc::downgrade(&ring), at);
                self.changed.notify_one();
            }
        }
    }

    /// Returns the next ring when its time has come; `None` at the end.
    fn next(&self) -> Option<Weak<Ring>> {
        let mut queue = self.lock();
        loop {
            if queue.is_ended {
                return None;
            }
            let now = Instant::now();
            let first = queue.due.first_entry();
            let wait = first.as_ref().map(|first| first.key().0.saturating_duration_since(now));
            if let Some(first) = first.filter(|first| first.key().0 <= now) {
                return Some(first.remove());
            }
            queue.idle += 1;
            queue = match wait {
                Some(wait) => {
                    let waited = self.changed.wait_timeout(queue, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner),
            };
            queue.idle -= 1;
        }
    }
}
