//! Whatever ends a repair halfway leaves a ring that repair brings to the same end.
#![allow(clippy::unwrap_used)]

use ring_simulation::{Disk, DiskDevice, RepairCounts, RepairMutant, explore_repair};
use shared_block_ring::format::{EXTENSION, SLOTS_AT, SectorSize};
use shared_block_ring::{Consumer, CreateOptions, Producer, create};

const SECTOR: usize = 512;

/// Data sectors.
const DATA: u64 = 3;

/// Damage to the sectors of a ring.
type Damage = fn(&mut [u8]);

/// Makes a suspended ring after `laps` times its capacity, with three items, the first of which is
/// consumed.
fn ring(laps: usize, plain: bool) -> Vec<u8> {
    let disk = Disk::new(SectorSize::DEFAULT, DATA + 3);
    let device = || DiskDevice::new(&disk);
    create(&device(), CreateOptions::new().plain(plain)).unwrap();
    let mut producer = Producer::attach(device(), "queue", "producer").unwrap();
    let mut consumer = Consumer::attach(device(), "queue", "consumer").unwrap();
    for _ in 0..laps * 3 {
        let end = producer.push(&[7; 500]).unwrap();
        producer.advance(end).unwrap();
        consumer.pop(consumer.position()).unwrap();
        consumer.advance(end).unwrap();
    }
    for item in ["item one", "item two", "item 333"] {
        let end = producer.push(item).unwrap();
        producer.advance(end).unwrap();
    }
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
    consumer.suspend().unwrap();
    producer.state().unwrap();
    disk.image()
}

/// Kinds of damage to sector 0.
const IDENTITY: [Damage; 6] = [
    |_| (),
    |sector| sector[3] ^= 0x10,
    |sector| sector[..30].fill(0),
    |sector| sector[60] ^= 1,
    |sector| sector[81] ^= 1,
    |sector| sector[..32].fill(0x99),
];

/// Kinds of damage to a pointer sector.
const POINTER: [Damage; 13] = [
    |_| (),
    |sector| sector[0] ^= 1,
    |sector| sector[0] ^= 0x40,
    |sector| sector[..8].fill(0x44),
    |sector| sector[..8].fill(0xfc),
    |sector| sector[8] = 0,
    |sector| sector[SLOTS_AT[0] + 20] ^= 1,
    |sector| sector[SLOTS_AT[1] + 20] ^= 1,
    |sector| sector[EXTENSION].fill(0x77),
    |sector| sector[..128].fill(0x99),
    |sector| sector[EXTENSION].fill(0),
    |sector| sector[9] = 3,
    |sector| sector.fill(0),
];

/// Explores every combination of damage to every ring.
fn explore(mutant: Option<RepairMutant>) -> Result<RepairCounts, String> {
    let mut all = RepairCounts::default();
    for (laps, plain) in [(0, false), (2, false), (0, true), (2, true)] {
        let sound = ring(laps, plain);
        for (first, identity) in IDENTITY.iter().enumerate() {
            for (second, producer) in POINTER.iter().enumerate() {
                for (third, consumer) in POINTER.iter().enumerate() {
                    for broken in [false, true] {
                        let mut image = sound.clone();
                        let (heads, data) = image.split_at_mut(3 * SECTOR);
                        identity(&mut heads[..SECTOR]);
                        producer(&mut heads[SECTOR..2 * SECTOR]);
                        consumer(&mut heads[2 * SECTOR..]);
                        if broken && laps == 0 {
                            // The length of the third item.
                            data[24 + 2] = 9;
                        }
                        let counts = explore_repair(&image, mutant).map_err(|e| {
                            format!(
                                "laps {laps}, plain {plain}, damage {first} {second} {third}, \
                                 broken {broken}: {e}"
                            )
                        })?;
                        all.repaired += counts.repaired;
                        all.crashes += counts.crashes;
                    }
                }
            }
        }
    }
    Ok(all)
}

#[test]
fn repair_that_is_killed_anywhere_can_be_done_again() {
    let counts = explore(None).unwrap();
    println!("{} rings repaired, {} crashes", counts.repaired, counts.crashes);
    assert!(counts.repaired > 3000 && counts.crashes > 10_000, "{counts:?}");
}

fn caught(mutant: RepairMutant, words: &str) {
    let outcome = explore(Some(mutant));
    let failure = outcome.err().unwrap_or_else(|| panic!("{mutant:?} survives"));
    println!("{mutant:?}: {failure}");
    assert!(failure.contains(words), "{failure}");
}

#[test]
fn repair_flushes_the_identity_before_the_pointers() {
    caught(RepairMutant::NoFlush(0), "");
}

#[test]
fn repair_flushes_the_pointers_before_it_returns() {
    caught(RepairMutant::NoFlush(1), "check after a power loss");
}

#[test]
fn repair_never_blanks_the_signature() {
    caught(RepairMutant::SignatureLast, "not a ring");
}
