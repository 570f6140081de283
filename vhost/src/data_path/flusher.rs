//! `fdatasync` on another thread: it takes milliseconds, and the queue's thread must stay able to
//! answer a stop.

use crate::data_path::counters::Counters;
use crate::data_path::flush_pool::FlushPool;
use crate::data_path::probes;
use shared_block_ring::device::bell::new_event;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// The number of a requested flush, which any number of requests may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// The flushes of one region, each made by a thread of a pool, and their results.
///
/// A flush that is under way when this is dropped goes on, and keeps the region's file open until
/// it ends. The drop does not wait for it: a file system that hangs must not hold up whoever
/// removes a ring from a process that serves others. Nobody learns how that flush has ended, though
/// the kernel may have reported a write-back error to it alone: so whoever still promises something
/// about the medium asks [`end`](Self::end) first.
pub struct Flusher {
    pool: FlushPool,
    sync: Arc<Mutex<SyncFn>>,
    shared: Arc<Shared>,
    /// Flushes begun, and flushes whose result was received: at most one is under way.
    begun: u64,
    finished: u64,
    /// Another flush was requested since the last one began.
    wanted: bool,
    /// The first flush that has failed, and why.
    failed: Option<(u64, io::Error)>,
}

/// A function that makes everything durable.
type SyncFn = Box<dyn FnMut() -> io::Result<()> + Send>;

/// The end of a flush, as its thread tells the flusher.
struct Shared {
    /// The result of a flush, until the flusher receives it.
    result: Mutex<Option<io::Result<()>>>,
    done: Arc<OwnedFd>,
    counters: Arc<Counters>,
}

/// One flush. Its result is reported when this is dropped: also if the pool had no thread for it,
/// or if it has panicked.
struct Flush {
    /// None once it was made: the region's file, if it is the last to have it, is closed in the
    /// flush, since that may take as long. The drop must not.
    sync: Option<Arc<Mutex<SyncFn>>>,
    result: Option<io::Result<()>>,
    shared: Arc<Shared>,
}

impl Flush {
    fn make(&mut self) {
        // A function that has panicked before is called again: the flush in which it did has
        // failed, and so all later ones fail.
        let call = |sync: Arc<Mutex<SyncFn>>| sync.lock().unwrap_or_else(PoisonError::into_inner)();
        self.result = self.sync.take().map(call);
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let shared = &self.shared;
        let unmade = || Err(io::Error::other("the flush had no thread, or it has panicked"));
        let result = self.result.take().unwrap_or_else(unmade);
        shared.counters.flush_failures.add(u64::from(result.is_err()));
        // From here on the flusher may begin the next flush, on another thread.
        *shared.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
        // The counter takes a one: it is emptied more often than it could become full.
        let _ = nix::unistd::write(&shared.done, &1u64.to_ne_bytes());
    }
}

