//! Cost of an item by the size of the ring and by what is in it.

use crate::ends::Ends;
use crate::error::{Result, doing};
use crate::figures::Cost;
use crate::machine::{median, nanoseconds};
use crate::rounds::Rounds;
use shared_block_ring::Durability;
use std::path::Path;
use std::time::Instant;

/// Sizes of rings in bytes.
const SIZES: [u64; 4] = [1 << 20, 16 << 20, 256 << 20, 4 << 30];

/// Numbers of items in a ring.
const ITEMS: [u64; 4] = [0, 10_000, 1_000_000, 10_000_000];

/// Bytes of an item, small so that many are in a ring, and its bytes in the stream.
const BYTES: usize = 16;
const FRAMED: u64 = BYTES as u64 + 4;

/// Items that are pushed at once to fill a ring.
const BATCH: u64 = 1000;

/// Measures every size with every number of items that it holds, up to `largest` bytes.
pub fn all(dir: &Path, largest: u64, rounds: Rounds) -> Result<Vec<Cost>> {
    let mut costs = Vec::new();
    for size in SIZES.into_iter().filter(|size| *size <= largest) {
        let path = dir.join("sized.ring");
        for items in ITEMS.into_iter().filter(|items| (items + 2 * BATCH) * FRAMED < size) {
            costs.push(one(&path, size, items, rounds)?);
        }
    }
    compare(&mut costs);
    Ok(costs)
}

fn one(path: &Path, size: u64, items: u64, rounds: Rounds) -> Result<Cost> {
    let mut ends = Ends::in_file(path, size, Durability::PageCache)?;
    let payload = [7u8; BYTES];
    let batch = vec![&payload[..]; usize::try_from(BATCH).unwrap_or(1)];
    for _ in 0..items / BATCH {
        ends.push(&batch)?;
    }
    let (mut pushes, mut pops) = (Vec::new(), Vec::new());
    rounds.each(|| {
        rounds.one(|| {
            let before = Instant::now();
            ends.push(&[&payload])?;
            let between = Instant::now();
            let next = ends.consumer.pop(ends.consumer.position())?.next;
            ends.consumer.advance(next)?;
            pushes.push(nanoseconds(between - before));
            pops.push(nanoseconds(between.elapsed()));
            Ok(1)
        })
    })?;
    std::fs::remove_file(path).map_err(doing("removing a ring"))?;
    let (push, pop) = (median(&mut pushes), median(&mut pops));
    Ok(Cost { size, items, push, pop, times_least: f64::NAN })
}

/// Bars of an item's cost from push to pop, relative to the least of all rows.
fn compare(costs: &mut [Cost]) {
    let whole = |cost: &Cost| cost.push + cost.pop;
    let least = costs.iter().map(whole).fold(f64::INFINITY, f64::min);
    for cost in costs {
        cost.times_least = whole(cost) / least;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_of_each_way_is_near_the_least() {
        let cost = |push, pop| Cost { size: 1, items: 0, push, pop, times_least: f64::NAN };
        let mut costs = [cost(100.0, 100.0), cost(119.0, 120.0), cost(90.0, 151.0)];
        compare(&mut costs);
        let said = |cost: &Cost| cost.wanted().ends_with("yes");
        assert_eq!(costs.each_ref().map(said), [true, true, false]);
    }
}
