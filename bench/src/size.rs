//! What an item costs, whatever the size of the ring and whatever is in it.

use crate::error::{Result, doing};
use crate::figures::Cost;
use crate::items::Rounds;
use crate::machine::{median, nanoseconds};
use shared_block_ring::{
    Consumer, CreateOptions, Durability, OpenOptions, Producer, create, make_file,
};
use std::path::Path;
use std::time::Instant;

/// Bytes of rings.
const SIZES: [u64; 4] = [1 << 20, 16 << 20, 256 << 20, 4 << 30];

/// Items in them.
const ITEMS: [u64; 4] = [0, 10_000, 1_000_000, 10_000_000];

/// Bytes of an item, small so that many are in a ring; and in the stream.
const BYTES: usize = 16;
const FRAMED: u64 = BYTES as u64 + 4;

/// Pushed at once, to fill a ring.
const BATCH: u64 = 1000;

/// Every size with every number of items that it holds; `largest` leaves out what is larger.
pub fn all(dir: &Path, largest: u64, rounds: Rounds) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for size in SIZES.into_iter().filter(|size| *size <= largest) {
        let path = dir.join("sized.ring");
        for items in ITEMS.into_iter().filter(|items| (items + 2 * BATCH) * FRAMED < size) {
            costs.push(one(&path, size, items, rounds)?);
        }
    }
    Ok(costs)
}

fn one(path: &Path, size: u64, items: u64, rounds: Rounds) -> Result<Cost> {
    make_file(path, size).map_err(doing("making a ring"))?;
    let open = || OpenOptions::default().open(path);
    create(&open()?, CreateOptions::default())?;
    let mut producer = Producer::attach(open()?, "bench", "producer")?;
    let mut consumer = Consumer::attach(open()?, "bench", "consumer")?;
    producer.set_durability(Durability::PageCache);
    consumer.set_durability(Durability::PageCache);
    let payload = [7u8; BYTES];
    let batch = vec![&payload[..]; usize::try_from(BATCH).unwrap_or(1)];
    for _ in 0..items / BATCH {
        let end = producer.push_batch(&batch)?;
        producer.advance(end)?;
    }
    let (mut pushes, mut pops) = (Vec::new(), Vec::new());
    let start = Instant::now();
    while start.elapsed() < rounds.time * rounds.count {
        let before = Instant::now();
        let end = producer.push(&payload)?;
        producer.advance(end)?;
        let between = Instant::now();
        let next = consumer.pop(consumer.position())?.next;
        consumer.advance(next)?;
        pushes.push(nanoseconds(between - before));
        pops.push(nanoseconds(between.elapsed()));
    }
    std::fs::remove_file(path).map_err(doing("removing a ring"))?;
    Ok(Cost { size, items, push: median(&mut pushes), pop: median(&mut pops) })
}
