//! Ends a process whose threads cannot be ended.
//!
//! A thread can wait in the kernel for another process without end: for a page of a log of dirty
//! pages that lies on FUSE, or in the close of a descriptor that a front end has sent from there.
//! What that thread holds is lost, and so is every front end that would need it. So the process
//! ends with a message, and whatever supervises it starts it again. Everything that was answered is
//! in the region.

use crate::data_path::waiters::Waiters;
use ring_program::Stop;
use shared_block_ring::device::bell::new_event;
use shared_block_ring::wait::wait_readable;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a stop may take until every thread has ended.
const GRACE: Duration = Duration::from_secs(30);

/// The time between two looks at the queue's thread.
const LOOK: Duration = Duration::from_secs(5);

/// Looks in succession that find the same thread waiting for the queue's thread, which needs
/// milliseconds, before the process ends.
const LOOKS: u32 = 6;

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
    /// queue's thread must give way to those that wait for it (`waiters`).
    ///
    /// # Errors
    ///
    /// No event or no thread can be made.
    pub fn start(stop: &Stop, waiters: Waiters) -> io::Result<Self> {
        let over = new_event()?;
        let (ended, asked) = (over.try_clone()?, stop.fd().try_clone_to_owned()?);
        let watch = move || watch(&ended, &asked, &waiters);
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

fn watch(over: &OwnedFd, stop: &OwnedFd, waiters: &Waiters) {
    let (mut repeats, mut last) = (0, None);
    loop {
        match wait_readable(&[over.as_fd(), stop.as_fd()], Some(LOOK)) {
            Ok(Some(0)) => return,
            Ok(Some(_)) => {
                if let Ok(Some(_)) = wait_readable(&[over.as_fd()], Some(GRACE)) {
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
        let first = waiters.first_in_line();
        repeats = if first.is_some() && first == last { repeats + 1 } else { 0 };
        last = first;
        if repeats >= LOOKS {
            give_up("the queue's thread does not move");
        }
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
