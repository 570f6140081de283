//! `fdatasync` on a thread of its own: it takes milliseconds, and the queue's thread must stay able to answer a stop.

use shared_block_ring::device::bell::new_event;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// The thread, and the two ends of the line to it.
#[derive(Debug)]
pub struct Flusher {
    // An option, so that it can be hung up before the thread is joined.
    requests: Option<Sender<u64>>,
    answers: Receiver<(u64, io::Result<()>)>,
    /// Asked for, and not heard of.
    outstanding: usize,
    done: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread on `file`. It must be the description that the region is mapped by, since a write-back error is
    /// reported once to each description.
    pub fn start(file: File) -> io::Result<Self> {
        let (requests, todo) = channel::<u64>();
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
        Ok(Self { requests: Some(requests), answers, outstanding: 0, done, thread: Some(thread) })
    }

    /// Asks for a flush of everything stored before. False when the thread is gone.
    pub fn request(&mut self, ticket: u64) -> bool {
        self.outstanding += 1;
        self.requests.as_ref().is_some_and(|requests| requests.send(ticket).is_ok())
    }

    /// The next finished flush. No system call, and nothing at all if none was asked for.
    pub fn finished(&mut self) -> Option<(u64, io::Result<()>)> {
        if self.outstanding == 0 {
            return None;
        }
        let answer = self.answers.try_recv().ok()?;
        self.outstanding -= 1;
        Some(answer)
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
