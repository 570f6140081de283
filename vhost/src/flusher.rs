//! `fdatasync` on a thread of its own: it takes milliseconds, and the queue's thread must stay able to answer a stop.

use shared_block_ring::device::bell::new_event;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// By which a flush is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(u64);

/// The thread, the two ends of the line to it, and what it has met.
#[derive(Debug)]
pub struct Flusher {
    // An option, so that it can be hung up before the thread is joined.
    requests: Option<Sender<Ticket>>,
    answers: Receiver<(Ticket, io::Result<()>)>,
    /// Asked for, and heard of.
    asked: u64,
    heard: u64,
    failed: bool,
    done: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread on `file`. It must be the description that the region is mapped by, since a write-back error is
    /// reported once to each description.
    pub fn start(file: File) -> io::Result<Self> {
        let (requests, todo) = channel::<Ticket>();
        let (results, answers) = channel();
        let done = new_event()?;
        let ring = done.try_clone()?;
        let thread = std::thread::Builder::new().name("flusher".to_owned()).spawn(move || {
            for ticket in todo {
                // Either fails only when the worker is gone, and with it everybody who would care.
                if results.send((ticket, file.sync_data())).is_err()
                    || nix::unistd::write(&ring, &1u64.to_ne_bytes()).is_err()
                {
                    return;
                }
            }
        })?;
        let (requests, thread) = (Some(requests), Some(thread));
        Ok(Self { requests, answers, asked: 0, heard: 0, failed: false, done, thread })
    }

    /// Asks for a flush of everything stored before.
    pub fn request(&mut self) -> Ticket {
        self.asked += 1;
        let ticket = Ticket(self.asked);
        if self.requests.as_ref().is_none_or(|requests| requests.send(ticket).is_err()) {
            // Cannot be: the thread ends with us. If it did, an unanswered flush is the safe answer.
            log::error!("the flusher thread is gone");
        }
        ticket
    }

    /// The next finished flush, and whether everything stored before it is durable. No system call, and nothing at all if none was asked for.
    pub fn finished(&mut self) -> Option<(Ticket, bool)> {
        if self.heard == self.asked {
            return None;
        }
        let (ticket, result) = self.answers.try_recv().ok()?;
        self.heard += 1;
        if let Err(e) = &result
            && !self.failed
        {
            log::error!(
                "cannot make the region durable: {e}; writes and flushes fail from here on"
            );
            self.failed = true;
        }
        Some((ticket, result.is_ok()))
    }

    /// Whether a flush has failed: nothing is known about what is on the medium then, and a second try would only hide it.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Readable when a flush has finished.
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
