//! A ring of the forwarder, and where its items are.

use super::retry::Retry;
use super::rings::RingSpec;
use super::sink::{Lane, LaneId};
use super::status::{RingStatus, State};
use serde::Serialize;
use shared_block_ring::{Key, Position};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A ring that is, or is to be, forwarded.
pub struct Ring {
    pub name: String,
    pub spec: RingSpec,
    pub phase: Phase,
    /// Whether it is forwarded to its end only: the configuration does not stand for it any more.
    pub is_leaving: bool,
    /// Time of its appearance, if that was while forward ran: it may still be in the making.
    pub appeared: Option<Instant>,
    /// Failures of the ring itself.
    pub retry: Retry,
    /// Failures of the sink for this ring.
    pub sink_retry: Retry,
    /// Long waits for an acknowledgement.
    pub slow: Retry,
    /// The reason why no items arrive, while the lane goes on trying.
    pub trouble: Option<String>,
    pub report: RingReport,
}

/// Counts of a ring, for the report at the end.
#[derive(Debug, Clone, Default, Serialize)]
pub struct RingReport {
    /// Items and their bytes that have arrived.
    pub items: u64,
    pub bytes: u64,
    /// The consumer's pointer.
    pub position: Option<Position>,
    /// The item that the sink has had longest at the end without an acknowledgement.
    pub waiting: Option<Waiting>,
    /// The error that keeps the ring from being forwarded now.
    pub error: Option<String>,
}

/// A wait for an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Waiting {
    /// The position that is to be acknowledged next: that behind the first item in flight.
    pub position: Position,
    /// Seconds since the acknowledgement before, or since there are items in flight.
    pub seconds: f64,
    /// Items in flight.
    pub items: usize,
}

pub enum Phase {
    /// Not open; an attempt follows.
    Closed,
    /// Being opened.
    Opening,
    Open(Opened),
    /// Left alone until the configuration changes.
    Stopped,
}

/// An open ring.
pub struct Opened {
    pub key: Key,
    pub uuid: Uuid,
    pub lane: Option<OpenLane>,
    /// The position behind the last item that was sent.
    pub read: Position,
    /// The position up to which everything has arrived.
    pub arrived: Position,
    pub flights: VecDeque<Flight>,
    /// Begin of the wait for the first of them.
    pub waits_since: Option<Instant>,
    /// Bytes of memory of the items in flight.
    pub cost: u64,
    /// Whether there is nothing behind `read`, as far as the set has looked.
    pub is_resting: bool,
    /// Whether its backend is gone.
    pub is_away: bool,
}

/// The ring's way into the sink.
pub struct OpenLane {
    pub id: LaneId,
    pub lane: Box<dyn Lane>,
    pub is_ready: bool,
    /// Whether it was given a batch: until then a sink may have opened nothing for it.
    pub is_used: bool,
}

/// The time in which a ring's file or socket that has appeared becomes one that can be opened.
const MAKING: Duration = Duration::from_secs(2);

/// An item in flight.
#[derive(Debug, Clone, Copy)]
pub struct Flight {
    /// The position behind it.
    pub end: Position,
    pub bytes: u32,
}

/// Memory of an item in flight beside its bytes.
pub const ITEM_COST: u64 = (size_of::<Flight>() + size_of::<super::sink::Item>()) as u64;

impl Opened {
    pub fn is_ready(&self) -> bool {
        self.lane.as_ref().is_some_and(|lane| lane.is_ready)
    }

    /// Returns whether all that the ring had when the set looked has arrived.
    pub fn is_done(&self) -> bool {
        self.is_resting && self.is_ready() && self.flights.is_empty()
    }

    /// Returns the wait for an acknowledgement, if there is one.
    pub fn waiting(&self, now: Instant) -> Option<Waiting> {
        let position = self.flights.front()?.end;
        let waited = now.saturating_duration_since(self.waits_since?);
        Some(Waiting { position, seconds: waited.as_secs_f64(), items: self.flights.len() })
    }

    /// Takes the items before `position` out of those in flight. Returns their number, bytes and
    /// cost; `None` if no item ends there.
    pub fn acknowledge(&mut self, position: Position) -> Option<(u64, u64, u64)> {
        if position <= self.arrived {
            return Some((0, 0, 0));
        }
        let at = self.flights.partition_point(|flight| flight.end < position);
        if self.flights.get(at)?.end != position {
            return None;
        }
        let bytes = self.flights.drain(..=at).map(|flight| u64::from(flight.bytes)).sum();
        let items = at as u64 + 1;
        let cost = bytes + items * ITEM_COST;
        self.cost -= cost;
        self.arrived = position;
        self.waits_since = (!self.flights.is_empty()).then(Instant::now);
        Some((items, bytes, cost))
    }
}

impl Ring {
    pub fn new(name: String, spec: RingSpec) -> Self {
        Self {
            name,
            spec,
            phase: Phase::Closed,
            is_leaving: false,
            appeared: None,
            retry: Retry::default(),
            sink_retry: Retry::default(),
            slow: Retry::default(),
            trouble: None,
            report: RingReport::default(),
        }
    }

    /// Returns whether the ring may still be in the making.
    pub fn is_young(&self) -> bool {
        self.appeared.is_some_and(|at| at.elapsed() < MAKING)
    }

    /// Notes that the ring is empty, or that items could be taken from it.
    pub fn note_soundness(&mut self) {
        if self.retry.succeeded() {
            log::warn!("{}: the ring is there again", self.name);
        }
    }

    /// Returns whether a ring that leaves has come to its end. A backend can remove its socket
    /// before it has published the last items: then its own end is waited for.
    pub fn has_ended(&self) -> bool {
        match &self.phase {
            Phase::Open(opened) => {
                opened.is_done() && (opened.is_away || !self.spec.is_socket_gone())
            }
            Phase::Closed | Phase::Stopped => true,
            Phase::Opening => false,
        }
    }

    /// Returns the ring's state for the metrics.
    pub fn status(&self) -> RingStatus {
        let opened = match &self.phase {
            Phase::Open(opened) => Some(opened),
            _ => None,
        };
        let state = match &self.phase {
            Phase::Closed => State::Closed,
            Phase::Opening => State::Opening,
            Phase::Open(opened) if opened.is_away => State::Away,
            Phase::Open(opened) if opened.is_ready() => State::Ready,
            Phase::Open(_) => State::Waiting,
            Phase::Stopped => State::Stopped,
        };
        RingStatus {
            spec: self.spec.clone(),
            state,
            items: self.report.items,
            bytes: self.report.bytes,
            arrived: opened.map(|opened| opened.arrived),
            in_flight: opened.map_or(0, |opened| opened.cost),
            ring_failures: self.retry.total(),
            sink_failures: self.sink_retry.total(),
        }
    }

    pub fn opened(&mut self) -> Option<&mut Opened> {
        match &mut self.phase {
            Phase::Open(opened) => Some(opened),
            _ => None,
        }
    }
}
