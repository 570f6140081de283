//! Requests of one operation at a time, and the wait for them.

use super::search::Search;
use crate::device::Answer;
use crate::virtqueue::{BlockQueue, Completion, IDLE, Operation, Request, Shape, Slot, Transport};
use crate::wait::{Pauses, wait_readable};
use std::io;
use std::time::{Duration, Instant};

/// Bytes of a request at most: a long transfer is several, so that the device copies one while we copy the next.
pub const BUFFER: u32 = 32 << 10;

/// Requests at once: enough to keep both sides of a long transfer busy, and so few that rings and buffers stay in the caches.
const DEPTH: u16 = 4;

/// How long a completion is looked for before the wait for its interrupt: longer than a device that polls needs, and about
/// what being woken costs.
const SPIN: Duration = Duration::from_micros(50);

/// Looks between two looks at the clock.
const LOOKS: u32 = 64;

/// What one operation at a time has to itself.
pub struct Driver {
    transport: Box<dyn Transport>,
    queue: BlockQueue,
    flush: bool,
    /// Of a device that has gone.
    search: Search,
    spin: Duration,
    /// The device is gone for good, or cannot be believed: what was in flight never comes back.
    lost: bool,
    idle: Idle,
}

/// The read of the lowest priority, of which there is one at most.
#[derive(Default)]
struct Idle {
    /// Where it is, and how many bytes long.
    outstanding: Option<(Slot, usize)>,
    /// How the last one ended, until somebody asks.
    answer: Option<Answer>,
    /// What it told.
    last: Option<Vec<u8>>,
}

impl Driver {
    /// Starts the device's queue, with nothing in it. `search` looks for the device when it has gone.
    pub fn start(mut transport: Box<dyn Transport>, search: Search) -> io::Result<Self> {
        let disk = transport.disk();
        let shape = Shape::new(DEPTH, BUFFER);
        let memory = transport.allocate(shape.memory())?;
        let queue = BlockQueue::new(memory, shape, disk.event_idx);
        transport.start(queue.memory(), queue.ring().layout())?;
        let (flush, spin, idle) = (disk.flush, SPIN, Idle::default());
        Ok(Self { transport, queue, flush, search, spin, lost: false, idle })
    }

    /// Looks for a completion for so long before it sleeps.
    pub fn set_spin(&mut self, spin: Duration) {
        self.spin = spin;
    }

    /// The way to the device.
    pub fn transport(&self) -> &dyn Transport {
        &*self.transport
    }

    /// How a device that has gone is looked for.
    pub fn search(&mut self) -> &mut Search {
        &mut self.search
    }

    /// One look for the device, if it has gone. How long to wait before the next one, unless it is there.
    pub fn look_for_device(&mut self) -> io::Result<Option<Duration>> {
        self.present()?;
        let outcome = self.transport.present().and_then(|()| match self.transport.gone() {
            Some(gone) if wait_readable(&[gone], Some(Duration::ZERO))?.is_some() => {
                self.search.look(&mut *self.transport, &mut self.queue)
            }
            _ => Ok(None),
        });
        self.lost |= outcome.is_err();
        outcome
    }

