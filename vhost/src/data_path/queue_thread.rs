//! The thread that drives the queues of one front end after the other.

use crate::data_path::empty_kicks::EmptyKicks;
use crate::data_path::kicks::{Kicks, Woken};
use crate::data_path::queue_set::QueueSet;
use crate::data_path::shared_queue::Links;
use crate::data_path::waiters::Waiters;
use crate::data_path::worker::{Share, TurnEnd, Worker};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use shared_block_ring::device::event::{Signaller, drain};
use shared_block_ring::wait::wait_readable;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// The pause after a wait that has failed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The worker, as the queue's thread shares it with those that wait for it.
pub struct SharedWorker {
    worker: Mutex<Worker>,
    waiters: Waiters,
    kicks: Kicks,
    /// Readable when a thread may have changed something, when a flush has finished, and when the
    /// host has moved while a read is held.
    events: [Arc<OwnedFd>; 3],
    over: AtomicBool,
}

/// What a thread notes of a worker from turn to turn.
#[derive(Debug)]
pub(super) struct Progress {
    /// The queues that were kicked since the last turn.
    pub kicked: QueueSet,
    empty_kicks: EmptyKicks,
    /// The number of requests that were taken in all turns.
    pub arrivals: u64,
    /// What the last turn has cost, in bytes that the processor could have copied instead.
    pub cost: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { kicked: QueueSet::EMPTY, empty_kicks: EmptyKicks::None, arrivals: 0, cost: 0 }
    }
}

impl SharedWorker {
    /// Shares `worker`.
    ///
    /// # Errors
    ///
    /// No event can be made.
    pub fn new(worker: Worker) -> io::Result<Self> {
        let (waiters, kicks) = (Waiters::new()?, Kicks::new()?);
        let events = [waiters.changed(), worker.flusher().event(), worker.bell().event()];
        let events = events.map(Arc::clone);
        kicks.add_others(&events)?;
        let (worker, over) = (Mutex::new(worker), AtomicBool::new(false));
        Ok(Self { worker, waiters, kicks, events, over })
    }

    /// The threads that wait for the worker.
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// What a queue needs so that this worker can serve it. Interrupts of the guest go by
    /// `signaller`.
    pub fn links(&self, signaller: &Arc<Signaller>) -> Links {
        let (waiters, kicks) = (self.waiters.clone(), self.kicks.clone());
        Links { waiters, kicks, signaller: Arc::clone(signaller) }
    }

