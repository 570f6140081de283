//! Threads for jobs that may take long, shared by any number of rings.
//!
//! A job never waits behind another one: it gets an idle thread, or a new one. So a file system
//! that hangs holds up the flushes of its own rings alone.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use ring_program::Pace;
use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a thread stays without a job.
const IDLE: Duration = Duration::from_secs(10);

/// Bytes of a thread's stack: enough for a flush, and for the report of a panic. There may be a
/// thread for each ring, and a system without overcommitment counts all of every stack.
const STACK: usize = 512 << 10;

type Job = Box<dyn FnMut() + Send>;

/// The threads that run jobs. A clone is the same pool. When the last clone is dropped, idle
/// threads end at once, and every other one behind its job.
#[derive(Clone)]
pub struct FlushPool(Arc<Handle>);

/// What the clones share. The threads do not, so that its drop ends them.
struct Handle(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// How long a thread stays without a job.
    idle: Duration,
    /// The processors of the thread that has made the pool.
    processors: Option<CpuSet>,
}

struct State {
    /// Jobs that no thread has taken yet. For each of them one thread is on its way here, unless it
    /// could not be made.
    jobs: VecDeque<Job>,
    /// The threads without a job, each by what wakes it, and those that are about to drop one,
    /// which wait for nothing. A thread is taken out by whoever wakes it. The last one is woken
    /// first: so those that a burst has left behind are not woken in turns, and end.
    idle: Vec<Arc<Condvar>>,
    /// All threads, with those that are being made.
    threads: usize,
    /// The size of the next thread's stack.
    stack: usize,
    /// The last handle is gone.
    closed: bool,
    failures: Pace,
}

impl FlushPool {
    /// Makes a pool without threads. They will run on the processors of the calling thread,
    /// whichever thread brings the jobs: one of those may be bound to a processor, and poll there.
    pub fn new() -> Self {
        Self::lasting(IDLE)
    }

    /// Makes a pool whose threads stay for that long without a job.
    fn lasting(idle: Duration) -> Self {
        let state = State {
            jobs: VecDeque::new(),
            idle: Vec::new(),
            threads: 0,
            stack: STACK,
            closed: false,
            failures: Pace::default(),
        };
        // An error means more processors than the type holds. Then no thread can have been bound to
        // one by this type either.
        let processors = sched_getaffinity(Pid::from_raw(0)).ok();
        Self(Arc::new(Handle(Arc::new(Shared { state: Mutex::new(state), idle, processors }))))
    }

    /// Has `job` called once by a thread of the pool, and dropped when that thread is idle: whoever
    /// learns by the drop that the job is over, and brings the next one, needs no other thread. So
    /// the drop must not wait for anything. If no thread can be made for the job, it waits for the
    /// next one that has finished another job; without any thread it is dropped at once.
    pub fn run(&self, job: impl FnMut() + Send + 'static) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        state.jobs.push_back(Box::new(job));
        if let Some(thread) = state.idle.pop() {
            thread.notify_one();
            return;
        }
        // It counts from here on: until it is known that it cannot be made, jobs may wait for it.
        state.threads += 1;
        let stack = state.stack;
        // Others can bring and take jobs meanwhile.
        drop(state);
        if let Err(e) = shared.start_thread(stack) {
            shared.lack_thread(&e);
        }
    }
}

#[cfg(test)]
impl FlushPool {
    /// Makes a pool that can make no thread.
    pub fn without_threads() -> Self {
        let pool = Self::new();
        pool.set_stack(usize::MAX / 4);
        pool
    }

    fn set_stack(&self, bytes: usize) {
        self.0.0.lock().stack = bytes;
    }

    /// Returns the number of its threads.
    pub fn threads(&self) -> usize {
        self.0.0.lock().threads
    }
}

impl Default for FlushPool {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        for thread in state.idle.drain(..) {
            thread.notify_one();
        }
    }
}

