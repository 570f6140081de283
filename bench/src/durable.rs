//! Items that survive a power failure once `advance` has returned, beside the least that the same
//! disk needs for the same bytes.

use crate::ends::Ends;
use crate::error::{Result, doing};
use crate::figures::{AT_ONCE, Distribution, Durable, WITH_THE_NEXT};
use crate::machine::nanoseconds;
use crate::rounds::Rounds;
use shared_block_ring::{Durability, make_file};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

/// Bytes of an item, items in a batch.
const LOADS: [(usize, usize); 6] =
    [(64, 1), (1 << 10, 1), (64 << 10, 1), (64, 64), (1 << 10, 64), (64 << 10, 64)];

const RING: u64 = 64 << 20;

/// Measures every load, in `dir`, which has to be on a disk.
pub fn all(dir: &Path, rounds: Rounds) -> Result<Vec<Durable>> {
    let dir = tempfile::Builder::new().prefix("ring-bench-").tempdir_in(dir);
    let dir = dir.map_err(doing("making a folder"))?;
    let mut found = Vec::new();
    for (durability, pointer) in
        [(Durability::Flush, AT_ONCE), (Durability::Ordered, WITH_THE_NEXT)]
    {
        for (bytes, batch) in LOADS {
            let (push, raw) = one(dir.path(), bytes, batch, durability, rounds)?;
            found.push(Durable { bytes, batch, pointer, push, raw });
        }
    }
    Ok(found)
}

/// Measures times of a push, and of the writes that it is compared with.
fn one(
    dir: &Path,
    bytes: usize,
    batch: usize,
    durability: Durability,
    rounds: Rounds,
) -> Result<(Distribution, Distribution)> {
    let (ring, raw) = (dir.join("ring"), dir.join("raw"));
    let mut ends = Ends::in_file(&ring, RING, durability)?;
    make_file(&raw, RING).map_err(doing("making a file"))?;
    let file = File::options().write(true).open(&raw).map_err(doing("opening a file"))?;
    let payload = vec![7u8; bytes];
    let items = vec![&payload[..]; batch];
    let (mut pushes, mut raws) = (Vec::new(), Vec::new());
    let mut at = 0;
    rounds.each(|| {
        rounds.one(|| {
            let from = ends.producer.position();
            let before = Instant::now();
            let end = ends.push(&items)?;
            pushes.push(nanoseconds(before.elapsed()));
            ends.pop_to(end)?;
            ends.consumer.advance(end)?;
            // In turns, so that both meet the same disk.
            let written = vec![7; usize::try_from(end.since(from).unwrap_or(0)).unwrap_or(0)];
            let before = Instant::now();
            file.write_all_at(&written, at).map_err(doing("writing"))?;
            file.sync_data().map_err(doing("flushing"))?;
            raws.push(nanoseconds(before.elapsed()));
            at = (at + written.len() as u64) % (RING / 2);
            Ok(batch)
        })
    })?;
    for path in [&ring, &raw] {
        std::fs::remove_file(path).map_err(doing("removing a file"))?;
    }
    Ok((Distribution::of(&mut pushes), Distribution::of(&mut raws)))
}
