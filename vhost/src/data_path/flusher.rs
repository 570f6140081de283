//! `fdatasync` on a thread of its own: it takes milliseconds, and the queue's thread must stay able
//! to answer a stop.

use crate::data_path::counters::Counters;
use crate::data_path::probes;
use shared_block_ring::device::bell::new_event;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Instant;

/// The number of a requested flush, which any number of requests may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// The flushing thread, the channels to and from it, and its results.
#[derive(Debug)]
pub struct Flusher {
    // An option, so that the channel can be closed before the thread is joined.
    requests: Option<Sender<Ticket>>,
    results: Receiver<(Ticket, io::Result<()>)>,
    /// Flushes begun, and flushes whose result was received: at most one is under way.
    begun: u64,
    finished: u64,
    /// Another flush was requested since the last one began.
    wanted: bool,
    /// The first flush that has failed.
    failed: Option<u64>,
    done: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread on `file`. It must be the open file description that the region is mapped
    /// by, since a write-back error is reported once to each description. The time of each flush,
    /// and its failure, are counted.
    ///
    /// # Errors
    ///
    /// No event or no thread can be made.
    pub fn start(file: File, counters: Arc<Counters>) -> io::Result<Self> {
        Self::by(move || {
            let start = Instant::now();
            probes::flush_begin();
            let outcome = file.sync_data();
            probes::flush_end(
                outcome.as_ref().err().and_then(io::Error::raw_os_error).unwrap_or(0),
            );
            counters.flush_time.observe(start.elapsed());
            counters.flush_failures.add(u64::from(outcome.is_err()));
            outcome
        })
    }

    /// Starts the thread with a function that makes everything durable that was stored before.
    ///
    /// # Errors
    ///
    /// No event or no thread can be made.
    pub fn by(mut sync: impl FnMut() -> io::Result<()> + Send + 'static) -> io::Result<Self> {
        let (requests, tickets) = channel::<Ticket>();
        let (sender, results) = channel();
        let done = new_event()?;
        let event = done.try_clone()?;
        let thread = std::thread::Builder::new().name("flusher".to_owned()).spawn(move || {
            for ticket in tickets {
                // Either fails only when the worker is gone, which was the only receiver.
                if sender.send((ticket, sync())).is_err()
                    || nix::unistd::write(&event, &1u64.to_ne_bytes()).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self {
            requests: Some(requests),
            results,
            begun: 0,
            finished: 0,
            wanted: false,
            failed: None,
            done,
            thread: Some(thread),
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
        let ticket = Ticket(self.begun);
        if self.requests.as_ref().is_none_or(|requests| requests.send(ticket).is_err()) {
            // Cannot be: the thread ends with us. If it did, an unanswered flush is the safe
            // answer.
            log::error!("cannot request a flush: its thread has ended");
        }
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
            && let Ok((ticket, result)) = self.results.try_recv()
        {
            self.finished = ticket.0;
            if let Err(e) = result
                && self.failed.is_none()
            {
                self.failed = Some(ticket.0);
                log::error!(
                    "cannot make the region durable: {e}; writes and flushes fail from here on"
                );
            }
            if std::mem::take(&mut self.wanted) {
                self.begin();
            }
        }
    }

    /// Whether everything is durable that was stored before `ticket` was given out; `None` while
    /// that flush has not finished. Counts what [`poll`](Self::poll) received. A flush behind one
    /// that has failed makes nothing durable: the write-back error is reported once.
    pub fn outcome(&self, ticket: Ticket) -> Option<bool> {
        (ticket.0 <= self.finished).then(|| self.failed.is_none_or(|failed| ticket.0 < failed))
    }

    /// Whether a flush has failed: nothing is known then about what is on the medium, and a second
    /// try would only hide it.
    pub fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// The event that is readable when a flush has finished.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.done.as_fd()
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported on standard error.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::wait::wait_readable;

    /// A flusher whose flushes end, well or not, as they are told to.
    fn told() -> (Flusher, Sender<bool>) {
        let (tell, told) = channel();
        let sync = move || match told.recv() {
            Ok(true) => Ok(()),
            _ => Err(io::ErrorKind::Other.into()),
        };
        (Flusher::by(sync).unwrap(), tell)
    }

    fn finish(flusher: &mut Flusher, tell: &Sender<bool>, well: bool) {
        tell.send(well).unwrap();
        wait_readable(&[flusher.event()], None).unwrap();
        shared_block_ring::device::event::drain(flusher.event()).unwrap();
        flusher.poll();
    }

    #[test]
    fn requests_during_a_flush_share_the_next() {
        let (mut flusher, tell) = told();
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
        let (mut flusher, tell) = told();
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
}