impl Flusher {
    /// Makes a flusher of `file`, whose flushes are made by `pool`. It must be the open file
    /// description that the region is mapped by, since a write-back error is reported once to each
    /// description. The time of each flush, and its failure, are counted.
    ///
    /// # Errors
    ///
    /// No event can be made.
    pub fn start(
        pool: &FlushPool,
        file: impl Into<Arc<File>>,
        counters: Arc<Counters>,
    ) -> io::Result<Self> {
        let file = file.into();
        let observed = Arc::clone(&counters);
        let sync = move || {
            let start = Instant::now();
            probes::flush_begin();
            let outcome = file.sync_data();
            probes::flush_end(
                outcome.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0),
            );
            observed.flush_time.observe(start.elapsed());
            outcome
        };
        Self::counted(pool, Box::new(sync), counters)
    }

    /// Makes a flusher of a function that makes everything durable that was stored before.
    ///
    /// # Errors
    ///
    /// No event can be made.
    pub fn by(
        pool: &FlushPool,
        sync: impl FnMut() -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        Self::counted(pool, Box::new(sync), Arc::default())
    }

    fn counted(pool: &FlushPool, sync: SyncFn, counters: Arc<Counters>) -> io::Result<Self> {
        let done = Arc::new(new_event()?);
        Ok(Self {
            pool: pool.clone(),
            sync: Arc::new(Mutex::new(sync)),
            shared: Arc::new(Shared { result: Mutex::new(None), done, counters }),
            begun: 0,
            finished: 0,
            wanted: false,
            failed: None,
        })
    }

    /// Requests a flush of everything stored before. While one is under way, which may have begun
    /// before some of that was stored, all requests share the next.
    pub fn request(&mut self) -> Ticket {
        if self.begun == self.finished {
            self.begin();
            return Ticket(self.begun);
        }
        self.wanted = true;
        Ticket(self.begun + 1)
    }

    fn begin(&mut self) {
        self.begun += 1;
        let (sync, shared) = (Some(Arc::clone(&self.sync)), Arc::clone(&self.shared));
        let mut flush = Flush { sync, result: None, shared };
        self.pool.run(move || flush.make());
    }

    /// Receives the result of a flush that has finished, also of one whose requests were given back
    /// by a stop, and begins the next if one is wanted. No system call, and one comparison where
    /// none is under way.
    #[inline]
    pub fn poll(&mut self) {
        if self.begun != self.finished {
            self.receive();
        }
    }

    fn receive(&mut self) {
        while self.begun != self.finished
            && let Some(result) = self.take_result()
        {
            // The only one that was under way.
            self.finished = self.begun;
            if let Err(e) = result
                && self.failed.is_none()
            {
                log::error!(
                    "cannot make the region durable: {e}; writes and flushes fail from here on"
                );
                self.failed = Some((self.finished, e));
            }
            if std::mem::take(&mut self.wanted) {
                self.begin();
            }
        }
    }

    fn take_result(&self) -> Option<io::Result<()>> {
        self.shared.result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether everything is durable that was stored before `ticket` was given out; `None` while
    /// that flush has not finished. Counts what [`poll`](Self::poll) received. A flush behind one
    /// that has failed makes nothing durable: the write-back error is reported once.
    pub fn outcome(&self, ticket: Ticket) -> Option<bool> {
        let is_before_failure =
            || self.failed.as_ref().is_none_or(|(failed, _)| ticket.0 < *failed);
        (ticket.0 <= self.finished).then(is_before_failure)
    }

    /// Whether a flush has failed: nothing is known then about what is on the medium, and a second
    /// try would only hide it.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The event that is readable when a flush has finished.
    pub fn event(&self) -> &Arc<OwnedFd> {
        &self.shared.done
    }

    /// Ends the flushes: no other one begins, and requests that wait for it stay without an
    /// outcome. Returns the error of the first flush that has failed, if one has; `None` while one
    /// is still under way, whose end makes the [`event`](Self::event) readable.
    pub fn end(&mut self) -> Option<io::Result<()>> {
        self.wanted = false;
        self.poll();
        (self.begun == self.finished).then(|| {
            self.failed.as_ref().map_or(Ok(()), |(_, e)| {
                Err(e
                    .raw_os_error()
                    .map_or_else(|| io::Error::other(e.to_string()), io::Error::from_raw_os_error))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::device::event::drain;
    use shared_block_ring::wait::wait_readable;
    use std::os::fd::AsFd;
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    /// A flusher whose flushes end, well or not, as they are told to.
    fn told(pool: &FlushPool) -> (Flusher, Sender<bool>) {
        let (tell, told) = channel();
        let sync = move || match told.recv() {
            Ok(true) => Ok(()),
            _ => Err(io::ErrorKind::Other.into()),
        };
        (Flusher::by(pool, sync).unwrap(), tell)
    }

    fn finish(flusher: &mut Flusher, tell: &Sender<bool>, well: bool) {
        tell.send(well).unwrap();
        receive(flusher);
    }

    /// Waits for the end of a flush.
    fn receive(flusher: &mut Flusher) {
        wait_readable(&[flusher.event().as_fd()], None).unwrap();
        drain(flusher.event().as_fd()).unwrap();
        flusher.poll();
    }

    fn outcome_of_one(flusher: &mut Flusher) -> Option<bool> {
        let ticket = flusher.request();
        receive(flusher);
        flusher.outcome(ticket)
    }

    #[test]
    fn requests_during_a_flush_share_the_next() {
        let (mut flusher, tell) = told(&FlushPool::new());
        let first = flusher.request();
        let (second, third) = (flusher.request(), flusher.request());
        assert!(first != second && second == third);
        assert_eq!(flusher.outcome(first), None);
        finish(&mut flusher, &tell, true);
        assert_eq!((flusher.outcome(first), flusher.outcome(second)), (Some(true), None));
        let fourth = flusher.request();
        finish(&mut flusher, &tell, true);
        assert_eq!((flusher.outcome(third), flusher.outcome(fourth)), (Some(true), None));
        finish(&mut flusher, &tell, true);
        assert_eq!(flusher.outcome(fourth), Some(true));
        flusher.poll();
        assert_eq!(flusher.begun, 3, "none that nobody wants");
    }

    #[test]
    fn nothing_is_durable_from_a_failed_flush_on() {
        let (mut flusher, tell) = told(&FlushPool::new());
        let first = flusher.request();
        finish(&mut flusher, &tell, true);
        let second = flusher.request();
        let third = flusher.request();
        finish(&mut flusher, &tell, false);
        finish(&mut flusher, &tell, true);
        let outcomes = [first, second, third].map(|ticket| flusher.outcome(ticket));
        assert_eq!(outcomes, [Some(true), Some(false), Some(false)]);
        assert!(flusher.has_failed());
    }

    #[test]
    fn flushers_share_a_thread() {
        let pool = FlushPool::new();
        let quick = || Flusher::by(&pool, || Ok(())).unwrap();
        let mut flushers: Vec<_> = (0..100).map(|_| quick()).collect();
        assert_eq!(pool.threads(), 0);
        for _ in 0..10 {
            for flusher in &mut flushers {
                assert_eq!(outcome_of_one(flusher), Some(true));
            }
        }
        assert_eq!(pool.threads(), 1, "each is over when the thread is idle");
    }

    #[test]
    fn flushers_that_hang_delay_no_other() {
        let pool = FlushPool::new();
        let mut hanging: Vec<_> = (0..20).map(|_| told(&pool)).collect();
        let tickets: Vec<_> = hanging.iter_mut().map(|(flusher, _)| flusher.request()).collect();
        let (mut flusher, tell) = told(&pool);
        let ticket = flusher.request();
        finish(&mut flusher, &tell, true);
        assert_eq!(flusher.outcome(ticket), Some(true));
        for ((flusher, tell), ticket) in hanging.iter_mut().zip(tickets) {
            flusher.poll();
            assert_eq!(flusher.outcome(ticket), None);
            finish(flusher, tell, true);
            assert_eq!(flusher.outcome(ticket), Some(true));
        }
    }

    #[test]
    fn drop_does_not_wait_and_the_flush_goes_on() {
        let pool = FlushPool::new();
        let (go_on, goes_on) = channel::<()>();
        let (ends, ended) = channel();
        let mut flusher = Flusher::by(&pool, move || {
            goes_on.recv().unwrap();
            ends.send(()).unwrap();
            Ok(())
        })
        .unwrap();
        flusher.request();
        drop(flusher);
        drop(pool);
        go_on.send(()).unwrap();
        ended.recv().unwrap();
        assert!(ended.recv().is_err(), "what it has used is dropped");
    }

    #[test]
    fn flush_that_panics_has_failed() {
        let mut flusher = Flusher::by(&FlushPool::new(), || panic!("on purpose")).unwrap();
        assert_eq!(outcome_of_one(&mut flusher), Some(false));
        assert_eq!(outcome_of_one(&mut flusher), Some(false));
        assert!(flusher.has_failed());
    }

    #[test]
    fn flush_without_a_thread_has_failed_and_is_counted() {
        let counters = Arc::new(Counters::default());
        let file = tempfile::tempfile().unwrap();
        let pool = FlushPool::without_threads();
        let mut flusher = Flusher::start(&pool, file, Arc::clone(&counters)).unwrap();
        assert_eq!(outcome_of_one(&mut flusher), Some(false));
        assert_eq!(counters.flush_failures.get(), 1);
    }

    #[test]
    fn end_tells_of_the_flush_under_way_and_begins_no_other() {
        for (well, raw) in [(true, None), (false, Some(libc::EIO))] {
            let (tell, told) = channel();
            let (begins, begun) = channel();
            let sync = move || {
                begins.send(()).unwrap();
                let well: bool = told.recv().unwrap();
                if well { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EIO)) }
            };
            let mut flusher = Flusher::by(&FlushPool::new(), sync).unwrap();
            assert!(flusher.end().unwrap().is_ok());
            flusher.request();
            let unanswered = flusher.request();
            assert!(flusher.end().is_none());
            tell.send(well).unwrap();
            wait_readable(&[flusher.event().as_fd()], None).unwrap();
            let outcome = flusher.end().unwrap();
            assert_eq!(outcome.err().map(|e| e.raw_os_error()), raw.map(Some));
            assert_eq!(flusher.outcome(unanswered), None);
            begun.recv().unwrap();
            assert!(begun.recv_timeout(Duration::from_millis(10)).is_err());
        }
    }
}
