//! Waiting, outside the non-blocking core: adaptive polling that a descriptor can interrupt.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// The first pause: shorter than a process needs to be scheduled, so that a busy peer costs no latency.
const FIRST: Duration = Duration::from_micros(50);

/// The longest pause: an item waits at most this long for an idle peer to look, and looking costs a fraction of a percent of a core.
const LONGEST: Duration = Duration::from_millis(4);

/// Why a pause ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Look again.
    Elapsed,
    /// The deadline has passed.
    TimedOut,
    /// A descriptor became readable (or was closed): its index.
    Readable(usize),
}

/// Pauses that double while nothing happens.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
    deadline: Option<Instant>,
}

impl Backoff {
    /// For one wait, which ends `timeout` from now, or never.
    pub fn new(timeout: Option<Duration>) -> Self {
        Self {
            next: FIRST,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        }
    }

    /// Waits a while, or until one of `interrupts` is readable.
    pub fn pause(&mut self, interrupts: &[BorrowedFd<'_>]) -> io::Result<Woken> {
        let mut pause = self.next;
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Woken::TimedOut);
            }
            pause = pause.min(left);
        }
        self.next = (self.next * 2).min(LONGEST);
        Ok(wait_readable(interrupts, Some(pause))?.map_or(Woken::Elapsed, Woken::Readable))
    }
}

/// The first of `fds` that is readable or closed, or `None` after `timeout` (or a signal).
pub fn wait_readable(
    fds: &[BorrowedFd<'_>],
    timeout: Option<Duration>,
) -> io::Result<Option<usize>> {
    let mut polled: Vec<_> = fds.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match ppoll(&mut polled, timeout.map(TimeSpec::from), None) {
        Ok(_) => {}
        Err(Errno::EINTR) => return Ok(None),
        Err(e) => return Err(e.into()),
    }
    Ok(polled.iter().position(|fd| fd.revents().is_some_and(|events| !events.is_empty())))
}
