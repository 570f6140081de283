//! Ends a process whose threads cannot be ended.
//!
//! A thread can wait in the kernel for another process without end: for a page of a log of dirty
//! pages that lies on FUSE, or in the close of a descriptor that a front end has sent from there.
//! What that thread holds is lost, and so is every front end that would need it. So the process
//! ends with a message, and whatever supervises it starts it again. Everything that was answered is
//! in the region.
//!
//! A service manager that wants signs of life gets them from here, as long as the queue's thread
//! answers: it is called at each sign, and has to have begun a turn by the next one.

use crate::data_path::waiters::{Call, Waiters};
use ring_os::{Limits, await_readable};
use ring_program::{ServiceManager, Stop};
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::wait_readable;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a stop may take until every thread has ended.
const GRACE: Duration = Duration::from_secs(30);

/// The time between two looks at the queue's thread.
const LOOK: Duration = Duration::from_secs(5);

/// Looks in succession that find the same thread waiting for the queue's thread, which needs
/// milliseconds, before the process ends.
const LOOKS: u32 = 6;

/// Looks in the time between two signs of life, once the queue's thread is late.
const LATE_LOOKS: u32 = 8;

/// How long the end of the process waits for a reader of the log.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The exit code: an error.
const FAILED: i32 = 1;

/// The watching thread. It ends when this is dropped.
pub struct Watchdog {
    over: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Starts to watch: every thread must have ended `GRACE` after a stop was asked for, and the
    /// queue's thread must give way to those that wait for it (`waiters`). Gives `manager` the
    /// signs of life that it wants.
    ///
    /// # Errors
    ///
    /// No event or no thread can be made.
    pub fn start(stop: &Stop, waiters: Waiters, manager: Arc<ServiceManager>) -> io::Result<Self> {
        let over = new_event()?;
        let (ended, asked) = (over.try_clone()?, stop.fd().try_clone_to_owned()?);
        let watch = move || watch(&ended, &asked, &waiters, &manager);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(watch)?;
        Ok(Self { over, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The counter of a fresh event takes a one.
        let _ = nix::unistd::write(&self.over, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
    }
}

fn watch(over: &OwnedFd, stop: &OwnedFd, waiters: &Waiters, manager: &ServiceManager) {
    let mut progress = Progress::default();
    let mut signs = manager.interval().map(|interval| Signs::new(interval, waiters));
    let mut next_look = Instant::now() + LOOK;
    loop {
        let due = signs.as_ref().map_or(next_look, |signs| signs.next.min(next_look));
        let left = due.saturating_duration_since(Instant::now());
        match wait_readable(&[over.as_fd(), stop.as_fd()], Some(left)) {
            Ok(Some(0)) => return,
            Ok(Some(_)) => {
                // A second request to stop does not shorten the time.
                if await_readable(over.as_fd(), &Limits::within(GRACE)).is_ok() {
                    return;
                }
                give_up("a thread has not ended after the stop");
            }
            Ok(None) => {}
            Err(e) => {
                log::error!("cannot watch the threads: {e}");
                return;
            }
        }
        let now = Instant::now();
        if let Some(signs) = &mut signs
            && signs.is_due(now, waiters)
        {
            manager.alive();
        }
        if next_look <= now {
            next_look = now + LOOK;
            if progress.has_ended(waiters.first_in_line()) {
                give_up("the queue's thread does not move");
            }
        }
    }
}

/// The progress of threads that wait for the queue's thread, from look to look.
#[derive(Default)]
struct Progress {
    last: Option<u64>,
    /// The looks in succession that have found the same thread waiting.
    repeats: u32,
}

impl Progress {
    /// Returns whether the queue's thread is given up, after one more look, which has found `first`
    /// waiting.
    fn has_ended(&mut self, first: Option<u64>) -> bool {
        self.repeats = if first.is_some() && first == self.last { self.repeats + 1 } else { 0 };
        self.last = first;
        self.repeats >= LOOKS
    }
}

/// The signs of life for a service manager.
struct Signs {
    interval: Duration,
    next: Instant,
    /// The last call of the queue's thread.
    call: Call,
}

impl Signs {
    fn new(interval: Duration, waiters: &Waiters) -> Self {
        Self { interval, next: Instant::now() + interval, call: waiters.call() }
    }

    /// Returns whether a sign of life is to be given now: it is time, and the queue's thread has
    /// answered. Calls it again then.
    fn is_due(&mut self, now: Instant, waiters: &Waiters) -> bool {
        if now < self.next {
            return false;
        }
        if !waiters.has_answered(self.call) {
            // An answer that is late on a busy machine still counts.
            self.next = now + self.interval / LATE_LOOKS;
            return false;
        }
        self.next = now + self.interval;
        self.call = waiters.call();
        true
    }
}

/// Ends the process at once, whatever its other threads are doing.
fn give_up(what: &str) -> ! {
    log::error!(
        "{what}: it waits in the kernel for memory or a descriptor of a front end's (on FUSE or NFS?), \
         or for the ring's disk: the process ends; start it again"
    );
    ring_program::stderr::finish(LAST_WORDS);
    signal_hook::low_level::exit(FAILED)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn signs_of_life_end_when_no_turn_begins_and_go_on_after_the_next_one() {
        let waiters = Waiters::new().unwrap();
        let mut signs = Signs::new(Duration::from_secs(10), &waiters);
        let mut now = signs.next;
        assert!(!signs.is_due(now, &waiters), "no turn has begun");
        waiters.begin_turn();
        assert!(!signs.is_due(now, &waiters), "it is too early");
        now = signs.next;
        assert!(signs.is_due(now, &waiters));
        now = signs.next;
        assert!(!signs.is_due(now, &waiters), "no turn has begun since");
        waiters.begin_turn();
        now = signs.next;
        assert!(signs.is_due(now, &waiters));
    }

    #[test]
    fn thread_that_is_served_between_looks_is_progress() {
        let mut progress = Progress::default();
        assert!((0..LOOKS).all(|_| !progress.has_ended(Some(7))));
        assert!(!progress.has_ended(Some(8)) && !progress.has_ended(None));
        assert!((0..LOOKS).all(|_| !progress.has_ended(Some(8))));
        assert!(progress.has_ended(Some(8)));
    }
}
