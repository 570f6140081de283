//! The threads that write: a few for all files, since each write ends with a flush that takes
//! milliseconds. What waits for a file meanwhile shares its next flush.

use super::super::{Arrived, Batch, Event, Reporter, RingFacts, SinkError, SinkErrorKind};
use super::compress::Compressor;
use super::log::{Log, Style};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Files that are written at the same time.
const THREADS: usize = 4;

/// Stack of a thread in bytes.
const STACK: usize = 512 << 10;

/// Bytes that share a flush, about.
const GROUP: usize = 4 << 20;

/// What a lane asks for.
pub enum Job {
    Open { ring: RingFacts, events: Reporter },
    Write(Batch),
    Close,
}

/// A file that lanes write to.
pub struct Output {
    path: PathBuf,
    style: Style,
    queue: Mutex<Queue>,
    work: Mutex<Work>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(u64, Job)>,
    /// Whether a thread has it, or will.
    is_scheduled: bool,
}

/// What only the thread that writes the file uses.
#[derive(Default)]
struct Work {
    log: Option<Log>,
    lanes: HashMap<u64, (RingFacts, Reporter)>,
}

/// The threads; they end when the last pool is dropped.
#[derive(Clone)]
pub struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    /// `None` once it ends.
    outputs: Option<Sender<Arc<Output>>>,
    receiver: Arc<Mutex<Receiver<Arc<Output>>>>,
    threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    idle: Arc<AtomicUsize>,
    compressor: Arc<Compressor>,
}

/// A lane's way to its file.
pub struct LaneJobs {
    output: Arc<Output>,
    pool: Pool,
    lane: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Output {
    pub fn new(path: PathBuf, style: Style) -> Self {
        Self { path, style, queue: Mutex::default(), work: Mutex::default() }
    }

    /// Does all jobs.
    fn run(&self, compressor: &Arc<Compressor>) {
        let mut work = lock(&self.work);
        loop {
            let jobs = {
                let mut queue = lock(&self.queue);
                if queue.jobs.is_empty() {
                    queue.is_scheduled = false;
                    return;
                }
                // No more than shares a flush: what waits still can be dropped with its lane.
                let bytes_of = |job: &Job| match job {
                    Job::Write(batch) => batch.bytes.len(),
                    Job::Open { .. } | Job::Close => 0,
                };
                let mut bytes = 0;
                let enough = queue.jobs.iter().position(|(_, job)| {
                    bytes += bytes_of(job);
                    bytes >= GROUP
                });
                let count = enough.map_or(queue.jobs.len(), |last| last + 1);
                queue.jobs.drain(..count).collect::<Vec<_>>()
            };
            let mut group = Vec::new();
            for (lane, job) in jobs {
                match job {
                    Job::Write(batch) => group.push((lane, batch)),
                    Job::Open { ring, events } => {
                        // It is told what has arrived, of an earlier lane, too.
                        work.write(&mut group);
                        work.open(self, compressor, lane, ring, events);
                    }
                    Job::Close => {
                        work.lanes.remove(&lane);
                    }
                }
            }
            work.write(&mut group);
            if work.lanes.is_empty() {
                // Others may write the file now.
                work.log = None;
            }
        }
    }
}

impl Work {
    fn open(
        &mut self,
        output: &Output,
        compressor: &Arc<Compressor>,
        lane: u64,
        ring: RingFacts,
        events: Reporter,
    ) {
        let log = match self.log.take() {
            Some(log) => Ok(log),
            None => Log::open(&output.path, output.style.clone(), Arc::clone(compressor)),
        };
        match log {
            Ok(log) => {
                let arrived = log.arrived(ring.uuid);
                let before = |arrived: &Arrived| arrived.position < ring.position;
                if let Some(Arrived { position, .. }) = arrived.filter(before) {
                    log::warn!(
                        "{}: the items between positions {position} and {} were taken by others: the file lacks them",
                        ring.name,
                        ring.position
                    );
                }
                events.report(Event::Ready { arrived });
                self.lanes.insert(lane, (ring, events));
                self.log = Some(log);
            }
            Err(message) => {
                let kind = SinkErrorKind::Retry;
                events.report(Event::Failed(SinkError { message, kind }));
            }
        }
    }

