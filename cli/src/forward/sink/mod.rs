//! The destinations of items, behind one small interface: nothing of it waits, and each ring has a
//! lane of its own.
//!
//! The engine owns the rings and runs on one thread. A sink may have threads of its own, or
//! children; what becomes of a batch it reports by the lane's [`Reporter`]. A ring's consumer
//! pointer moves only behind [`Event::Acknowledged`].

pub mod exec;
pub mod file;
pub mod journald;
pub mod nats;

use super::super::failure::Failure;
use super::super::framing::{Framing, OnSeparator};
use super::settings::{Destination, SinkOptions};
use bytes::Bytes;
use nats::options::OptionsError;
use nix::sys::eventfd::EventFd;
use shared_block_ring::Position;
use shared_block_ring::format::Tally;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Instant, SystemTime};
use uuid::Uuid;

/// Destination of the items of rings.
pub trait Sink {
    /// Opens the way of one ring into the sink. Never blocks: what comes of it is reported to
    /// `events`, first of all [`Event::Ready`] or [`Event::Failed`].
    fn open(&mut self, ring: &RingFacts, events: Reporter) -> Box<dyn Lane>;

    /// Returns how many descriptors a lane takes at most, once it has items.
    fn descriptors(&self) -> u64;

    /// Notes the time by which the sink must have ended what it has started. Its lanes are dropped
    /// next, and then the sink.
    fn end_by(&mut self, _deadline: Instant) {}
}

/// Makes the sink that the configuration names. What is wrong with it is found here, as far as that
/// needs no connection.
pub fn make(to: &Destination, options: &SinkOptions) -> Result<Box<dyn Sink>, Failure> {
    let framing = options.framing.unwrap_or(Framing::Lines);
    let framing = (framing, options.on_separator.unwrap_or(OnSeparator::Fail));
    Ok(match to {
        Destination::File(path) => Box::new(file::Files::new(path, framing, &options.file)?),
        Destination::Exec(command) => {
            Box::new(exec::Commands::new(command, framing, &options.exec)?)
        }
        Destination::Journald(folder) => journald::make(folder.as_deref(), &options.journald)?,
        Destination::Nats(address) => {
            let settings = options.nats.clone().settings(address);
            let settings = settings.map_err(|e| match e {
                OptionsError::Unreadable { .. } => Failure::Refused(e.to_string()),
                _ => Failure::Usage(e.to_string()),
            })?;
            Box::new(nats::Nats::new(settings))
        }
    })
}

/// Returns what keeps the items of rings with these names from the sink, as far as a look tells
/// that changes nothing and needs no connection. At run time each is tried again, or leaves one
/// ring alone.
pub fn faults(to: &Destination, options: &SinkOptions, rings: &BTreeSet<&str>) -> Vec<String> {
    match to {
        Destination::File(path) => file::faults(path, rings),
        Destination::Exec(_) | Destination::Journald(None) => Vec::new(),
        Destination::Journald(Some(folder)) => journald::faults(folder),
        Destination::Nats(_) => options.nats.faults(rings),
    }
}

/// Way of one ring into a sink. Dropping it ends the work for the ring; batches without an
/// acknowledgement count as not arrived.
pub trait Lane {
    /// Takes a batch; never blocks. It is called only after [`Event::Ready`]. The batches of a lane
    /// are in the ring's order, and the first one starts at or behind the reported position.
    fn send(&mut self, batch: Batch);

    /// Notes that no batch follows, while what was sent is still waited for: a destination that
    /// answers at the end of its input can end it. Never blocks.
    fn finish(&mut self) {}
}

/// Facts of a ring for its lane.
#[derive(Debug, Clone)]
pub struct RingFacts {
    /// Name of the ring: unique within the forwarder, not empty, and without control characters.
    pub name: String,
    /// UUID of the ring, which a ring keeps for its life.
    pub uuid: Uuid,
    /// The consumer's pointer: the position of the first item that was not freed.
    pub position: Position,
}

/// Consecutive items of one ring.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The payloads, one behind the other.
    pub bytes: Bytes,
    /// The items, at least one, in the ring's order.
    pub items: Vec<Item>,
}

/// One item of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Place of the payload in the batch's bytes.
    pub range: Range<usize>,
    /// Position of the item.
    pub position: Position,
    /// Position behind the item, and so of the next one.
    pub next: Position,
    /// Time of the publication by the producer that was seen last when the item was read: the item
    /// was published then or before. `None` if the ring does not tell.
    pub time: Option<SystemTime>,
}

/// A report of a lane.
#[derive(Debug)]
pub enum Event {
    /// The sink is ready for the ring, and has everything before `arrived` (`None`: it has nothing
    /// of this ring).
    Ready {
        /// The last item that has arrived for good.
        arrived: Option<Arrived>,
    },
    /// Everything before the position has arrived for good.
    Acknowledged(Position),
    /// Something keeps items from arriving, and the lane goes on trying. The next acknowledgement
    /// is the end of it.
    Trouble {
        /// What fails, on what, why, and what to do.
        message: String,
        /// Whether the sink has logged it itself, once for all of its lanes.
        is_said: bool,
    },
    /// The lane is dead: the engine drops it, and reads unacknowledged items again for the next.
    Failed(SinkError),
}

/// The last item of a ring that a sink has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Position behind it: everything before has arrived.
    pub position: Position,
    /// Checksum of the item, where the sink knows it: a ring whose item there has another one is
    /// not the ring that the sink knows, although it has the same UUID.
    pub checksum: Option<u32>,
}

/// Returns the checksum of an item: its CRC32C.
pub fn checksum(item: &[u8]) -> u32 {
    Tally::from_here(Position::ZERO).extend(1, item).crc
}

/// Error of a sink, or of one lane of it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SinkError {
    /// What failed, on what, why, and what to do.
    pub message: String,
    /// Whether the engine opens the lane again.
    pub kind: SinkErrorKind,
}

/// What the engine does about a dead lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkErrorKind {
    /// Open the ring's lane again, after a pause that grows with failures in a row.
    Retry,
    /// Leave the ring alone until the configuration changes: another attempt would fail the same
    /// way.
    Stop,
}

/// Identity of one opening of a lane: reports of an earlier lane of the same ring are recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LaneId(pub u64);

/// The way of a lane's reports to the engine. Any thread may use it, and clones of it.
#[derive(Debug, Clone)]
pub struct Reporter {
    lane: LaneId,
    events: Sender<(LaneId, Event)>,
    wake: Arc<EventFd>,
}

impl Reporter {
    /// Makes the reporter of `lane`. `wake` is what the engine sleeps on; it must not block.
    pub fn new(lane: LaneId, events: Sender<(LaneId, Event)>, wake: Arc<EventFd>) -> Self {
        Self { lane, events, wake }
    }

    /// Reports an event. Never waits. After the engine's end it does nothing.
    pub fn report(&self, event: Event) {
        if self.events.send((self.lane, event)).is_ok() {
            // Fails only when the counter is full, and the engine about to wake up anyway.
            let _ = self.wake.write(1);
        }
    }
}