    /// Locks the worker, for any thread but the queue's. The worker gives way until the lock is
    /// taken, and then looks whether something has changed.
    pub fn lock(&self) -> MutexGuard<'_, Worker> {
        let _waiter = self.waiters.enter();
        self.lock_for_turn()
    }

    fn lock_for_turn(&self) -> MutexGuard<'_, Worker> {
        // After a panic while a request was carried out the region is as it is: every request is
        // judged by that.
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drives the queues until [`finish`](Self::finish): a turn of the worker, then a sleep.
    fn drive(&self) {
        let mut progress = Progress::default();
        while !self.over.load(Ordering::Acquire) {
            self.waiters.give_way();
            let worker = self.lock_for_turn();
            let slept = match self.turn(worker, &mut progress, Share::Whole) {
                TurnEnd::GiveWay | TurnEnd::More | TurnEnd::Poll => Ok(()),
                TurnEnd::Rest { until, deaf: true } => self.rest(&mut progress, until),
                TurnEnd::Rest { until, deaf: false } => self.sleep(&mut progress, Some(until)),
                TurnEnd::Sleep(until) => self.sleep(&mut progress, until),
            };
            slept.unwrap_or_else(|e| {
                log::error!("cannot wait for the guest's requests: {e}");
                std::thread::sleep(RETRY_PAUSE);
            });
        }
    }

    fn sleep(&self, progress: &mut Progress, until: Option<Instant>) -> io::Result<()> {
        progress.kicked |= self.wait(until)?.kicked;
        Ok(())
    }

    /// Sleeps until this time, or until an event that is no kick.
    fn rest(&self, progress: &mut Progress, until: Instant) -> io::Result<()> {
        loop {
            let Woken { kicked, by_others } = self.wait(Some(until))?;
            progress.kicked |= kicked;
            if by_others || Instant::now() >= until {
                return Ok(());
            }
        }
    }

    /// Takes one turn of the worker, and notes in `progress` what the next one needs.
    fn turn(
        &self,
        mut worker: MutexGuard<'_, Worker>,
        progress: &mut Progress,
        share: Share,
    ) -> TurnEnd {
        let kicked = std::mem::take(&mut progress.kicked);
        let end = worker.turn(&self.waiters, kicked, share);
        // During a rest nobody looks at what the queues have.
        if !matches!(end, TurnEnd::Rest { .. }) {
            let untouched = || worker.is_untouched();
            progress.empty_kicks = progress.empty_kicks.after_turn(!kicked.is_empty(), untouched);
        }
        progress.cost = worker.cost();
        progress.arrivals = worker.arrivals();
        match end {
            TurnEnd::Sleep(until) => {
                TurnEnd::Sleep(until.into_iter().chain(progress.empty_kicks.deadline()).min())
            }
            end => end,
        }
    }

    /// Takes a fair turn, unless another thread holds the worker or waits for it: that one wakes
    /// this one afterwards.
    pub(super) fn fair_turn(
        &self,
        progress: &mut Progress,
        now: Option<Instant>,
    ) -> Option<TurnEnd> {
        // Where no turn is taken, none costs anything.
        progress.cost = 0;
        if self.waiters.first_in_line().is_some() {
            return None;
        }
        let worker = match self.worker.try_lock() {
            Ok(worker) => worker,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(self.turn(worker, progress, Share::Fair(now)))
    }

    /// Forgets the queues, whose locks a panic may have poisoned: nothing drives them any more.
    pub(super) fn abandon(&self) {
        self.lock_for_turn().abandon();
    }

    /// Sleeps until one of the events, or until this time. Returns what has happened.
    pub(super) fn wait(&self, until: Option<Instant>) -> io::Result<Woken> {
        self.kicks.wait(&self.events, until)
    }

    /// Readable while [`wait`](Self::wait) would not sleep.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.kicks.fd()
    }

    /// Makes [`drive`](Self::drive) return.
    fn finish(&self) {
        self.over.store(true, Ordering::Release);
        drop(self.waiters.enter());
    }

    /// Waits until no flush is under way, once no thread drives the queues. Others can lock the
    /// worker meanwhile.
    ///
    /// # Errors
    ///
    /// A flush has failed: nothing is known about what is on the medium.
    pub fn end_flushes(&self) -> io::Result<()> {
        let [_, flushed, _] = &self.events;
        loop {
            // A result is there before its event: one that comes after this look ends the wait.
            drain(flushed.as_fd())?;
            let ended = self.lock().end_flushes();
            if let Some(outcome) = ended {
                return outcome;
            }
            wait_readable(&[flushed.as_fd()], None)?;
        }
    }
}

/// The running thread. It ends when this is dropped, which waits for no flush.
pub struct QueueThread {
    worker: Arc<SharedWorker>,
    thread: Option<JoinHandle<()>>,
}

/// Ends the process when the thread panics, which is a defect of the backend: a queue that nobody
/// drives helps nobody, and the next process finds everything that was answered.
struct PanicAlarm;

impl Drop for PanicAlarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            log::error!("the queue's thread has panicked: the process ends");
            ring_program::fail();
        }
    }
}

impl QueueThread {
    /// Starts the thread, on one processor alone if one is given.
    ///
    /// # Errors
    ///
    /// No thread can be made, or it may not run on that processor.
    pub fn start(worker: Arc<SharedWorker>, cpu: Option<usize>) -> io::Result<Self> {
        let driven = Arc::clone(&worker);
        let spawn = || {
            std::thread::Builder::new().name("queue".to_owned()).spawn(move || {
                let _alarm = PanicAlarm;
                driven.drive();
            })
        };
        let thread = match cpu {
            Some(cpu) => on_processor(cpu, spawn)?,
            None => spawn()?,
        };
        Ok(Self { worker, thread: Some(thread) })
    }

    /// Ends the thread, and waits for the flush that is under way, if one is. The kernel reports a
    /// write-back error once to an open file description: if it does so to that flush, no later
    /// one of the same description fails.
    ///
    /// # Errors
    ///
    /// A flush has failed: nothing is known about what is on the medium.
    pub fn finish(self) -> io::Result<()> {
        let worker = Arc::clone(&self.worker);
        drop(self);
        worker.end_flushes()
    }
}

/// Checks that a thread may run on that processor.
///
/// # Errors
///
/// It may not.
pub fn try_processor(cpu: usize) -> io::Result<()> {
    on_processor(cpu, || Ok(()))
}

/// Calls `start` on that processor. A thread that it makes inherits the processor, so that an error
/// is known before there is a thread.
pub(super) fn on_processor<T>(cpu: usize, start: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this)?;
    let mut only = CpuSet::new();
    only.set(cpu)?;
    sched_setaffinity(this, &only)?;
    let started = start();
    sched_setaffinity(this, &before)?;
    started
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        self.worker.finish();
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked: that ends the process.
            let _ = thread.join();
        }
    }
}