    /// Writes a group, and reports what has arrived.
    fn write(&mut self, group: &mut Vec<(u64, Batch)>) {
        let batches = std::mem::take(group);
        let Some(log) = &mut self.log else { return };
        let lanes = &self.lanes;
        let known = batches.iter().filter_map(|(lane, batch)| {
            let (ring, _) = lanes.get(lane)?;
            Some((*lane, ring, batch))
        });
        let known: Vec<_> = known.collect();
        if known.is_empty() {
            return;
        }
        match log.append(known.iter().map(|(_, ring, batch)| (*ring, *batch))) {
            Ok(outcomes) => {
                let mut refused = Vec::new();
                for ((lane, ..), outcome) in known.iter().zip(outcomes) {
                    let Some((_, events)) = lanes.get(lane) else { continue };
                    if let Some(last) = outcome.arrived {
                        events.report(Event::Acknowledged(last.position));
                    }
                    if let Some(message) = outcome.refused {
                        let kind = SinkErrorKind::Stop;
                        events.report(Event::Failed(SinkError { message, kind }));
                        refused.push(*lane);
                    }
                }
                for lane in refused {
                    self.lanes.remove(&lane);
                }
            }
            Err(message) => {
                // A failed write may have left any part of its bytes: the next opening cuts them
                // off.
                self.log = None;
                for (_, (_, events)) in self.lanes.drain() {
                    let kind = SinkErrorKind::Retry;
                    events.report(Event::Failed(SinkError { message: message.clone(), kind }));
                }
            }
        }
    }
}

impl LaneJobs {
    pub fn new(output: Arc<Output>, pool: Pool, lane: u64) -> Self {
        Self { output, pool, lane }
    }

    /// Ends the lane: batches that wait are not written.
    pub fn close(&self) {
        let is_write = |job: &Job| matches!(job, Job::Write(_));
        let mut queue = lock(&self.output.queue);
        queue.jobs.retain(|(lane, job)| *lane != self.lane || !is_write(job));
        drop(queue);
        self.add(Job::Close);
    }

    /// Adds a job, for a thread to do it. Nothing waits.
    pub fn add(&self, job: Job) {
        let mut queue = lock(&self.output.queue);
        queue.jobs.push_back((self.lane, job));
        if !std::mem::replace(&mut queue.is_scheduled, true) {
            self.pool.run(Arc::clone(&self.output));
        }
    }
}

impl Pool {
    pub fn new() -> Self {
        let (sender, receiver) = channel();
        Self {
            shared: Arc::new(Shared {
                outputs: Some(sender),
                receiver: Arc::new(Mutex::new(receiver)),
                threads: Mutex::default(),
                idle: Arc::default(),
                compressor: Arc::default(),
            }),
        }
    }

    fn run(&self, output: Arc<Output>) {
        let shared = &self.shared;
        let mut threads = lock(&shared.threads);
        if shared.idle.load(Ordering::Acquire) == 0 && threads.len() < THREADS {
            let receiver = Arc::clone(&shared.receiver);
            let (idle, compressor) = (Arc::clone(&shared.idle), Arc::clone(&shared.compressor));
            let work = move || {
                loop {
                    idle.fetch_add(1, Ordering::AcqRel);
                    let output = lock(&receiver).recv();
                    idle.fetch_sub(1, Ordering::AcqRel);
                    let Ok(output) = output else { return };
                    output.run(&compressor);
                }
            };
            let thread = std::thread::Builder::new().name("file".to_owned()).stack_size(STACK);
            match thread.spawn(work) {
                Ok(thread) => threads.push(thread),
                Err(e) if threads.is_empty() => {
                    // Nobody would do the work.
                    log::error!("cannot start a thread (a limit on processes or on memory?): {e}");
                    ring_program::fail();
                }
                Err(_) => {}
            }
        }
        if let Some(outputs) = &shared.outputs {
            // The receiver lives as long as this.
            let _ = outputs.send(output);
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.outputs = None;
        self.compressor.end();
        for thread in lock(&self.threads).drain(..) {
            // A panic has ended the process.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::super::{Item, LaneId};
    use super::*;
    use crate::forward::sink::file::FileOptions;
    use crate::framing::{Framing, OnSeparator};
    use nix::sys::eventfd::EventFd;
    use shared_block_ring::Position;
    use uuid::Uuid;

    #[test]
    fn batches_that_wait_are_dropped_with_their_lane() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        let options = FileOptions::default();
        let style = Style { framing: Framing::Lines, on_separator: OnSeparator::Fail, options };
        let output = Arc::new(Output::new(path.clone(), style));
        // The thread waits for this, as for a slow disk.
        let busy = lock(&output.work);
        let pool = Pool::new();
        let jobs = LaneJobs::new(Arc::clone(&output), pool.clone(), 1);
        let (sender, events) = channel();
        let wake = Arc::new(EventFd::new().unwrap());
        let events_of = Reporter::new(LaneId(1), sender, wake);
        let ring = RingFacts {
            name: "ring".to_owned(),
            uuid: Uuid::from_u128(1),
            position: Position::ZERO,
        };
        jobs.add(Job::Open { ring, events: events_of });
        let next = Position::new(8).unwrap();
        let item = Item { range: 0..1, position: Position::ZERO, next, time: None };
        jobs.add(Job::Write(Batch { bytes: "x".into(), items: vec![item] }));
        jobs.close();
        drop(busy);
        drop((jobs, pool));
        let reports: Vec<_> = events.try_iter().map(|(_, event)| event).collect();
        assert!(matches!(reports[..], [Event::Ready { arrived: None }]), "{reports:?}");
        assert_eq!(std::fs::read(path).unwrap(), b"");
    }
}
