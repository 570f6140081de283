//! Requests of one operation at a time, and the wait for them.

use crate::{BlockDriver, IDLE, Reconnect, Request, RequestId, Shape, Transport};
use ring_os::{ANSWER_PATIENCE, Limits, Pauses, wait_readable};
use shared_block_ring::device::HeldReadOutcome;
use std::io;
use std::time::{Duration, Instant};

/// Bytes of a request at most: a long transfer is several, so that the device copies one while we
/// copy the next.
pub const BUFFER: u32 = 32 << 10;

/// Requests at once: enough to keep both sides of a long transfer busy, and so few that rings and
/// buffers stay in the caches.
const DEPTH: u16 = 4;

/// How long a completion is looked for before the wait for its interrupt: longer than a device that
/// polls needs, and about what being woken costs.
const SPIN: Duration = Duration::from_micros(50);

/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// A driver that waits for each operation, beside which one held read may be in flight.
pub struct BlockingDriver {
    driver: BlockDriver,
    /// The search for a device that has gone.
    search: Reconnect,
    spin: Duration,
    /// Whether the device is gone for good, or cannot be believed: what was in flight never comes
    /// back.
    lost: bool,
    held: HeldRead,
}

/// The read of the lowest priority, of which there is one at most.
#[derive(Default)]
struct HeldRead {
    /// The request in flight, and its bytes.
    outstanding: Option<(RequestId, usize)>,
    /// How the last one ended, until that is asked for.
    answer: Option<HeldReadOutcome>,
    /// The sector that the last one returned.
    last: Option<Vec<u8>>,
}

impl BlockingDriver {
    /// Starts the device's queue, with nothing in it. `search` looks for the device when it has
    /// gone.
    pub fn start(
        transport: impl Transport,
        search: Reconnect,
        limits: &Limits<'_>,
    ) -> io::Result<Self> {
        let driver = BlockDriver::new(transport, Shape::new(DEPTH, BUFFER), limits)?;
        Ok(Self { driver, search, spin: SPIN, lost: false, held: HeldRead::default() })
    }

    /// Looks for a completion for so long before it sleeps.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// Returns the driver, to wait for the device.
    pub fn device(&self) -> &BlockDriver {
        &self.driver
    }

    /// Returns the search for a device that has gone.
    pub fn search(&mut self) -> &mut Reconnect {
        &mut self.search
    }

    /// Makes one attempt to find the device, if it has gone. Returns the pause before the next
    /// attempt, or `None` if the device is there.
    pub fn look_for_device(&mut self) -> io::Result<Option<Duration>> {
        self.believed()?;
        let outcome = self.look();
        self.lost |= outcome.is_err();
        outcome
    }

    fn look(&mut self) -> io::Result<Option<Duration>> {
        self.driver.check_presence()?;
        match self.driver.gone_fd() {
            Some(gone) if wait_readable(&[gone], Some(Duration::ZERO))?.is_some() => {
                Ok(self.search.try_once(&mut self.driver)?)
            }
            _ => Ok(None),
        }
    }

