//! Items that survive a power cut when `advance` has returned, beside the least that the same disk asks for the same bytes.

use crate::error::{Result, doing};
use crate::figures::{Distribution, Durable};
use crate::items::Rounds;
use crate::machine::nanoseconds;
use shared_block_ring::{Consumer, CreateOptions, OpenOptions, Producer, create, make_file};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Bytes of an item, items in a batch.
const LOADS: [(usize, usize); 5] = [(64, 1), (1 << 10, 1), (64 << 10, 1), (64, 64), (1 << 10, 64)];

const RING: u64 = 64 << 20;

/// Every load, in `dir`, which has to be on a disk.
pub fn all(dir: &Path, rounds: Rounds) -> Result<Vec<Durable>> {
    let dir = tempfile::Builder::new().prefix("ring-bench-").tempdir_in(dir);
    let dir = dir.map_err(doing("making a folder"))?;
    LOADS.iter().map(|&(bytes, batch)| one(dir.path(), bytes, batch, rounds)).collect()
}

fn one(dir: &Path, bytes: usize, batch: usize, rounds: Rounds) -> Result<Durable> {
    let (ring, raw) = (dir.join("ring"), dir.join("raw"));
    for path in [&ring, &raw] {
        make_file(path, RING).map_err(doing("making a file"))?;
    }
    let open = || OpenOptions::default().open(&ring);
    create(&open()?, CreateOptions::default())?;
    let mut producer = Producer::attach(open()?, "bench", "producer")?;
    let mut consumer = Consumer::attach(open()?, "bench", "consumer")?;
    let file = File::options().write(true).open(&raw).map_err(doing("opening a file"))?;
    let payload = vec![7u8; bytes];
    let items = vec![&payload[..]; batch];
    let (mut pushes, mut raws) = (Vec::new(), Vec::new());
    let mut at = 0;
    for _ in 0..rounds.count {
        let start = Instant::now();
        while start.elapsed() < rounds.time {
            let before = Instant::now();
            let from = producer.position();
            let end = producer.push_batch(&items)?;
            producer.advance(end)?;
            pushes.push(nanoseconds(before.elapsed()));
            let mut taken = from;
            while taken < end {
                taken = consumer.pop(taken)?.next;
            }
            consumer.advance(end)?;
            // In turns, so that both meet the same disk.
            let written = vec![7; usize::try_from(end.since(from).unwrap_or(0)).unwrap_or(0)];
            let before = Instant::now();
            file.write_all_at(&written, at).map_err(doing("writing"))?;
            file.sync_data().map_err(doing("flushing"))?;
            raws.push(nanoseconds(before.elapsed()));
            at = (at + written.len() as u64) % (RING / 2);
        }
    }
    for path in [&ring, &raw] {
        std::fs::remove_file(path).map_err(doing("removing a file"))?;
    }
    let (push, raw) = (Distribution::of(&mut pushes), Distribution::of(&mut raws));
    Ok(Durable { bytes, batch, push, raw })
}
