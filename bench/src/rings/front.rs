//! Front ends of many rings, which one thread drives in turn.

use crate::error::{Error, Result, doing};
use crate::machine::nanoseconds;
use ring_os::Limits;
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};
use virtio_blk_driver::{BlockDriver, Request, ResumeError, Shape, VhostUser};

/// Requests at once, at most.
pub const DEPTH: usize = 32;

/// Bytes of a request, at most.
pub const MOST: u32 = 4096;

/// Start of the bytes that requests walk over: behind the ring's pointers.
pub const START: u64 = 4096;

/// Bytes of a ring.
pub const RING: u64 = 1 << 20;

/// Bound on the wait for any completion, and for a data process.
const PATIENCE: Duration = Duration::from_secs(20);

/// The pause before another attempt to connect.
const PAUSE: Duration = Duration::from_millis(2);

/// Visits between two looks at the clock.
const STRIDE: u64 = 64;

/// The backend, in messages.
const WHO: &str = "the daemon of many rings";

/// What a front end asks for.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Bytes of a request.
    pub bytes: u32,
    /// Requests at once.
    pub depth: usize,
    /// Whether they go where the guest may not write.
    pub refused: bool,
    /// Whether to measure the time of each.
    pub timed: bool,
}

/// A front end of one ring.
pub struct Front {
    driver: BlockDriver,
    at: u64,
    /// When the requests in flight were made, if that is wanted.
    made: VecDeque<Instant>,
    /// Kicks of the backend, which is asleep then, or about to be.
    kicks: u64,
    /// Times of requests, in nanoseconds.
    pub times: Vec<f64>,
}

impl Front {
    /// Connects to the backend at `socket`.
    pub fn connect(socket: &Path) -> Result<Self> {
        let failed = |error: virtio_blk_driver::Error| {
            doing(format!("connecting to {}", socket.display()))(error.into())
        };
        let backend = VhostUser::connect(socket).map_err(failed)?;
        let shape = Shape::new(DEPTH as u16, MOST);
        let driver = BlockDriver::new(backend, shape, &Limits::default()).map_err(failed)?;
        Ok(Self { driver, at: START, made: VecDeque::new(), kicks: 0, times: Vec::new() })
    }

    /// Takes what is done, and makes as many requests as are wanted. Returns how many were done.
    pub fn visit(&mut self, load: Load) -> Result<u64> {
        let mut now = None;
        let mut done = 0;
        while let Some(status) = self.driver.reap()?.map(|done| done.status()) {
            if load.timed
                && let Some(made) = self.made.pop_front()
            {
                let now = *now.get_or_insert_with(Instant::now);
                self.times.push(nanoseconds(now.saturating_duration_since(made)));
            }
            if (status != 0) != load.refused {
                return Err(Error::Refused { who: WHO, sector: self.at / 512, status });
            }
            done += 1;
        }
        if self.driver.in_flight() >= load.depth {
            return Ok(done);
        }
        let mut missing = load.depth - self.driver.in_flight();
        let bytes = u64::from(load.bytes);
        while missing > 0
            && let Some(slot) = self.driver.slot()
        {
            // The last requests may have been smaller ones.
            self.at = self.at.next_multiple_of(bytes);
            if self.at + bytes > RING {
                self.at = START;
            }
            let sector = if load.refused { 0 } else { self.at / 512 };
            slot.submit(Request::write(sector, load.bytes));
            self.at += bytes;
            if load.timed {
                self.made.push_back(*now.get_or_insert_with(Instant::now));
            }
            missing -= 1;
        }
        let kicked = self.driver.publish().map_err(|e| doing("kicking")(e.into()))?;
        self.kicks += u64::from(kicked);
        Ok(done)
    }

    /// Waits until nothing is in flight. Returns how many requests were done meanwhile.
    pub fn drain(&mut self, load: Load) -> Result<u64> {
        let start = Instant::now();
        let mut all = 0;
        while self.driver.in_flight() > 0 {
            // Other front ends were waited for meanwhile.
            let rest = Load { depth: 0, timed: false, ..load };
            let done = self.visit(rest)?;
            all += done;
            if done == 0 && start.elapsed() > PATIENCE {
                return Err(Error::Stalled(WHO));
            }
        }
        self.made.clear();
        Ok(all)
    }

    /// Writes to all of the ring once.
    pub fn walk_once(&mut self) -> Result<()> {
        let load = Load { bytes: MOST, depth: DEPTH, refused: false, timed: false };
        let (all, start) = ((RING - START) / u64::from(MOST), Instant::now());
        let mut done = 0;
        while done < all {
            done += self.visit(load)?;
            if start.elapsed() > PATIENCE {
                return Err(Error::Stalled(WHO));
            }
        }
        self.drain(load)?;
        Ok(())
    }

    /// Connects to the process in the place of one that has died.
    pub fn reconnect(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let Err(error) = self.driver.resume(&Limits::within(PATIENCE)) else { return Ok(()) };
            if !matches!(error, ResumeError::Later(_)) || start.elapsed() > PATIENCE {
                return Err(doing("connecting again")(std::io::Error::other(error)));
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// What one thread has brought about at many rings.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// Requests per second, of all.
    pub rate: f64,
    /// Part of the visits that found nothing done: near 0 the thread of the front ends is the
    /// slower side, near 1 the daemon is.
    pub waited: f64,
    /// Requests, with those that were under way at the end.
    pub requests: f64,
    /// Kicks of the backend for each request.
    pub kicks: f64,
    /// Processor time of the daemon for a request, in nanoseconds, where that was measured.
    pub processor: f64,
}

/// Goes round all `fronts` for `time`, each with the load that `load` gives it.
pub fn round(fronts: &mut [Front], time: Duration, load: impl Fn(usize) -> Load) -> Result<Round> {
    let start = Instant::now();
    let (mut visits, mut empty, mut requests) = (0u64, 0u64, 0u64);
    let mut last = (0, start);
    let passed = 'all: loop {
        for (number, front) in fronts.iter_mut().enumerate() {
            let done = front.visit(load(number))?;
            visits += 1;
            requests += done;
            empty += u64::from(done == 0);
            if !visits.is_multiple_of(STRIDE) {
                continue;
            }
            let now = Instant::now();
            if now - start >= time {
                break 'all now - start;
            }
            if requests != last.0 {
                last = (requests, now);
            } else if now - last.1 > PATIENCE {
                return Err(Error::Stalled(WHO));
            }
        }
    };
    let (rate, waited) = (requests as f64 / passed.as_secs_f64(), empty as f64 / visits as f64);
    for (number, front) in fronts.iter_mut().enumerate() {
        requests += front.drain(load(number))?;
    }
    let kicks = fronts.iter_mut().map(|front| std::mem::take(&mut front.kicks)).sum::<u64>();
    let requests = requests as f64;
    Ok(Round { rate, waited, requests, kicks: kicks as f64 / requests, processor: f64::NAN })
}
