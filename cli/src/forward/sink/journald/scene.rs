//! A small engine for the tests of this sink: lanes, and what they report.
#![allow(clippy::unwrap_used)]

use super::super::{Batch, Event, Item, Lane, LaneId, Reporter, RingFacts, Sink};
use bytes::Bytes;
use nix::sys::eventfd::{EfdFlags, EventFd};
use shared_block_ring::Position;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, UNIX_EPOCH};
use uuid::Uuid;

/// The longest time that a test waits for a report.
const PATIENCE: Duration = Duration::from_secs(60);

/// The way of a ring into a sink, and its reports.
pub struct TestLane {
    lane: Box<dyn Lane>,
    events: Receiver<(LaneId, Event)>,
    next: Position,
}

pub fn ring(name: &str) -> RingFacts {
    RingFacts { name: name.to_owned(), uuid: Uuid::from_u128(7), position: Position::ZERO }
}

impl TestLane {
    pub fn open(sink: &mut dyn Sink, ring: &RingFacts) -> Self {
        let (sender, events): (Sender<_>, _) = channel();
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let lane = sink.open(ring, Reporter::new(LaneId(1), sender, Arc::new(wake)));
        Self { lane, events, next: ring.position }
    }

    /// Opens a lane, and returns it with the position up to which the sink has the ring.
    pub fn ready(sink: &mut dyn Sink, ring: &RingFacts) -> (Self, Option<Position>) {
        let mut lane = Self::open(sink, ring);
        match lane.event() {
            Event::Ready { arrived } => {
                let arrived = arrived.map(|arrived| arrived.position);
                lane.next = arrived.unwrap_or(ring.position);
                (lane, arrived)
            }
            event => panic!("{event:?} instead of ready"),
        }
    }

    pub fn event(&self) -> Event {
        self.events.recv_timeout(PATIENCE).unwrap().1
    }

    /// Returns whether nothing was reported since the last event.
    pub fn is_silent(&self) -> bool {
        self.events.try_recv().is_err()
    }

    /// Sends items of which each takes 64 bytes of the ring's positions, and returns the position
    /// behind them.
    pub fn send<T: AsRef<[u8]>>(&mut self, payloads: &[T]) -> Position {
        let mut bytes = Vec::new();
        let items = payloads.iter().map(|payload| {
            let payload = payload.as_ref();
            let start = bytes.len();
            bytes.extend_from_slice(payload);
            let position = self.next;
            self.next = position.checked_add(64).unwrap();
            let time = Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
            Item { range: start..bytes.len(), position, next: self.next, time }
        });
        let items = items.collect();
        self.lane.send(Batch { bytes: Bytes::from(bytes), items });
        self.next
    }

    /// Waits until everything before the position has arrived.
    pub fn await_arrival(&self, end: Position) {
        loop {
            match self.event() {
                Event::Acknowledged(position) if position == end => return,
                Event::Acknowledged(position) if position < end => {}
                event => panic!("{event:?} before {end}"),
            }
        }
    }
}
