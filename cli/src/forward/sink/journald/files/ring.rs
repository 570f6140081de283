//! One ring's journal file, and who may write it.
//!
//! The lock of a ring is a lock on an open file that each `systemd-journal-remote` has as its
//! standard output. So it outlives a forwarder that is killed, and the next forwarder looks at the
//! file only after the last program that writes it has ended.

use super::super::super::{Arrived, Batch, Event, Reporter, RingFacts, SinkError, SinkErrorKind};
use super::super::record::{self, Place};
use super::Tools;
use super::arrived::current;
use super::program::memory;
use shared_block_ring::Position;
use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::io::{self, BufWriter, Seek, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of records that one program writes, about: they are in memory meanwhile.
const CHUNK: u64 = 4 << 20;

/// Buffer for the fields of records, in bytes.
const BUFFER: usize = 64 << 10;

/// Pause between two looks at the lock while another program writes the file.
const LOOK: Duration = Duration::from_millis(50);

/// The longest time that another program is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest item in bytes: a field of a journal has less than 768 MiB.
const LONGEST_ITEM: usize = 767 << 20;

/// What follows a turn.
pub enum Turn {
    /// Nothing, until the ring is scheduled.
    Done,
    /// A turn at that time.
    Again(Instant),
}

/// A ring's way into its journal file.
pub struct Ring {
    tools: Arc<Tools>,
    facts: RingFacts,
    /// The beginning of its files' names.
    stem: String,
    events: Reporter,
    queue: Mutex<Queue>,
    /// Only the thread that has the turn uses it.
    work: Mutex<Work>,
    is_closed: AtomicBool,
}

#[derive(Default)]
struct Queue {
    batches: VecDeque<Batch>,
    /// Whether the ring has a turn, or will.
    is_scheduled: bool,
}

struct Work {
    patience_ends: Instant,
    /// The lock, once it is held.
    lock: Option<File>,
    batches: VecDeque<Batch>,
    /// Items of the first batch that have arrived.
    done: usize,
    arrived: Option<Position>,
    has_failed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ring {
    /// Makes a ring's way, which has its first turn due.
    pub fn new(tools: Arc<Tools>, facts: RingFacts, stem: String, events: Reporter) -> Self {
        let work = Work {
            patience_ends: Instant::now() + PATIENCE,
            lock: None,
            batches: VecDeque::new(),
            done: 0,
            arrived: None,
            has_failed: false,
        };
        let queue = Queue { is_scheduled: true, ..Queue::default() };
        let (queue, work) = (Mutex::new(queue), Mutex::new(work));
        Self { tools, facts, stem, events, queue, work, is_closed: AtomicBool::new(false) }
    }

    /// Takes a batch, and returns whether the ring needs a turn.
    pub fn add(&self, batch: Batch) -> bool {
        let mut queue = lock(&self.queue);
        queue.batches.push_back(batch);
        !std::mem::replace(&mut queue.is_scheduled, true)
    }

    /// Ends the work after what is being written.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Does what there is to do.
    pub fn turn(&self) -> Turn {
        let mut work = lock(&self.work);
        if self.is_closed.load(Ordering::Acquire) || work.has_failed {
            // What comes yet is for nobody, and needs no turn.
            work.batches.clear();
            lock(&self.queue).batches.clear();
            return Turn::Done;
        }
        let done = if work.lock.is_none() {
            match self.open(&mut work) {
                Ok(true) => Ok(()),
                Ok(false) => return Turn::Again(Instant::now() + LOOK),
                Err(e) => Err(e),
            }
        } else {
            self.write(&mut work)
        };
        if let Err(error) = done {
            work.has_failed = true;
            work.lock = None;
            work.batches.clear();
            self.events.report(Event::Failed(error));
        }
        let mut queue = lock(&self.queue);
        if !work.batches.is_empty() {
            // The others that wait come first.
            return Turn::Again(Instant::now());
        }
        queue.is_scheduled = !queue.batches.is_empty();
        if queue.is_scheduled { Turn::Again(self.due()) } else { Turn::Done }
    }

    /// Returns when a ring that has a first batch shall have its turn.
    pub fn due(&self) -> Instant {
        Instant::now() + self.tools.gather
    }

    /// Takes the lock and reports what has arrived; returns `false` if another program has it yet.
    fn open(&self, work: &mut Work) -> Result<bool, SinkError> {
        let archive = &self.tools.archive;
        let path = archive.folder.join(format!(".{}.lock", self.stem));
        let failed = |e: io::Error| retry(format!("{}: {e}", path.display()));
        let file = File::options().create(true).append(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) if Instant::now() < work.patience_ends => {
                return Ok(false);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(retry(format!(
                    "{}: another forwarder, or a program that it has started, writes {}",
                    path.display(),
                    current(&self.stem)
                )));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        work.arrived = archive.durable(&self.stem, self.facts.uuid).map_err(retry)?;
        work.lock = Some(file);
        // The last record is what the program has made of the item, and not the item.
        let arrived = work.arrived.map(|position| Arrived { position, checksum: None });
        self.events.report(Event::Ready { arrived });
        Ok(true)
    }

    /// Writes a chunk, and reports how far the ring has arrived.
    fn write(&self, work: &mut Work) -> Result<(), SinkError> {
        work.batches.append(&mut lock(&self.queue).batches);
        let failed = |what: &str, e: &dyn std::fmt::Display| retry(format!("{what}: {e}"));
        let mut file = memory("records").map_err(|e| failed("cannot reserve memory", &e))?;
        let Some(end) = self.put(work, &mut file)? else { return Ok(()) };
        file.rewind().map_err(|e| failed("cannot gather records", &e))?;
        let Some(lock) = &work.lock else { return Ok(()) };
        let lock = lock.try_clone().map_err(|e| failed("cannot pass the lock on", &e))?;
        let output = format!("--output={}", current(&self.stem));
        let arguments = ["--split-mode=none", &output, "-"];
        let archive = &self.tools.archive;
        let remote = &self.tools.remote;
        let ended = remote.run(&archive.folder, &arguments, file.into(), lock.into());
        // It may end well without having written all, as on a full disk. If it was killed, what it
        // has written is not durable yet: that is seen to when the ring is opened again.
        ended.map_err(retry)?;
        let arrived = archive.seen(&self.stem, self.facts.uuid).map_err(retry)?;
        if arrived > work.arrived {
            work.arrived = arrived;
            if let Some(position) = arrived {
                self.events.report(Event::Acknowledged(position));
            }
        }
        if arrived == Some(end) {
            return Ok(());
        }
        let reached = arrived.map_or_else(|| "nothing".to_owned(), |end| end.to_string());
        Err(retry(format!(
            "{}: has the items up to {reached} only, not to {end} (is the disk full, or an item larger than a journal file may be?)",
            archive.folder.join(current(&self.stem)).display(),
        )))
    }

    /// Writes the records of the first items, and returns the position behind them; `None` if there
    /// are none.
    fn put(&self, work: &mut Work, file: &mut File) -> Result<Option<Position>, SinkError> {
        let place = Place::File(&self.tools.archive.host_boot);
        let failed = |e: io::Error| retry(format!("cannot gather records in memory: {e}"));
        let mut out = BufWriter::with_capacity(BUFFER, Counted { file, bytes: 0 });
        let mut end = None;
        while let Some(batch) = work.batches.front() {
            while let Some(item) = batch.items.get(work.done) {
                if out.get_ref().bytes >= CHUNK {
                    return out.flush().map(|()| end).map_err(failed);
                }
                if item.range.len() > LONGEST_ITEM {
                    if end.is_some() {
                        // Those before it arrive first.
                        return out.flush().map(|()| end).map_err(failed);
                    }
                    let message = format!(
                        "the item at position {} has {} bytes, and a journal takes {LONGEST_ITEM}",
                        item.position,
                        item.range.len()
                    );
                    return Err(SinkError { message, kind: SinkErrorKind::Stop });
                }
                let payload = &batch.bytes[item.range.clone()];
                record::write(&mut out, &self.facts, item, payload, place).map_err(failed)?;
                out.write_all(b"\n").map_err(failed)?;
                end = Some(item.next);
                work.done += 1;
            }
            work.batches.pop_front();
            work.done = 0;
        }
        out.flush().map(|()| end).map_err(failed)
    }
}

/// A file, and the bytes that were written to it.
struct Counted<'a> {
    file: &'a mut File,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn retry(message: String) -> SinkError {
    SinkError { message, kind: SinkErrorKind::Retry }
}
