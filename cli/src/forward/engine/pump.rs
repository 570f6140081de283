//! From the rings into the sink.

use super::super::super::failure::Failure;
use super::super::ring::{Flight, ITEM_COST};
use super::super::sink::{Batch, Item};
use super::Engine;
use bytes::Bytes;
use shared_block_ring::{Consumer, Error, Position, RingDevice};
use std::time::Instant;

/// The bytes of a batch at most, unless its only item is larger: some dozens of long items share
/// what a sink does for each batch.
const BATCH_BYTES: u64 = 2 << 20;

/// The items of a batch at most: an atomic batch of a `JetStream` server has no more.
const BATCH_ITEMS: usize = 1000;

/// Bytes of memory for batches that are put together that are kept.
const SCRATCH: usize = 2 << 20;

/// What a turn of a ring has come to.
enum Taken {
    Batch {
        batch: Batch,
        /// Whether there is damage behind it.
        ends_at_damage: bool,
    },
    /// There is nothing more.
    Nothing,
    /// There is an item, and no memory for it.
    NoMemory,
}

impl Engine<'_, '_> {
    /// Gives each ring that has items a turn: one batch.
    pub fn pump(&mut self) {
        for _ in 0..self.hungry.len() {
            let Some(number) = self.hungry.pop_front() else { return };
            if let Err(e) = self.turn(number) {
                self.ring_failed(number, &e);
            }
        }
    }

    fn turn(&mut self, number: u64) -> Result<(), Failure> {
        let Some(ring) = self.ready_ring(number) else { return Ok(()) };
        let shown = ring.spec.shown();
        let Some(opened) = ring.opened() else { return Ok(()) };
        let (key, read, own) = (opened.key, opened.read, opened.cost);
        let Some(consumer) = self.set.get_mut(key) else { return Ok(()) };
        let rings = self.names.len();
        let allowance = self.memory.allowance(own, rings);
        let admits = |cost| self.memory.admits(own, rings, cost);
        let taken = collect(consumer, read, allowance, admits, &mut self.scratch);
        let (batch, is_sound) = match taken.map_err(Failure::about(shown))? {
            Taken::NoMemory => {
                self.starved.push_back(number);
                return Ok(());
            }
            Taken::Nothing => (None, true),
            Taken::Batch { batch, ends_at_damage } => (Some(batch), !ends_at_damage),
        };
        let Some(ring) = self.rings.get_mut(&number) else { return Ok(()) };
        if is_sound {
            ring.note_soundness();
        }
        let Some(opened) = ring.opened() else { return Ok(()) };
        if let Some(batch) = batch {
            let mut cost = 0;
            for item in &batch.items {
                // An item's length is a 32-bit number in the ring.
                let bytes = u32::try_from(item.range.len()).unwrap_or(u32::MAX);
                cost += u64::from(bytes) + ITEM_COST;
                opened.flights.push_back(Flight { end: item.next, bytes });
                opened.read = item.next;
            }
            opened.cost += cost;
            opened.waits_since.get_or_insert_with(Instant::now);
            self.memory.take(cost);
            self.peak = self.peak.max(self.memory.used());
            if let Some(lane) = &mut opened.lane {
                lane.is_used = true;
                lane.lane.send(batch);
            }
        }
        opened.is_resting = true;
        let read = opened.read;
        // A ring that has more is reported behind all others.
        self.set.rest(key, read);
        self.is_unsettled = true;
        Ok(())
    }
}

/// Takes items from `at` on, as far as `allowance` goes.
fn collect<D: RingDevice>(
    consumer: &mut Consumer<D>,
    mut at: Position,
    allowance: u64,
    admits: impl Fn(u64) -> bool,
    scratch: &mut Vec<u8>,
) -> Result<Taken, Error> {
    scratch.clear();
    let (mut items, mut ends_at_damage) = (Vec::new(), false);
    let most = allowance.min(BATCH_BYTES);
    let mut cost = 0;
    while items.len() < BATCH_ITEMS {
        let item = match consumer.pop(at) {
            Ok(item) => item,
            Err(Error::Retry) => break,
            // The items before the damage are whole: they go first.
            Err(_) if !items.is_empty() => {
                ends_at_damage = true;
                break;
            }
            Err(e) => return Err(e),
        };
        let its = item.bytes.len() as u64 + ITEM_COST;
        if cost + its > most && (!items.is_empty() || !admits(its)) {
            if items.is_empty() {
                return Ok(Taken::NoMemory);
            }
            break;
        }
        cost += its;
        let begin = scratch.len();
        scratch.extend_from_slice(item.bytes);
        let next = item.next;
        items.push(Item { range: begin..scratch.len(), position: at, next, time: None });
        at = next;
    }
    if items.is_empty() {
        return Ok(Taken::Nothing);
    }
    let time = consumer.published_at();
    for item in &mut items {
        item.time = time;
    }
    // Its own size, and no more: memory is counted.
    let bytes = Bytes::copy_from_slice(scratch);
    // A long item's is not kept for good.
    scratch.shrink_to(SCRATCH);
    items.shrink_to_fit();
    Ok(Taken::Batch { batch: Batch { bytes, items }, ends_at_damage })
}
