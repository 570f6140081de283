//! Waiting for the other side of a ring, outside the non-blocking core.
//!
//! A [`Wait`] spins, if that was asked for. Then it sleeps if the other side wakes this one; waits
//! in one held read if the device has them; and polls otherwise, with growing pauses. A descriptor
//! that becomes readable ends it.

mod readiness;

pub use self::readiness::Readiness;
use crate::device::{DeviceError, HeldReadOutcome, Lookout, Operation, RingDevice};
use crate::format::Side;
use ring_os::LONGEST_PAUSE;
#[doc(inline)]
pub use ring_os::{ANSWER_PATIENCE, Limits, Pauses, wait_readable};
use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// Looks at the ring between two looks at the clock and the interrupts, which are a few
/// microseconds.
const SPINS: u32 = 256;

/// Reads in a row that are answered sooner than the longest pause, without news, before the wait
/// polls instead: the device does not hold them.
const HASTY: u32 = 3;

/// Pauses after which a held read is tried again, about every second: another backend may hold it.
const TRY_AGAIN: u32 = 256;

/// Why a pause ended. There are no other reasons: a `match` on all of them stays complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Woken {
    /// It is time to look at the ring again.
    Elapsed,
    /// The deadline has passed.
    TimedOut,
    /// The interrupt with this index is readable, or its other end was closed.
    Readable(usize),
}

/// One wait for the other side of a ring: made when a call has answered
/// [`Error::Retry`](crate::Error::Retry), paused on before each further call, and dropped when a
/// call succeeds. The crate's page has [an example](crate#waiting).
#[derive(Debug)]
#[must_use = "a wait does nothing until it is paused on"]
pub struct Wait {
    peer: Side,
    next: Pauses,
    announced: bool,
    /// Reads in a row that could have been held and were not.
    hasty: u32,
    pauses: u32,
    deadline: Option<Instant>,
    spin: Spin,
    /// The time of the next check that the ring is still where it was opened.
    lookout: Lookout,
}

/// The spinning before the first sleep.
#[derive(Debug)]
enum Spin {
    /// For this time from the first pause on.
    For(Duration),
    /// Until this time; the number counts the looks.
    Until(Instant, u32),
    Over,
}

impl Wait {
    /// Makes a consumer's wait for items, which ends `timeout` from now, or never.
    pub fn for_items(timeout: Option<Duration>) -> Self {
        Self::new(Side::Producer, timeout)
    }

    /// Makes a producer's wait for space, which ends `timeout` from now, or never.
    pub fn for_space(timeout: Option<Duration>) -> Self {
        Self::new(Side::Consumer, timeout)
    }

    /// Makes a wait for `peer`, the *other* side, to move; it ends `timeout` from now, or never.
    pub fn new(peer: Side, timeout: Option<Duration>) -> Self {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let spin = Spin::Over;
        let next = Pauses::default();
        let lookout = Lookout::default();
        Self { peer, next, announced: false, hasty: 0, pauses: 0, deadline, spin, lookout }
    }

    /// Has the wait spin for `duration` before it sleeps. What arrives meanwhile is seen at once,
    /// without a wake-up. Spinning takes the whole of a processor.
    pub fn spin(mut self, duration: Duration) -> Self {
        self.spin = if duration.is_zero() { Spin::Over } else { Spin::For(duration) };
        self
    }

    /// Spins once, and returns how that ended; `None` when the spinning is over.
    fn spins<D: RingDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Option<Woken>, DeviceError> {
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
                    // A system call, which is of no use without interrupts.
                    if !interrupts.is_empty() {
                        let readable = wait_readable(interrupts, Some(Duration::ZERO));
                        if let Some(index) = readable.map_err(|e| failed(device, e))? {
                            return Ok(Some(Woken::Readable(index)));
                        }
                    }
                    self.lookout.look(device)?;
                }
            }
        }
        std::hint::spin_loop();
        Ok(Some(Woken::Elapsed))
    }

    /// Pauses until the caller should look at the ring again, the timeout has passed, or one of the
    /// descriptors `interrupts` is readable.
    ///
    /// # Errors
    /// The device's; also [`Displaced`](crate::device::Displaced), within seconds of the ring's
    /// removal or replacement. That the ring was overwritten in place is found by
    /// [`Producer::check_presence`](crate::Producer::check_presence) and its like.
    pub fn pause<D: RingDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Woken, DeviceError> {
        if let Some(woken) = self.spins(device, interrupts)? {
            return Ok(woken);
        }
        self.lookout.look(device)?;
        if let Some(sleeper) = device.sleeper() {
            self.announced = !self.announced;
            if self.announced {
                // The caller looks once more, now that the other side knows: without that look the
                // sleep could miss a wake-up.
                sleeper.announce();
                return Ok(Woken::Elapsed);
            }
            let (until, last) = self.until_look();
            let woken = sleeper.sleep(interrupts, until)?;
            return Ok(if woken == Woken::TimedOut && !last { Woken::Elapsed } else { woken });
        }
        match self.hold(device, interrupts)? {
            Some(woken) => Ok(woken),
            None => self.poll(device, interrupts),
        }
    }

    /// Returns the end of a sleep, for the deadline or for a check of the ring's path before it,
    /// and whether it is the deadline.
    fn until_look(&self) -> (Option<Instant>, bool) {
        let look = self.lookout.due();
        match self.deadline {
            Some(deadline) if deadline <= look => (Some(deadline), true),
            _ => (Some(look), false),
        }
    }

    /// Waits in a held read; `None` if the device holds none.
    fn hold<D: RingDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Option<Woken>, DeviceError> {
        let Some(reads) = device.held_reads() else { return Ok(None) };
        if self.hasty >= HASTY && !self.pauses.is_multiple_of(TRY_AGAIN) {
            return Ok(None);
        }
        let asked = Instant::now();
        let answer = loop {
            let (until, last) = self.until_look();
            let answer = reads.await_answer(self.peer, interrupts, until)?;
            if answer != HeldReadOutcome::Woken(Woken::TimedOut) || last {
                break answer;
            }
            // The read stays under way meanwhile.
            self.lookout.look(device)?;
        };
        match answer {
            HeldReadOutcome::Woken(woken) => return Ok(Some(woken)),
            HeldReadOutcome::Unable => {
                self.hasty = HASTY;
                return Ok(None);
            }
            HeldReadOutcome::News | HeldReadOutcome::Same if asked.elapsed() >= LONGEST_PAUSE => {
                self.hasty = 0;
            }
            HeldReadOutcome::News => {}
            HeldReadOutcome::Same => self.hasty += 1,
        }
        // A read that counts as not held is followed by a pause.
        Ok((self.hasty < HASTY).then_some(Woken::Elapsed))
    }

    /// Pauses before the next look.
    fn poll<D: RingDevice + ?Sized>(
        &mut self,
        device: &D,
        interrupts: &[BorrowedFd<'_>],
    ) -> Result<Woken, DeviceError> {
        self.pauses = self.pauses.wrapping_add(1);
        let left = self.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(Woken::TimedOut);
        }
        let pause = self.next.next_pause_within(left);
        let readable = wait_readable(interrupts, Some(pause)).map_err(|e| failed(device, e))?;
        Ok(readable.map_or(Woken::Elapsed, Woken::Readable))
    }
}

fn failed<D: RingDevice + ?Sized>(device: &D, source: io::Error) -> DeviceError {
    DeviceError::new(device.name(), Operation::Wait, source)
}
