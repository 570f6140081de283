//! `fdatasync` on a thread of its own: it takes milliseconds, and the queue's thread must stay able
//! to answer a stop.

use shared_block_ring::device::bell::new_event;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The number of a requested flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// The flushing thread, the channels to and from it, and its results.
#[derive(Debug)]
pub struct Flusher {
    // An option, so that the channel can be closed before the thread is joined.
    requests: Option<Sender<Ticket>>,
    results: Receiver<(Ticket, io::Result<()>)>,
    /// Flushes requested, and flushes whose result was received.
    requested: u64,
    received: u64,
    /// The last result: whether everything stored before that flush is durable.
    last: Option<(Ticket, bool)>,
    failed: bool,
    done: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread on `file`. It must be the open file description that the region is mapped
    /// by, since a write-back error is reported once to each description.
    ///
    /// # Errors
    ///
    /// No event or no thread can be made.
    pub fn start(file: File) -> io::Result<Self> {
        Self::by(move || file.sync_data())
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
            requested: 0,
            received: 0,
            last: None,
            failed: false,
            done,
            thread: Some(thread),
        })
    }

    /// Requests a flush of everything stored before.
    pub fn request(&mut self) -> Ticket {
        self.requested += 1;
        let ticket = Ticket(self.requested);
        if self.requests.as_ref().is_none_or(|requests| requests.send(ticket).is_err()) {
            // Cannot be: the thread ends with us. If it did, an unanswered flush is the safe
            // answer.
            log::error!("cannot request a flush: its thread has ended");
        }
        ticket
    }

    /// Receives the results of flushes that have finished, also of those whose requests were given
    /// back by a stop. No system call, and one comparison where none is under way.
    pub fn poll(&mut self) {
        while self.received != self.requested
            && let Ok((ticket, result)) = self.results.try_recv()
        {
            self.received += 1;
            self.last = Some((ticket, result.is_ok()));
            if let Err(e) = result
                && !std::mem::replace(&mut self.failed, true)
            {
                log::error!(
                    "cannot make the region durable: {e}; writes and flushes fail from here on"
                );
            }
        }
    }

    /// Whether everything is durable that was stored before `ticket`, the last one requested, was
    /// given out; `None` while that flush has not finished. Counts what [`poll`](Self::poll)
    /// received.
    pub fn outcome(&self, ticket: Ticket) -> Option<bool> {
        self.last.filter(|(finished, _)| *finished == ticket).map(|(_, durable)| durable)
    }

    /// Whether a flush has failed: nothing is known then about what is on the medium, and a second
    /// try would only hide it.
    pub fn has_failed(&self) -> bool {
        self.failed
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
