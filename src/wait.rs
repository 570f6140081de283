//! Waiting, outside the non-blocking core: spinning by choice; then asleep where the other side wakes us, in one read where the device holds it
//! until there is something new, by adaptive polling elsewhere. A descriptor can interrupt each of them.

use crate::device::{Answer, BlockDevice, DeviceError};
use crate::format::Side;
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

/// Looks at the ring between two looks at the clock and the interrupts: a few microseconds.
const SPINS: u32 = 256;

/// Reads that are answered before such a pause would be over, without news, before it is polled instead: the device does not hold them.
const HASTY: u32 = 3;

/// Pauses after which it is tried again. By then there may be a backend that does: about every second.
const TRY_AGAIN: u32 = 256;

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

/// The pauses between looks at something that tells nobody when it changes: short ones first.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pauses {
    /// The next one.
    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST);
        pause
    }

    /// The next one, or what is left.
    pub(crate) fn next_within(&mut self, left: Option<Duration>) -> Duration {
        let pause = self.next();
        left.map_or(pause, |left| left.min(pause))
    }
}

/// One wait for the other side of a ring.
#[derive(Debug)]
pub struct Wait {
    peer: Side,
    next: Pauses,
    announced: bool,
    /// Reads that could have been held and were not, one after the other.
    hasty: u32,
    pauses: u32,
    deadline: Option<Instant>,
    spin: Spin,
}

/// How long to look on before sleeping.
#[derive(Debug)]
enum Spin {
    /// From the first pause on.
    For(Duration),
    /// Until then; so many looks were made.
    Until(Instant, u32),
    Over,
}

impl Wait {
    /// A wait for `peer` that ends `timeout` from now, or never.
    pub fn new(peer: Side, timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let spin = Spin::Over;
        let next = Pauses::default();
        Self { peer, next, announced: false, hasty: 0, pauses: 0, deadline, spin }
    }

    /// Spins for so long before it sleeps: what arrives meanwhile is seen at once, and nobody has to wake us. It takes the whole of a
    /// processor.
    #[must_use]
    pub fn spin(mut self, duration: Duration) -> Self {
        self.spin = if duration.is_zero() { Spin::Over } else { Spin::For(duration) };
        self
    }

    /// Why to look again at once, if there is a reason; `None` when the spinning is over.
    fn spins(&mut self, interrupts: &[BorrowedFd<'_>]) -> io::Result<Option<Woken>> {
        match &mut self.spin {
            Spin::Over => return Ok(None),
            Spin::For(duration) => {
                let end = Instant::now().checked_add(*duration);
                self.spin = end.map_or(Spin::Over, |end| Spin::Until(end, 0));
            }
            Spin::Until(end, looks) => {
                *looks = looks.wrapping_add(1);
                if *looks % SPINS == 0 {
                    let now = Instant::now();
                    if *end <= now {
                        self.spin = Spin::Over;
                        return Ok(None);
                    }
                    if self.deadline.is_some_and(|deadline| deadline <= now) {
                        return Ok(Some(Woken::TimedOut));
                    }
                    if !interrupts.is_empty()
                        && let Some(index) = wait_readable(interrupts, Some(Duration::ZERO))?
                    {
                        return Ok(Some(Woken::Readable(index)));
                    }
                }
            }
        }
        std::hint::spin_loop();
        Ok(Some(Woken::Elapsed))
    }

    /// Returns when the caller should look again, or not wait any longer: `interrupts` are descriptors that end it by being readable.
    pub fn pause<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Woken, DeviceError> {
        if let Some(woken) = self.spins(interrupts).map_err(|e| failed(device, e))? {
            return Ok(woken);
        }
        if let Some(sleeper) = device.sleeper() {
            self.announced = !self.announced;
            if self.announced {
                // To look once more, now that the other side knows, is what makes the sleep that follows safe.
                sleeper.announce();
                return Ok(Woken::Elapsed);
            }
            return sleeper.sleep(interrupts, self.deadline);
        }
        match self.hold(device, interrupts)? {
            Some(woken) => Ok(woken),
            None => self.poll(device, interrupts),
        }
    }

    /// Waits in a read, unless the device does not hold any.
    fn hold<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Option<Woken>, DeviceError> {
        let Some(reads) = device.held_reads() else { return Ok(None) };
        if self.hasty >= HASTY && !self.pauses.is_multiple_of(TRY_AGAIN) {
            return Ok(None);
        }
        let asked = Instant::now();
        match reads.await_answer(self.peer, interrupts, self.deadline)? {
            Answer::Woken(woken) => return Ok(Some(woken)),
            Answer::Unable => {
                self.hasty = HASTY;
                return Ok(None);
            }
            Answer::News | Answer::Same if asked.elapsed() >= LONGEST => self.hasty = 0,
            Answer::News => {}
            Answer::Same => self.hasty += 1,
        }
        // Those that count are followed by a pause.
        Ok((self.hasty < HASTY).then_some(Woken::Elapsed))
    }

    fn poll<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Woken, DeviceError> {
        self.pauses = self.pauses.wrapping_add(1);
        let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Woken::TimedOut);
        }
        let pause = self.next.next_within(left);
        let readable = wait_readable(interrupts, Some(pause)).map_err(|e| failed(device, e))?;
        Ok(readable.map_or(Woken::Elapsed, Woken::Readable))
    }
}

fn failed<D: BlockDevice + ?Sized>(device: &D, source: io::Error) -> DeviceError {
    DeviceError { name: device.name().to_owned(), operation: "wait", sector: None, source }
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