    /// Writes from `unit` on.
    pub fn write<'a>(&mut self, unit: u64, from: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
        let mut at = unit;
        let mut outcome = Ok(());
        for bytes in from {
            if self.queue.slot().is_none() {
                outcome = self.wait()?.result();
            }
            let Some(slot) = self.queue.slot().filter(|_| outcome.is_ok()) else { break };
            self.queue.memory().write(self.queue.buffer(slot), bytes);
            self.submit(slot, Operation::Write, at, bytes.len(), 0)?;
            // At once, so that the device copies this one while we copy the next.
            self.publish()?;
            at += units(bytes);
        }
        while self.in_flight() > 0 {
            outcome = outcome.and(self.wait()?.result());
        }
        outcome
    }

    /// Reads from `unit` on.
    pub fn read<'a>(
        &mut self,
        unit: u64,
        mut to: impl Iterator<Item = &'a mut [u8]>,
    ) -> io::Result<()> {
        let mut at = unit;
        loop {
            let mut batch: [Option<&mut [u8]>; DEPTH as usize] = Default::default();
            while let Some(slot) = self.queue.slot() {
                let Some(bytes) = to.next() else { break };
                self.submit(slot, Operation::Read, at, bytes.len(), 0)?;
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
                let done = self.wait()?;
                self.queue.memory().read(self.queue.buffer(done.slot), bytes);
                outcome = outcome.and(done.result());
            }
            outcome?;
        }
    }

    /// Without that feature everything is durable when it is written.
    pub fn flush(&mut self) -> io::Result<()> {
        match self.queue.slot() {
            Some(slot) if self.flush => {
                self.submit(slot, Operation::Flush, 0, 0, 0)?;
                self.publish()?;
                self.wait()?.result()
            }
            _ => self.present(),
        }
    }

    fn submit(
        &mut self,
        slot: Slot,
        operation: Operation,
        sector: u64,
        bytes: usize,
        priority: u32,
    ) -> io::Result<()> {
        self.present()?;
        // A buffer's length at most.
        let bytes = u32::try_from(bytes).map_err(io::Error::other)?;
        self.queue.submit(slot, Request { operation, sector, bytes, priority });
        Ok(())
    }

    fn publish(&mut self) -> io::Result<()> {
        if self.queue.publish() { self.transport.notify() } else { Ok(()) }
    }

    fn present(&self) -> io::Result<()> {
        if self.lost { Err(io::ErrorKind::NotConnected.into()) } else { Ok(()) }
    }

    /// Requests under way that somebody waits for here.
    fn in_flight(&self) -> usize {
        self.queue.in_flight() - usize::from(self.idle.outstanding.is_some())
    }

    /// The oldest request, if it is done. A held read is answered before anything that was submitted after it.
    fn reap(&mut self) -> io::Result<Option<Completion>> {
        loop {
            let done = self.queue.reap().map_err(|broken| {
                self.lost = true;
                io::Error::other(broken)
            })?;
            let (Some(done), Some((slot, bytes))) = (done, self.idle.outstanding) else {
                return Ok(done);
            };
            if done.slot != slot {
                return Ok(Some(done));
            }
            self.idle.outstanding = None;
            let mut sector = vec![0; bytes];
            self.queue.memory().read(self.queue.buffer(slot), &mut sector);
            self.idle.answer = Some(match done.result() {
                Ok(()) => Answer::of(&sector, &mut self.idle.last),
                // Whoever waits looks for himself next, and finds out what is wrong.
                Err(_) => Answer::Same,
            });
            self.transport.pass_on();
        }
    }

    /// The answer of the read that may be held, which is made if there is none; `None` when its interrupt is to be waited for.
    pub fn look_for_answer(&mut self, unit: u64, bytes: usize) -> io::Result<Option<Answer>> {
        if self.idle.outstanding.is_none()
            && self.idle.answer.is_none()
            && let Some(slot) = self.queue.slot()
        {
            self.submit(slot, Operation::Read, unit, bytes, IDLE)?;
            self.idle.outstanding = Some((slot, bytes));
            self.publish()?;
        }
        loop {
            self.reap()?;
            if let Some(answer) = self.idle.answer.take() {
                self.queue.refuse_interrupts();
                self.transport.acknowledge();
                return Ok(Some(answer));
            }
            self.present()?;
            if self.ask_for_interrupt() {
                return Ok(None);
            }
        }
    }

    /// The oldest request, when it is done.
    fn wait(&mut self) -> io::Result<Completion> {
        let outcome = self.spin().and_then(|done| match done {
            Some(done) => Ok(done),
            None => self.sleep(),
        });
        self.lost |= outcome.is_err();
        outcome
    }

    fn spin(&mut self) -> io::Result<Option<Completion>> {
        let mut start = None;
        loop {
            for _ in 0..LOOKS {
                if let Some(done) = self.reap()? {
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

    fn sleep(&mut self) -> io::Result<Completion> {
        let mut pauses = Pauses::default();
        loop {
            if self.ask_for_interrupt() {
                let (gone, interrupt) = (self.transport.gone(), self.transport.interrupt());
                let pause = if interrupt.is_none() { Some(pauses.next()) } else { None };
                let waited: Vec<_> = gone.into_iter().chain(interrupt).collect();
                if wait_readable(&waited, pause)? == Some(0) && gone.is_some() {
                    // Who is gone is for those who know.
                    self.transport.present()?;
                    self.search.wait(&mut *self.transport, &mut self.queue)?;
                }
                self.transport.present()?;
                self.transport.acknowledge();
            }
            if let Some(done) = self.reap()? {
                self.queue.refuse_interrupts();
                return Ok(done);
            }
        }
    }

    /// Asks for an interrupt, where there can be one. `false` if something is done already.
    fn ask_for_interrupt(&self) -> bool {
        self.transport.interrupt().is_none() || self.queue.ask_for_interrupt()
    }
}

/// Units of 512 bytes.
fn units(bytes: &[u8]) -> u64 {
    bytes.len() as u64 / 512
}
