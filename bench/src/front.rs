//! A front end that makes requests as fast as they are answered.

use crate::error::{Error, Result, doing};
use crate::machine::nanoseconds;
use crate::rows::{Direction, Row, Waiting};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use shared_block_ring::wait::Limits;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};
use virtio_blk_driver::{BlockDriver, Request, Shape, VhostUser};

/// Bytes that requests walk over.
pub const REGION: u64 = 64 << 20;

/// Start of those bytes: behind the ring's pointers, at the start of a page.
pub const START: u64 = 4096;

/// Bound on a sleeping front end's wait for an interrupt, in milliseconds.
const PATIENCE_MS: u16 = 5000;

/// How far separate regions are from a power of two.
const SKEW: u64 = 13 * 4096;

/// Requests between two looks at the clock, and, with one request at a time, between two that are
/// timed: a look costs a tenth of the fastest ones.
const STRIDE: u64 = 16;

/// Looks for a completion before the backend counts as stalled.
const LOOKS: u64 = 200_000_000;

/// Returns the bytes that requests of that size walk.
pub fn walked(bytes: u32) -> Range<u64> {
    START..START + REGION / u64::from(bytes) * u64::from(bytes)
}

/// Returns the bytes from one request to the next. Places at the same offset in separate regions are
/// no power of two apart: the cache would have room for a few of them alone.
fn stride(row: &Row) -> u64 {
    let bytes = u64::from(row.bytes);
    if row.regions == 1 {
        return bytes;
    }
    (REGION / row.regions - SKEW) / bytes * bytes
}

/// What makes a request of a sector and a number of bytes: [`Request::read`] or [`Request::write`].
type Make = fn(u64, u32) -> Request;

/// A front end.
pub struct Front {
    name: &'static str,
    driver: BlockDriver,
    bytes: u32,
    region: Range<u64>,
    at: u64,
    /// From one request to the next.
    stride: u64,
    /// Start of this lap through the region.
    lap: u64,
}

/// Figures of a round.
#[derive(Debug, Default)]
pub struct Round {
    /// Number of answered requests.
    pub requests: u64,
    /// Duration of the round.
    pub time: Duration,
    /// Times of single requests, in nanoseconds.
    pub latencies: Vec<f64>,
}

impl Front {
    /// Connects to the backend at `socket`.
    pub fn connect(name: &'static str, socket: &Path, bytes: u32, depth: u16) -> Result<Self> {
        let failed = |what: &str| {
            let what = doing(format!("{what} {}", socket.display()));
            |error: virtio_blk_driver::Error| what(error.into())
        };
        let backend = VhostUser::connect(socket).map_err(failed("connecting to"))?;
        let driver = BlockDriver::new(backend, Shape::new(depth, bytes), &Limits::default())
            .map_err(failed("starting the queue of"))?;
        let region = walked(bytes);
        Ok(Self { name, driver, bytes, at: region.start, region, stride: bytes.into(), lap: 0 })
    }

    /// Writes to all of the region once.
    pub fn walk_once(&mut self) -> Result<()> {
        let requests = (self.region.end - self.region.start) / u64::from(self.bytes);
        for _ in 0..requests {
            self.fill(Request::write)?;
            self.next_by_polling()?;
        }
        while self.driver.in_flight() > 0 {
            self.next_by_polling()?;
        }
        Ok(())
    }

    /// Makes requests of that kind for `time`.
    pub fn round(&mut self, row: &Row, time: Duration) -> Result<Round> {
        let make: Make = match row.direction {
            Direction::Read => Request::read,
            Direction::Write => Request::write,
        };
        self.stride = stride(row);
        let mut round = Round { latencies: Vec::with_capacity(1 << 20), ..Round::default() };
        let start = Instant::now();
        match (row.waiting, row.depth) {
            (Waiting::Polling, 1) => self.poll_singly(make, start, time, &mut round)?,
            (Waiting::Polling, _) => self.poll_many(make, start, time, &mut round)?,
            (Waiting::Sleeping, _) => self.sleep(make, row, start, time, &mut round)?,
        }
        round.time = start.elapsed();
        while self.driver.in_flight() > 0 {
            self.next_by_polling()?;
        }
        Ok(round)
    }

    fn poll_singly(
        &mut self,
        make: Make,
        start: Instant,
        time: Duration,
        round: &mut Round,
    ) -> Result<()> {
        loop {
            for _ in 1..STRIDE {
                self.fill(make)?;
                self.next_by_polling()?;
            }
            let before = Instant::now();
            self.fill(make)?;
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
        make: Make,
        start: Instant,
        time: Duration,
        round: &mut Round,
    ) -> Result<()> {
        let mut next_look = 0;
        loop {
            self.fill(make)?;
            self.next_by_polling()?;
            round.requests += 1;
            while self.next()? {
                round.requests += 1;
            }
            if round.requests >= next_look {
                if start.elapsed() >= time {
                    return Ok(());
                }
                next_look = round.requests + STRIDE * u64::from(self.driver.shape().depth());
            }
        }
    }

    fn sleep(
        &mut self,
        make: Make,
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
            self.fill(make)?;
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

    /// Submits as many requests as there are slots, and publishes them at once.
    fn fill(&mut self, make: Make) -> Result<()> {
        while let Some(slot) = self.driver.slot() {
            slot.submit(make(self.at / 512, self.bytes));
            self.at += self.stride;
            if self.at + u64::from(self.bytes) > self.region.end {
                self.lap += u64::from(self.bytes);
                if self.lap + u64::from(self.bytes) > self.stride {
                    self.lap = 0;
                }
                self.at = self.region.start + self.lap;
            }
        }
        self.driver.publish().map_err(|e| doing("kicking")(e.into()))?;
        Ok(())
    }

    /// Returns whether there was a completion.
    fn next(&mut self) -> Result<bool> {
        let (who, sector) = (self.name, self.at / 512);
        match self.driver.reap_any()?.map(|done| done.status()) {
            None => Ok(false),
            Some(0) => Ok(true),
            Some(status) => Err(Error::Refused { who, sector, status }),
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
            if !self.driver.ask_for_interrupt() {
                continue;
            }
            let Some(interrupt) = self.driver.interrupt_fd() else {
                return Err(Error::Stalled(self.name));
            };
            match poll(&mut [PollFd::new(interrupt, PollFlags::POLLIN)], PATIENCE_MS) {
                Err(Errno::EINTR) => {}
                Err(e) => return Err(doing("waiting for an interrupt")(e.into())),
                Ok(0) => return Err(Error::Stalled(self.name)),
                Ok(_) => self.driver.acknowledge_interrupt(),
            }
        }
        Ok(())
    }
}
