//! Waiting, outside the non-blocking core: adaptive polling that a descriptor can interrupt.

use crate::device::{BlockDevice, DeviceError};
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

/// One wait for the other side of a ring: asleep where it wakes us, by pauses that double where it has to be polled for.
#[derive(Debug)]
pub struct Wait {
    next: Duration,
    announced: bool,
    deadline: Option<Instant>,
}

impl Wait {
    /// A wait that ends `timeout` from now, or never.
    pub fn new(timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self { next: FIRST, announced: false, deadline }
    }

    /// Returns when the caller should look again, or not wait any longer: `interrupts` are descriptors that end it by being readable.
    pub fn pause<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Woken, DeviceError> {
        if let Some(sleeper) = device.sleeper() {
            self.announced = !self.announced;
            if self.announced {
                // To look once more, now that the other side knows, is what makes the sleep that follows safe.
                sleeper.announce();
                return Ok(Woken::Elapsed);
            }
            return sleeper.sleep(interrupts, self.deadline);
        }
        let mut pause = self.next;
        if let Some(deadline) = self.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Woken::TimedOut);
            }
            pause = pause.min(left);
        }
        self.next = (self.next * 2).min(LONGEST);
        let readable = wait_readable(interrupts, Some(pause)).map_err(|source| DeviceError {
            name: device.name().to_owned(),
            operation: "wait",
            sector: None,
            source,
        })?;
        Ok(readable.map_or(Woken::Elapsed, Woken::Readable))
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
