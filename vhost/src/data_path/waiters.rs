//! Threads that wait for what the queue's thread holds.
//!
//! A standard mutex is not fair: a guest that keeps its queue busy would have the worker take the
//! lock again and again, while the front end's thread waits for it (and QEMU's main loop for that
//! thread). So a thread that waits says so, and the worker gives way.

use shared_block_ring::device::bell::new_event;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The longest that the worker gives way: the other thread needs microseconds, unless it is not
/// given a processor.
const GIVE_WAY: Duration = Duration::from_millis(20);

/// The threads that wait for the worker, or for one of its queues, and the event that wakes the
/// worker when one of them may have changed something.
#[derive(Debug, Clone)]
pub struct Waiters(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// In the lower half the threads that wait, or hold what they waited for; in the upper half
    /// those that were served since the start. One number, so that the worker compares one.
    threads: AtomicU64,
    /// The turns that the worker has begun, for those that look whether it is alive.
    turns: AtomicU64,
    /// Notified when a thread has been served.
    done: (Mutex<()>, Condvar),
    changed: Arc<OwnedFd>,
}

/// A thread that waits.
const WAITING: u64 = 1;

/// A thread that was served.
const SERVED: u64 = 1 << 32;

/// The threads that had been served at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(u64);

/// A call of the worker, which answers it by beginning a turn.
#[derive(Debug, Clone, Copy)]
pub struct Call {
    /// The turns that had begun before.
    turns: u64,
}

/// A thread that waits, until it has what it waits for and is done with that.
pub struct Waiter<'a>(&'a Shared);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let Shared { threads, done: (lock, done), changed, .. } = self.0;
        threads.fetch_add(SERVED - WAITING, Ordering::Release);
        // A full counter means that the worker is about to wake up anyway.
        let _ = nix::unistd::write(changed, &1u64.to_ne_bytes());
        // The lock: not between the worker's look and its wait, which would then miss this.
        drop(lock.lock());
        done.notify_all();
    }
}

impl Waiters {
    /// Makes a set without threads.
    ///
    /// # Errors
    ///
    /// No event can be made.
    pub fn new() -> io::Result<Self> {
        let (threads, turns) = (AtomicU64::new(0), AtomicU64::new(0));
        let (done, changed) = (Default::default(), Arc::new(new_event()?));
        Ok(Self(Arc::new(Shared { threads, turns, done, changed })))
    }

    /// Announces that this thread waits, until the result is dropped.
    pub fn enter(&self) -> Waiter<'_> {
        self.0.threads.fetch_add(WAITING, Ordering::Relaxed);
        Waiter(&self.0)
    }

    /// The threads that have been served up to now.
    pub fn mark(&self) -> Mark {
        Mark(self.0.threads.load(Ordering::Acquire) & !(SERVED - 1))
    }

    /// Whether a thread waits, so that the worker has to let go of what it holds, or was served
    /// since `mark`. One load.
    pub fn any_since(&self, mark: Mark) -> bool {
        self.0.threads.load(Ordering::Relaxed) != mark.0
    }

    fn any(&self) -> bool {
        self.0.threads.load(Ordering::Relaxed) & (SERVED - 1) != 0
    }

    /// The number of the thread that is served next, if one waits. The same number later means that
    /// none was served meanwhile.
    pub fn first_in_line(&self) -> Option<u64> {
        self.any().then(|| self.mark().0)
    }

    /// Notes that the worker begins a turn. Returns the threads that have been served up to now.
    pub fn begin_turn(&self) -> Mark {
        let mark = self.mark();
        // Behind the mark: a call that this turn does not see is answered by its begin. No other
        // thread counts.
        let turns = self.0.turns.load(Ordering::Relaxed);
        self.0.turns.store(turns.wrapping_add(1), Ordering::Release);
        mark
    }

    /// The turns that the worker has begun. The number wraps around.
    pub fn turns(&self) -> u64 {
        self.0.turns.load(Ordering::Acquire)
    }

    /// Has the worker begin another turn soon, without waiting for that.
    pub fn call(&self) -> Call {
        let turns = self.turns();
        drop(self.enter());
        Call { turns }
    }

    /// Whether the worker has begun a turn since `call`: it is alive.
    pub fn has_answered(&self, call: Call) -> bool {
        self.turns() != call.turns
    }

    /// Waits until no thread does, or `GIVE_WAY`. Called by the worker while it holds nothing.
    pub fn give_way(&self) {
        if self.any() {
            let (lock, done) = &self.0.done;
            let lock = lock.lock().unwrap_or_else(PoisonError::into_inner);
            // When the time is up the worker goes on, and gives way again soon.
            drop(done.wait_timeout_while(lock, GIVE_WAY, |()| self.any()));
        }
    }

    /// The event that is readable when a thread may have changed something.
    pub fn changed(&self) -> &Arc<OwnedFd> {
        &self.0.changed
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    #[test]
    fn worker_gives_way_until_no_thread_waits_or_for_a_bounded_time() {
        let waiters = Waiters::new().unwrap();
        waiters.give_way();
        let waiter = waiters.enter();
        let start = Instant::now();
        waiters.give_way();
        assert!(start.elapsed() >= GIVE_WAY && waiters.any());
        let mark = waiters.mark();
        assert!(waiters.any_since(mark), "it waits");
        std::thread::scope(|scope| {
            scope.spawn(|| drop(waiter));
            while waiters.any() {
                waiters.give_way();
            }
        });
        assert!(waiters.any_since(mark), "it was served since");
        assert!(!waiters.any_since(waiters.mark()));
    }

    #[test]
    fn call_is_answered_by_the_next_turn_whether_or_not_that_sees_it() {
        let waiters = Waiters::new().unwrap();
        let mark = waiters.begin_turn();
        let call = waiters.call();
        assert!(waiters.any_since(mark) && !waiters.has_answered(call), "the turn has to end");
        // This one goes on without seeing the call, which came before it.
        let mark = waiters.begin_turn();
        assert!(!waiters.any_since(mark) && waiters.has_answered(call));
    }
}
