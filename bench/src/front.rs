//! Requests as fast as they are answered.

use crate::error::{Error, Result, doing};
use crate::machine::nanoseconds;
use crate::rows::{Direction, Row, Waiting};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use shared_block_ring::virtqueue::{
    BlockQueue, Completion, Operation, Request, Shape, Transport, VhostUser,
};
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that are walked from one end to the other.
pub const REGION: u64 = 64 << 20;

/// Where they begin: behind the ring's pointers, and at the start of a page.
pub const START: u64 = 4096;

/// The longest that a sleeping front end waits for an interrupt.
const PATIENCE_MS: u16 = 5000;

/// Requests between two looks at the clock, and, of one request at a time, between two whose time is taken: a look costs a tenth of
/// the fastest ones.
const STRIDE: u64 = 16;

/// Looks for a completion before it is doubted that there is one.
const LOOKS: u64 = 200_000_000;

/// The bytes that requests of that size walk.
pub fn walked(bytes: u32) -> Range<u64> {
    START..START + REGION / u64::from(bytes) * u64::from(bytes)
}

/// A front end.
pub struct Front {
    name: &'static str,
    transport: VhostUser,
    queue: BlockQueue,
    bytes: u32,
    region: Range<u64>,
    at: u64,
}

/// What a round has brought.
#[derive(Debug, Default)]
pub struct Round {
    /// Requests answered.
    pub requests: u64,
    /// The time it took.
    pub time: Duration,
    /// Times of single requests, nanoseconds.
    pub latencies: Vec<f64>,
}

impl Front {
    /// Connects to the backend at `socket`.
    pub fn connect(name: &'static str, socket: &Path, bytes: u32, depth: u16) -> Result<Self> {
        let failed = |what: &str| doing(format!("{what} {}", socket.display()));
        let mut transport = VhostUser::connect(socket).map_err(failed("connecting to"))?;
        let shape = Shape::new(depth, bytes);
        let memory =
            transport.allocate(shape.memory()).map_err(doing("allocating memory for requests"))?;
        let queue = BlockQueue::new(memory, shape, transport.disk().event_idx);
        transport
            .start(queue.memory(), queue.ring().layout())
            .map_err(failed("starting the queue of"))?;
        let region = walked(bytes);
        Ok(Self { name, transport, queue, bytes, at: region.start, region })
    }

    /// Writes everything once.
    pub fn walk_once(&mut self) -> Result<()> {
        let requests = (self.region.end - self.region.start) / u64::from(self.bytes);
        for _ in 0..requests {
            self.fill(Operation::Write)?;
            self.next_by_polling()?;
        }
        while self.queue.in_flight() > 0 {
            self.next_by_polling()?;
        }
        Ok(())
    }

    /// Requests of that kind for `time`.
    pub fn round(&mut self, row: &Row, time: Duration) -> Result<Round> {
        let operation = match row.direction {
            Direction::Read => Operation::Read,
            Direction::Write => Operation::Write,
        };
        let mut round = Round { latencies: Vec::with_capacity(1 << 20), ..Round::default() };
        let start = Instant::now();
        match (row.waiting, row.depth) {
            (Waiting::Polling, 1) => self.poll_singly(operation, start, time, &mut round)?,
            (Waiting::Polling, _) => self.poll_many(operation, start, time, &mut round)?,
            (Waiting::Sleeping, _) => self.sleep(operation, row, start, time, &mut round)?,
        }
        round.time = start.elapsed();
        while self.queue.in_flight() > 0 {
            self.next_by_polling()?;
        }
        Ok(round)
    }

    fn poll_singly(
        &mut self,
        operation: Operation,
        start: Instant,
        time: Duration,
        round: &mut Round,
    ) -> Result<()> {
        loop {
            for _ in 1..STRIDE {
                self.fill(operation)?;
                self.next_by_polling()?;
            }
            let before = Instant::now();
            self.fill(operation)?;
            self.next_by_polling()?;
            let after = Instant::now();
            round.latencies.push(nanoseconds(after - before));
            round.requests += STRIDE;
            if after - start >= time {
                return Ok(());
            }
        }
    }

    fn poll_many(
        &mut self,
        operation: Operation,
        start: Instant,
        time: Duration,
        round: &mut Round,
    ) -> Result<()> {
        let mut next_look = 0;
        loop {
            self.fill(operation)?;
            self.next_by_polling()?;
            round.requests += 1;
            while self.next()? {
                round.requests += 1;
            }
            if round.requests >= next_look {
                if start.elapsed() >= time {
                    return Ok(());
                }
                next_look = round.requests + STRIDE * u64::from(self.queue.shape().depth);
            }
        }
    }

    fn sleep(
        &mut self,
        operation: Operation,
        row: &Row,
        start: Instant,
        time: Duration,
        round: &mut Round,
    ) -> Result<()> {
        loop {
            let before = Instant::now();
            if before - start >= time {
                return Ok(());
            }
            self.fill(operation)?;
            self.next_by_sleeping()?;
            round.requests += 1;
            while self.next()? {
                round.requests += 1;
            }
            round.latencies.push(nanoseconds(before.elapsed()));
            if let Some(think) = row.think {
                std::thread::sleep(think);
            }
        }
    }

    /// As many requests as there are slots, seen by the backend at once.
    fn fill(&mut self, operation: Operation) -> Result<()> {
        while let Some(slot) = self.queue.slot() {
            let sector = self.at / 512;
            let request = Request { operation, sector, bytes: self.bytes, priority: 0 };
            self.queue.submit(slot, request);
            self.at += u64::from(self.bytes);
            if self.at >= self.region.end {
                self.at = self.region.start;
            }
        }
        if self.queue.publish() {
            self.transport.notify().map_err(doing("kicking"))?;
        }
        Ok(())
    }

    /// Whether there was a completion.
    fn next(&mut self) -> Result<bool> {
        match self.queue.reap_any()? {
            None => Ok(false),
            Some(Completion { status: 0, .. }) => Ok(true),
            Some(Completion { status, .. }) => {
                Err(Error::Refused { who: self.name, sector: self.at / 512, status })
            }
        }
    }

    fn next_by_polling(&mut self) -> Result<()> {
        for _ in 0..LOOKS {
            if self.next()? {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        Err(Error::Stalled(self.name))
    }

    fn next_by_sleeping(&mut self) -> Result<()> {
        while !self.next()? {
            if !self.queue.ask_for_interrupt() {
                continue;
            }
            // Every backend of a socket has both.
            let events = self.transport.interrupt().zip(self.transport.gone());
            let (interrupt, gone) = events.ok_or(Error::Stalled(self.name))?;
            let mut polled = [interrupt, gone].map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut polled, PATIENCE_MS) {
                Err(Errno::EINTR) => {}
                Err(e) => return Err(doing("waiting for an interrupt")(e.into())),
                Ok(_) if polled[1].any() != Some(false) => return Err(Error::Stalled(self.name)),
                Ok(0) => return Err(Error::Stalled(self.name)),
                Ok(_) => self.transport.acknowledge(),
            }
        }
        Ok(())
    }
}
