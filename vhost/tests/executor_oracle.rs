//! The executor, with a mapped region and guest memory, against the oracle that the guard alone is held against in `guard.rs`.
#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "a part of the oracle is for the guard alone")]

mod common;
mod oracle;

use common::disk::Disk;
use oracle::states::{Shape, ring};
use oracle::{Ring, SECTOR, writes};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shared_block_ring::format::Side;
use vhost_device_blockring::executor::Outcome;
use vhost_device_blockring::guard::Reason;

/// States tried; each has some two hundred writes.
const STATES: usize = 600;

fn disk(ring: &Ring) -> Disk {
    Disk::with(ring.guest, false, ring.bytes.len() / SECTOR, |path| {
        std::fs::write(path, &ring.bytes).unwrap();
    })
}

/// The reason of a refusal that was just counted.
fn reason(disk: &Disk, before: &[u64]) -> Reason {
    Reason::ALL
        .into_iter()
        .find(|&reason| disk.counters.refused(reason) > before[reason.index()])
        .expect("a failure for no reason")
}

#[test]
fn the_executor_does_what_the_oracle_says() {
    let seed = 7;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut tried = (0, 0);
    for state in 0..STATES {
        let data_sectors = random.random_range(1..4);
        let capacity = data_sectors * SECTOR as u64;
        let shape = Shape {
            guest: if state % 2 == 0 { Side::Producer } else { Side::Consumer },
            data_sectors,
            identity: random.random_range(0..5) > 0,
            framing: random.random_range(0..9),
            slots: (random.random_range(0..4), random.random_range(0..4)),
        };
        let consumer = random.random_range(0..capacity) * 4;
        let producer = consumer + random.random_range(0..=capacity / 4) * 4;
        let ring = ring(shape, consumer, producer);
        let mut guest = disk(&ring);
        writes::all(&ring, &mut |first, bytes| {
            let place = format!("seed {seed}, state {state}, sector {first}, {shape:?}");
            let before = Reason::ALL.map(|reason| guest.counters.refused(reason));
            let outcome = guest.write(first as u64, bytes);
            match ring.judge(first, bytes) {
                Ok((after, _)) => {
                    assert!(matches!(outcome, Outcome::Done(0)), "{outcome:?}, {place}");
                    assert!(guest.bytes() == after, "{place}");
                    tried.0 += 1;
                    if after != ring.bytes {
                        guest = disk(&ring);
                    }
                }
                Err(expected) => {
                    assert!(matches!(outcome, Outcome::Failed), "{outcome:?}, {place}");
                    assert_eq!(reason(&guest, &before), expected, "{place}");
                    assert!(guest.bytes() == ring.bytes, "{place}");
                    tried.1 += 1;
                }
            }
        });
    }
    println!("{} writes carried out, {} refused", tried.0, tried.1);
    assert!(tried.0 > 10_000 && tried.1 > 50_000);
}
