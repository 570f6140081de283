//! `fdatasync` on a thread of its own: it takes milliseconds, and the queue's thread must stay able to answer a stop.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The thread, and the two ends of the line to it.
#[derive(Debug)]
pub struct Flusher {
    // An option, so that it can be hung up before the thread is joined.
    requests: Option<Sender<u64>>,
    answers: Receiver<(u64, io::Result<()>)>,
    done: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Flusher {
    /// Starts the thread on `file`. It must be the description that the region is mapped by, since a write-back error is
    /// reported once to each description.
    pub fn start(file: File) -> io::Result<Self> {
        let (requests, todo) = channel::<u64>();
        let (results, answers) = channel();
        let done = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        let ring = done.try_clone()?;
        let thread = std::thread::Builder::new().name("flusher".to_owned()).spawn(move || {
            for ticket in todo {
                // Either fails only when the worker is gone, and with it everybody who would care.
                if results.send((ticket, file.sync_data())).is_err() || ring.write(1).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { requests: Some(requests), answers, done, thread: Some(thread) })
    }

    /// Asks for a flush of everything stored before. False when the thread is gone.
    pub fn request(&self, ticket: u64) -> bool {
        self.requests.as_ref().is_some_and(|requests| requests.send(ticket).is_ok())
    }

    /// The next finished flush.
    pub fn finished(&self) -> Option<(u64, io::Result<()>)> {
        // Not readable: nothing was finished since.
        let _ = self.done.read();
        self.answers.try_recv().ok()
    }

    /// Readable when a flush has finished.
    pub fn event(&self) -> &EventFd {
        &self.done
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