impl State {
    fn has_idle(&self, thread: &Arc<Condvar>) -> bool {
        self.idle.iter().any(|idle| Arc::ptr_eq(idle, thread))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_thread(self: &Arc<Self>, stack: usize) -> io::Result<()> {
        let shared = Arc::clone(self);
        let builder = std::thread::Builder::new().name("flusher".to_owned()).stack_size(stack);
        builder.spawn(move || shared.work()).map(drop)
    }

    /// Takes back a thread that could not be made.
    fn lack_thread(&self, error: &io::Error) {
        let mut state = self.lock();
        state.threads -= 1;
        // While there is a thread, it takes them when it has finished its job. Otherwise nobody
        // would, and several may have waited for this one.
        let lost =
            if state.threads == 0 { std::mem::take(&mut state.jobs) } else { VecDeque::new() };
        let (count, due) = (lost.len(), state.failures.due());
        drop(state);
        if due {
            log::error!(
                "cannot make a thread for a flush: {error} (too many threads?); flushes that fail for that: {count}"
            );
        }
        // Their drops tell their owners, who may bring other jobs: not under the lock.
        drop(lost);
    }

    /// Runs jobs, on a thread of the pool, until there was none for a while.
    fn work(&self) {
        if let Some(processors) = &self.processors {
            // Where it may not run on these any more, those of whoever has started it will do.
            let _ = sched_setaffinity(Pid::from_raw(0), processors);
        }
        let own = Arc::new(Condvar::new());
        let mut state = self.lock();
        loop {
            let job = state.jobs.pop_front();
            if job.is_none() && state.closed {
                break;
            }
            if let Some(mut job) = job {
                drop(state);
                // A panic was reported on standard error, and by the job's drop to its owner.
                let _ = catch_unwind(AssertUnwindSafe(&mut job));
                state = self.lock();
                state.idle.push(Arc::clone(&own));
                drop(state);
                drop(job);
                state = self.lock();
            } else {
                state.idle.push(Arc::clone(&own));
            }
            let rests =
                |state: &mut State| state.jobs.is_empty() && !state.closed && state.has_idle(&own);
            let (locked, time) = own
                .wait_timeout_while(state, self.idle, rests)
                .unwrap_or_else(PoisonError::into_inner);
            state = locked;
            state.idle.retain(|thread| !Arc::ptr_eq(thread, &own));
            if time.timed_out() {
                // Nobody has woken it, and no job waits.
                break;
            }
        }
        state.threads -= 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Instant;

    /// Longer than any test runs.
    const LONG: Duration = Duration::from_secs(1000);

    fn eventually(what: &str, is_so: impl Fn() -> bool) {
        let start = Instant::now();
        while !is_so() {
            assert!(start.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until so many threads are idle, and no others are there.
    fn expect_idle(pool: &FlushPool, count: usize) {
        eventually("all threads are idle", || {
            let state = pool.0.0.lock();
            (state.idle.len(), state.threads) == (count, count)
        });
    }

    /// Has the pool run a job that ends when it is told to, or when the sender is dropped.
    fn hang(pool: &FlushPool) -> Sender<()> {
        let (tell, told) = channel::<()>();
        let (begins, begun) = channel();
        pool.run(move || {
            begins.send(()).unwrap();
            let _ = told.recv();
        });
        begun.recv().unwrap();
        tell
    }

    #[test]
    fn pool_has_no_thread_before_its_first_job_and_one_for_jobs_in_succession() {
        let pool = FlushPool::lasting(LONG);
        assert_eq!(pool.threads(), 0);
        let (sender, receiver) = channel();
        for number in 0..100 {
            let sender = sender.clone();
            pool.run(move || {
                let name = std::thread::current().name().map(str::to_owned);
                sender.send((number, name)).unwrap();
            });
            assert_eq!(receiver.recv().unwrap(), (number, Some("flusher".to_owned())));
            expect_idle(&pool, 1);
        }
    }

    #[test]
    fn job_does_not_wait_for_jobs_that_hang() {
        let pool = FlushPool::lasting(LONG);
        let hanging: Vec<_> = (0..20).map(|_| hang(&pool)).collect();
        let (sender, receiver) = channel();
        pool.run(move || sender.send(()).unwrap());
        receiver.recv().unwrap();
        assert_eq!(pool.threads(), 21);
        drop(hanging);
        expect_idle(&pool, 21);
    }

    #[test]
    fn idle_threads_end_though_others_have_jobs() {
        let pool = FlushPool::lasting(Duration::from_millis(50));
        let hanging: Vec<_> = (0..10).map(|_| hang(&pool)).collect();
        drop(hanging);
        // One job after the other, for longer than a thread stays: one thread does them all.
        eventually("one thread is left", || {
            drop(hang(&pool));
            pool.threads() == 1
        });
        eventually("it ends, too", || pool.threads() == 0);
        let (sender, receiver) = channel();
        pool.run(move || sender.send(()).unwrap());
        receiver.recv().unwrap();
    }

    #[test]
    fn threads_end_with_the_last_handle_or_behind_their_job() {
        let pool = FlushPool::lasting(LONG);
        let (idle, busy) = (hang(&pool), hang(&pool));
        drop(idle);
        let shared = Arc::clone(&pool.0.0);
        eventually("a thread is idle", || shared.lock().idle.len() == 1);
        drop(pool.clone());
        assert_eq!(shared.lock().threads, 2);
        drop(pool);
        eventually("the idle thread ends", || shared.lock().threads == 1);
        busy.send(()).unwrap();
        eventually("the other one ends", || shared.lock().threads == 0);
    }

    #[test]
    fn job_that_panics_is_dropped_and_its_thread_goes_on() {
        let pool = FlushPool::lasting(LONG);
        let (sender, receiver) = channel::<()>();
        pool.run(move || {
            let _sender = &sender;
            panic!("on purpose");
        });
        assert!(receiver.recv().is_err());
        expect_idle(&pool, 1);
    }

    #[test]
    fn job_without_a_thread_of_its_own_waits_for_another_one() {
        let pool = FlushPool::lasting(LONG);
        let busy = hang(&pool);
        pool.set_stack(usize::MAX / 4);
        let (sender, receiver) = channel();
        for number in 0..3 {
            let sender = sender.clone();
            pool.run(move || sender.send(number).unwrap());
        }
        assert!(receiver.try_recv().is_err());
        busy.send(()).unwrap();
        assert_eq!([(); 3].map(|()| receiver.recv().unwrap()), [0, 1, 2]);
        expect_idle(&pool, 1);
    }

    #[test]
    fn job_without_any_thread_is_dropped() {
        let pool = FlushPool::without_threads();
        let (sender, receiver) = channel();
        pool.run(move || sender.send(()).unwrap());
        assert!(receiver.recv().is_err());
        pool.set_stack(STACK);
        drop(hang(&pool));
        expect_idle(&pool, 1);
    }

    #[test]
    fn thread_runs_on_the_processors_of_the_pools_maker() {
        let this = Pid::from_raw(0);
        let all = sched_getaffinity(this).unwrap();
        let pool = FlushPool::lasting(LONG);
        let (sender, receiver) = channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut only = CpuSet::new();
                let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap()).unwrap();
                only.set(first).unwrap();
                sched_setaffinity(this, &only).unwrap();
                pool.run(move || sender.send(sched_getaffinity(this).unwrap()).unwrap());
            });
        });
        assert!(receiver.recv().unwrap() == all);
    }
}
