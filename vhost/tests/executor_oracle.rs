//! The executor, with a mapped region and guest memory, against the oracle that the guard alone is held against in `guard.rs`.
#![allow(clippy::unwrap_used)]
#![allow(dead_code, reason = "a part of the oracle is for the guard alone")]

mod common;
mod oracle;

use common::disk::Disk;
use oracle::states::{Shape, UUID, ring};
use oracle::{Ring, SECTOR, writes};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shared_block_ring::format::{FormatError, Side};
use shared_block_ring::{Error, Producer, check};
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

/// The host moves on: what is published is consumed now and then, or something is published.
fn host_moves(disk: &Disk, random: &mut SmallRng) {
    if disk.guest == Side::Producer {
        let mut consumer = disk.consumer();
        let mut at = consumer.position();
        for _ in 0..random.random_range(0..4) {
            match consumer.pop(at) {
                Ok(item) => at = item.next,
                // A guest's lie about the checksum: skipped.
                Err(Error::Format(FormatError::Span { to, .. })) => at = to,
                Err(Error::Retry) => break,
                Err(e) => panic!("{e}"),
            }
        }
        consumer.advance(at).unwrap();
        return;
    }
    let mut producer = Producer::attach(disk.outside()(), "q", "host").unwrap();
    for _ in 0..random.random_range(0..4) {
        match producer.push(&vec![7u8; random.random_range(0..60)]) {
            Ok(end) => producer.advance(end).unwrap(),
            Err(Error::Retry | Error::Suspended) => break,
            Err(e) => panic!("{e}"),
        }
    }
}

/// Whatever a guest gets past the guard, the next backend finds pointers, framing and counts that it can start with. Only the
/// stream's checksum is the guest's word.
#[test]
fn nothing_that_is_granted_keeps_a_backend_from_starting() {
    let seed = 11;
    let mut random = SmallRng::seed_from_u64(seed);
    let (mut changes, mut lies) = (0, 0);
    for round in 0..600 {
        let guest = if round % 2 == 0 { Side::Producer } else { Side::Consumer };
        let shape = Shape { guest, data_sectors: 2, identity: true, framing: 0, slots: (0, 0) };
        let mut disk = disk(&ring(shape, 0, 0));
        for _ in 0..20 {
            host_moves(&disk, &mut random);
            let ring = Ring::new(guest, Some(UUID), disk.bytes());
            let mut tries = Vec::new();
            writes::all(&ring, &mut |first, bytes| tries.push((first, bytes.to_vec())));
            for _ in 0..40 {
                let (first, bytes) = &tries[random.random_range(0..tries.len())];
                // Most of them are refused.
                let outcome = disk.write(*first as u64, bytes);
                if matches!(outcome, Outcome::Failed) || disk.bytes() == ring.bytes {
                    continue;
                }
                changes += 1;
                match check(disk.outside()()) {
                    Err(Error::Format(FormatError::Span { .. })) => lies += 1,
                    checked => drop(checked.unwrap_or_else(|e| panic!("seed {seed}: {e}"))),
                }
                break;
            }
        }
    }
    println!("{changes} changes of a guest, {lies} with a wrong checksum");
    assert!(changes > 500 && lies > 10);
}