    /// Writes from `unit` on.
    pub fn write<'a>(&mut self, unit: u64, from: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        self.believed()?;
        let mut at = unit;
        let mut outcome = Ok(());
        for bytes in from {
            if self.driver.slot().is_none() {
                outcome = self.wait(None)?;
            }
            let Some(mut slot) = self.driver.slot().filter(|_| outcome.is_ok()) else { break };
            slot.fill(bytes);
            slot.submit(Request::write(at, length(bytes)?));
            // At once, so that the device copies this one while the next one is filled.
            self.publish()?;
            at += units(bytes);
        }
        while self.in_flight() > 0 {
            outcome = outcome.and(self.wait(None)?);
        }
        outcome
    }

    /// Reads from `unit` on.
    pub fn read<'a>(
        &mut self,
        unit: u64,
        mut to: impl Iterator<Item = &'a mut [u8]>,
    ) -> io::Result<()> {
        self.believed()?;
        let mut at = unit;
        loop {
            let mut batch: [Option<&mut [u8]>; DEPTH as usize] = Default::default();
            while let Some(slot) = self.driver.slot() {
                let Some(bytes) = to.next() else { break };
                slot.submit(Request::read(at, length(bytes)?));
                at += units(bytes);
                batch[self.in_flight() - 1] = Some(bytes);
            }
            if self.in_flight() == 0 {
                return Ok(());
            }
            self.publish()?;
            let mut outcome = Ok(());
            // Requests are reaped in the order in which they were submitted.
            for bytes in batch.into_iter().flatten() {
                outcome = outcome.and(self.wait(Some(bytes))?);
            }
            outcome?;
        }
    }

    /// Makes durable what was written. A device without that feature has it durable when it is
    /// written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.believed()?;
        if !self.driver.disk().flush {
            return Ok(());
        }
        // Between two operations the held read alone is in flight.
        let slot = self.driver.slot().ok_or(io::ErrorKind::ResourceBusy)?;
        slot.submit(Request::flush());
        self.publish()?;
        self.wait(None)?
    }

    fn publish(&mut self) -> io::Result<()> {
        let outcome = self.driver.publish();
        self.lost |= outcome.is_err();
        outcome?;
        Ok(())
    }

    /// Checks that nothing in flight was given up.
    fn believed(&self) -> io::Result<()> {
        if self.lost { Err(io::ErrorKind::NotConnected.into()) } else { Ok(()) }
    }

    /// Returns the number of requests in flight that an operation waits for.
    fn in_flight(&self) -> usize {
        self.driver.in_flight() - usize::from(self.held.outstanding.is_some())
    }

    /// Returns how the oldest request has ended, if it is done; what it has read is copied `into`
    /// place. A held read is answered before anything that was submitted after it.
    fn reap(&mut self, into: Option<&mut [u8]>) -> io::Result<Option<io::Result<()>>> {
        loop {
            let done = match self.driver.reap() {
                Ok(Some(done)) => done,
                Ok(None) => return Ok(None),
                Err(broken) => {
                    self.lost = true;
                    return Err(broken.into());
                }
            };
            match self.held.outstanding {
                Some((id, bytes)) if id == done.id() => {
                    let mut sector = vec![0; bytes];
                    done.read(&mut sector);
                    self.held.answer = Some(match done.result() {
                        Ok(()) => HeldReadOutcome::of(&sector, &mut self.held.last),
                        // The caller reads the sector next, and finds out what is wrong.
                        Err(_) => HeldReadOutcome::Same,
                    });
                    self.held.outstanding = None;
                    self.driver.pass_on_interrupt();
                }
                _ => {
                    if let Some(bytes) = into {
                        done.read(bytes);
                    }
                    return Ok(Some(done.result()));
                }
            }
        }
    }

    /// Returns the answer of the held read, which is made if there is none; `None` when its
    /// interrupt is to be waited for.
    pub fn look_for_answer(
        &mut self,
        unit: u64,
        bytes: usize,
    ) -> io::Result<Option<HeldReadOutcome>> {
        if self.held.outstanding.is_none() && self.held.answer.is_none() {
            self.believed()?;
            let request = Request::read(unit, u32::try_from(bytes).map_err(io::Error::other)?);
            if let Some(slot) = self.driver.slot() {
                let id = slot.submit(request.with_priority(IDLE));
                self.held.outstanding = Some((id, bytes));
                self.publish()?;
            }
        }
        loop {
            self.reap(None)?;
            if let Some(answer) = self.held.answer.take() {
                self.driver.refuse_interrupts();
                self.driver.acknowledge_interrupt();
                return Ok(Some(answer));
            }
            self.believed()?;
            if self.ask_for_interrupt() {
                return Ok(None);
            }
        }
    }

    /// Waits for the oldest request. Returns how it has ended; what it has read is copied `into`
    /// place.
    fn wait(&mut self, mut into: Option<&mut [u8]>) -> io::Result<io::Result<()>> {
        let outcome = self.spin(&mut into).and_then(|done| match done {
            Some(done) => Ok(done),
            None => self.sleep(&mut into),
        });
        self.lost |= outcome.is_err();
        outcome
    }

    fn spin(&mut self, into: &mut Option<&mut [u8]>) -> io::Result<Option<io::Result<()>>> {
        let mut start = None;
        loop {
            for _ in 0..LOOKS {
                if let Some(done) = self.reap(into.as_deref_mut())? {
                    return Ok(Some(done));
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            if now.duration_since(*start.get_or_insert(now)) >= self.spin {
                return Ok(None);
            }
        }
    }

    fn sleep(&mut self, into: &mut Option<&mut [u8]>) -> io::Result<io::Result<()>> {
        let mut pauses = Pauses::default();
        // The end of the wait, once the caller was asked to stop.
        let mut deadline: Option<Instant> = None;
        loop {
            if self.ask_for_interrupt() {
                let (gone, interrupt) = (self.driver.gone_fd(), self.driver.interrupt_fd());
                let stop = self.search.stop().filter(|_| deadline.is_none());
                let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                let pause = interrupt.is_none().then(|| pauses.next_pause());
                let waited: Vec<_> = gone.into_iter().chain(interrupt).chain(stop).collect();
                let woken = wait_readable(&waited, pause.into_iter().chain(left).min())?;
                let is_gone = woken == Some(0) && gone.is_some();
                if stop.is_some() && woken == Some(waited.len() - 1) {
                    deadline = Some(Instant::now() + ANSWER_PATIENCE);
                } else if deadline.is_some_and(|at| at <= Instant::now()) {
                    let text = "asked to stop, and the device does not answer";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                if is_gone {
                    // A device that is gone for good says so itself.
                    self.driver.check_presence()?;
                    self.search.wait(&mut self.driver)?;
                }
                self.driver.check_presence()?;
                self.driver.acknowledge_interrupt();
            }
            if let Some(done) = self.reap(into.as_deref_mut())? {
                self.driver.refuse_interrupts();
                return Ok(done);
            }
        }
    }

    /// Asks for an interrupt, where there can be one. Returns false if something is done already.
    fn ask_for_interrupt(&self) -> bool {
        self.driver.interrupt_fd().is_none() || self.driver.ask_for_interrupt()
    }
}

/// Returns the length of a buffer's bytes at most.
fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(io::Error::other)
}

/// Returns the number of units of 512 bytes.
fn units(bytes: &[u8]) -> u64 {
    bytes.len() as u64 / 512
}
