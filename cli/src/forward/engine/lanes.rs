//! The engine's lanes: their opening, and their reports.

use super::super::super::failure::Failure;
use super::super::ring::{OpenLane, Ring};
use super::super::sink::{Arrived, Event, RingFacts, SinkError, SinkErrorKind, checksum};
use super::Engine;
use shared_block_ring::{Consumer, Error, Position, RingDevice};
use std::time::Instant;

/// Returns the checksum of the item that ends at a position, if one does.
fn item_before<D: RingDevice>(
    consumer: &mut Consumer<D>,
    mut from: Position,
    end: Position,
) -> Option<u32> {
    while from < end {
        let item = consumer.pop(from).ok()?;
        from = item.next;
        if from == end {
            return Some(checksum(item.bytes));
        }
    }
    None
}

impl Engine<'_, '_> {
    /// Opens the way of an open ring into the sink.
    pub fn open_lane(&mut self, number: u64) {
        let id = self.new_lane();
        let reporter = self.reporter(id);
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let name = ring.name.clone();
        let Some(opened) = ring.opened() else { return };
        let facts = RingFacts { name, uuid: opened.uuid, position: opened.arrived };
        let lane = self.sink.open(&facts, reporter);
        opened.lane = Some(OpenLane { id, lane, is_ready: false, is_used: false });
        self.lanes.insert(id, number);
    }

    /// Takes the reports of all lanes. Those of lanes that were closed count no more.
    pub fn take_events(&mut self) {
        while let Ok((lane, event)) = self.events.try_recv() {
            let Some(&number) = self.lanes.get(&lane) else { continue };
            match event {
                Event::Ready { arrived } => self.ready(number, arrived),
                Event::Acknowledged(position) => self.acknowledged(number, position),
                Event::Trouble { message, is_said } => self.troubled(number, message, is_said),
                Event::Failed(error) => self.lane_failed(number, &error),
            }
        }
    }

    /// Goes on behind what the sink has.
    fn ready(&mut self, number: u64, arrived: Option<Arrived>) {
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let shown = ring.spec.shown();
        let Some(opened) = ring.opened() else { return };
        let Some(consumer) = self.set.get_mut(opened.key) else { return };
        if let Some(Arrived { position: arrived, checksum }) =
            arrived.filter(|arrived| arrived.position > opened.arrived)
        {
            // Where no item ends there, the skip below fails.
            let item = checksum.and_then(|_| item_before(consumer, opened.arrived, arrived));
            if item.is_some() && item != checksum {
                let words = format!(
                    "the sink has everything before position {arrived}, and the ring has another item there: it was restored from an older copy, and its guest has gone on from that (forward it to another place, or remove what the sink has of it)"
                );
                return self.stop_ring(number, &words);
            }
            let (skipped, from) = (consumer.advance(arrived), opened.arrived);
            if let Err(e) = skipped.and_then(|()| consumer.flush()) {
                // Not tried again: once the ring's items reach that position, those before it
                // would count as arrived.
                let words = match e {
                    Error::InvalidAdvance { limit, .. } if arrived > limit => format!(
                        "the sink has everything before position {arrived}, and the ring has items up to position {limit} only: it is an older copy of the ring (forward it to another place, or remove what the sink has of it)"
                    ),
                    Error::InvalidAdvance { limit, .. } => format!(
                        "the sink has everything before position {arrived}, and no item of the ring, which has positions {from} to {limit}, ends there (is it another copy of the ring?)"
                    ),
                    other => return self.ring_failed(number, &Failure::about(shown)(other)),
                };
                return self.stop_ring(number, &words);
            }
            opened.arrived = arrived;
            log::info!("{shown}: the sink has the items between {from} and {arrived} already");
        }
        opened.read = opened.arrived;
        opened.is_resting = true;
        if let Some(lane) = &mut opened.lane {
            lane.is_ready = true;
        }
        let (key, read) = (opened.key, opened.read);
        ring.report.error = None;
        ring.trouble = None;
        self.set.rest(key, read);
        self.is_unsettled = true;
    }

    fn acknowledged(&mut self, number: u64, position: Position) {
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let Some(opened) = ring.opened() else { return };
        let Some((items, bytes, cost)) = opened.acknowledge(position) else {
            let (from, to) = (opened.arrived, opened.read);
            let message = format!(
                "position {position} was acknowledged, at which no item ends that was sent ({from} to {to})"
            );
            let error = SinkError { message, kind: SinkErrorKind::Retry };
            return self.lane_failed(number, &error);
        };
        ring.report.items += items;
        ring.report.bytes += bytes;
        self.former.items += items;
        self.former.bytes += bytes;
        self.memory.give_back(cost);
        if items > 0 {
            ring.trouble = None;
            if ring.sink_retry.progressed() | ring.slow.progressed() {
                log::warn!("{}: items arrive again", ring.name);
            }
            self.to_free.insert(number);
        }
        self.feed_starved();
    }

    /// Notes a failure of a lane that goes on trying.
    fn troubled(&mut self, number: u64, message: String, is_said: bool) {
        let Some(ring) = self.rings.get_mut(&number) else { return };
        if !is_said && ring.sink_retry.failed(&message).1 {
            log::warn!("{}: {message}; it is tried again", ring.name);
        }
        ring.trouble = Some(message);
    }

    fn lane_failed(&mut self, number: u64, error: &SinkError) {
        if error.kind == SinkErrorKind::Stop {
            return self.stop_ring(number, &error.message);
        }
        self.close_lane(number);
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let (pause, is_new) = ring.sink_retry.failed(&error.message);
        if is_new {
            log::warn!("{}: {}; it is tried again", ring.name, error.message);
        }
        ring.report.error = Some(format!("{}: {}", ring.name, error.message));
        self.due.insert((Instant::now() + pause, number));
    }

    /// Frees what has arrived, of all rings.
    pub fn free(&mut self) {
        while let Some(number) = self.to_free.pop_first() {
            self.free_one(number);
        }
    }

    /// Frees what has arrived of a ring before its lane is closed.
    pub fn free_ring(&mut self, number: u64) {
        if self.to_free.remove(&number) {
            self.free_one(number);
        }
    }

    fn free_one(&mut self, number: u64) {
        let Some(ring) = self.rings.get_mut(&number) else { return };
        let shown = ring.spec.shown();
        let Some(opened) = ring.opened() else { return };
        let Some(consumer) = self.set.get_mut(opened.key) else { return };
        let mut freed = consumer.advance(opened.arrived);
        if opened.flights.is_empty() {
            // A busy ring's pointer is written now and then; this one may not be busy any more.
            freed = freed.and_then(|()| consumer.flush());
        }
        if let Err(e) = freed {
            self.ring_failed(number, &Failure::about(shown)(e));
        }
    }

    /// Lets the rings that had no memory try again, in turn.
    pub fn feed_starved(&mut self) {
        self.hungry.append(&mut self.starved);
    }

    /// Returns the open ring with that number, if its lane takes items.
    pub fn ready_ring(&mut self, number: u64) -> Option<&mut Ring> {
        let ring = self.rings.get_mut(&number)?;
        let is_ready = ring.opened().is_some_and(|opened| opened.is_ready() && !opened.is_resting);
        is_ready.then_some(ring)
    }
}
