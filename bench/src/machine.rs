//! The machine's own limits, measured beside every row: a figure means little without them.

use crate::error::{Error, Result, doing};
use crate::rows::{Direction, Row};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;
use shared_block_ring::device::{AlignedBuf, Mapping, Memory};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

/// Bound on the wait for a thread that is about to answer.
const PATIENCE_MS: u16 = 1000;

/// The two processors.
#[derive(Debug, Clone, Copy)]
pub struct Processors {
    /// Processor of the front end.
    pub front: usize,
    /// Processor of the backend.
    pub back: usize,
}

/// Runs this thread on one processor only.
pub fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set))
        .map_err(|e| doing(format!("cannot run on processor {processor}"))(e.into()))
}

/// A word alone in its cache line, and in the one that is fetched with it.
#[repr(align(128))]
struct Line(AtomicU64);

/// There and back between the processors, in nanoseconds: what one stores the other sees, and
/// answers in a line of its own, as the sides of a queue do. The median of many short runs, since
/// who else is on the processors stops some of them.
pub fn line_round_trip(processors: Processors) -> Result<f64> {
    const TRIPS: u64 = 200;
    const RUNS: u64 = 31;
    let [asked, answered] = [0, 0].map(|start| Line(AtomicU64::new(start)));
    let ready = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let answer = scope.spawn(|| {
            pin(processors.back)?;
            ready.store(true, Ordering::Release);
            for trip in 1..=TRIPS * RUNS {
                while asked.0.load(Ordering::Acquire) != trip {}
                answered.0.store(trip, Ordering::Release);
            }
            Ok(())
        });
        while !ready.load(Ordering::Acquire) {
            if answer.is_finished() {
                return finished(answer).map(|()| f64::NAN);
            }
            std::thread::yield_now();
        }
        let mut runs = Vec::new();
        let mut trip = 0;
        for _ in 0..RUNS {
            let start = Instant::now();
            for _ in 0..TRIPS {
                trip += 1;
                asked.0.store(trip, Ordering::Release);
                while answered.0.load(Ordering::Acquire) != trip {}
            }
            runs.push(nanoseconds(start.elapsed()) / TRIPS as f64);
        }
        finished(answer)?;
        Ok(median(&mut runs))
    })
}

/// Time of a request before its waiter is woken: about as much as one of 4 KiB takes. A thread that
/// is woken earlier has not gone to sleep.
const REQUEST: Duration = Duration::from_nanos(400);

/// There and back between the processors where the front sleeps until it is woken, as on an
/// interrupt, and the back polls; in nanoseconds, over `time`. Nothing is carried out in between,
/// but a request's time passes.
pub fn wake_round_trip(processors: Processors, time: Duration) -> Result<f64> {
    let failed = || doing("waking a thread");
    let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    let event = event.map_err(|e| failed()(e.into()))?;
    let (asked, over) = (Line(AtomicU64::new(0)), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let wake = scope.spawn(|| {
            pin(processors.back)?;
            let mut answered = 0;
            while !over.load(Ordering::Relaxed) {
                if asked.0.load(Ordering::Acquire) != answered {
                    answered += 1;
                    let seen = Instant::now();
                    while seen.elapsed() < REQUEST {}
                    event.write(1).map_err(|e| failed()(e.into()))?;
                }
            }
            Ok(())
        });
        let start = Instant::now();
        let mut trips = 0;
        let mut outcome = Ok(());
        // Who cannot run does not answer: the first wait ends by itself then.
        while outcome.is_ok() && start.elapsed() < time && !wake.is_finished() {
            trips += 1;
            asked.0.store(trips, Ordering::Release);
            let mut woken = [PollFd::new(event.as_fd(), PollFlags::POLLIN)];
            outcome = poll(&mut woken, PATIENCE_MS).map_err(|e| failed()(e.into())).map(|_| ());
            let _ = event.read();
        }
        let passed = start.elapsed();
        over.store(true, Ordering::Relaxed);
        finished(wake).and(outcome)?;
        Ok(nanoseconds(passed) / trips as f64)
    })
}

/// Copies between buffers that are used again and again and a mapping that is walked from one end
/// to the other, as the backend has to; on its processor. Bytes in a second.
pub fn copy_rate(
    processors: Processors,
    mapping: &mut Mapping,
    region: std::ops::Range<u64>,
    row: &Row,
    time: Duration,
) -> Result<f64> {
    std::thread::scope(|scope| {
        finished(scope.spawn(move || {
            pin(processors.back)?;
            let bytes = row.bytes as usize;
            let mut buffers = AlignedBuf::zeroed(bytes * usize::from(row.depth));
            buffers.fill(1);
            let mut offset = region.start;
            let mut copied = 0u64;
            let start = Instant::now();
            while start.elapsed() < time {
                for buffer in buffers.chunks_mut(bytes) {
                    match row.direction {
                        Direction::Write => mapping.write(offset, buffer),
                        Direction::Read => mapping.read(offset, buffer),
                    }
                    offset += bytes as u64;
                    if offset + bytes as u64 > region.end {
                        offset = region.start;
                    }
                }
                copied += buffers.len() as u64;
            }
            Ok(copied as f64 / start.elapsed().as_secs_f64())
        }))
    })
}

/// Bytes of a copy of which no cache holds anything when it is made again.
const STREAM: usize = 64 << 20;

/// A copy alone, from memory to memory.
pub struct Streaming {
    from: Vec<u8>,
    to: Vec<u8>,
}

impl Streaming {
    /// Makes memory of which every page is present.
    pub fn new() -> Self {
        Self { from: vec![1; STREAM], to: vec![2; STREAM] }
    }

    /// Bytes in a second, on the processor of this thread: the median of short runs.
    pub fn rate(&mut self) -> f64 {
        const RUNS: usize = 5;
        let run = || {
            let start = Instant::now();
            self.to.copy_from_slice(&self.from);
            std::hint::black_box(&self.to);
            STREAM as f64 / start.elapsed().as_secs_f64()
        };
        median(&mut std::iter::repeat_with(run).take(RUNS).collect::<Vec<_>>())
    }
}

/// Returns what it costs to look at the clock, nanoseconds.
pub fn clock_cost() -> f64 {
    let mut costs: Vec<_> =
        (0..10_000).map(|_| Instant::now()).map(|start| nanoseconds(start.elapsed())).collect();
    median(&mut costs)
}

/// Converts a time to nanoseconds.
pub fn nanoseconds(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

/// Returns the median.
pub fn median(values: &mut [f64]) -> f64 {
    quantile(values, 0.5)
}

/// Returns the figure that `part` of them do not exceed.
pub fn quantile(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 - 1.0) * part).round();
    values.get(index as usize).copied().unwrap_or(f64::NAN)
}

/// Returns the thread's result.
pub fn finished<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| {
        Err(Error::Io { what: "measuring".to_owned(), source: io::Error::other("a thread died") })
    })
}
