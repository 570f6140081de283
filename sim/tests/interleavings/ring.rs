//! One producer and one consumer on a shared mapping, without slots: whole items, in order, each in
//! space that is its own.

use crate::explore::{Bound, caught, explore};
use crate::memory::{Data, Plan, Shared, Who};
use loom::thread;
use ring_simulation::{Disk, DiskDevice};
use shared_block_ring::device::{MappedDevice, Orders};
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::{Consumer, CreateOptions, Error, Producer, RingDevice, create};
use std::sync::atomic::Ordering;

const SECTOR: usize = 512;

/// The payload of an item that is one sector with its header.
pub const SECTOR_PAYLOAD: usize = SECTOR - 4;

/// The payload of an item that is half a sector with its header.
const HALF_PAYLOAD: usize = SECTOR / 2 - 4;

/// Words of a sector with two such items that differ between one item and the next: first and last
/// of each.
const HALF_WORDS: &[u64] = &[0, 248, 256, 504];

/// A producer and a consumer that owns every sector it touches.
pub const PAIR: Plan = Plan { data: Data::Sectors, suspender: Who::Consumer, threads: 2 };

/// A freshly created ring.
pub struct Fresh {
    disk: Disk,
}

impl Fresh {
    /// Makes an image with this many data sectors.
    pub fn new(sectors: u64, plain: bool) -> Self {
        let disk = Disk::new(SectorSize::DEFAULT, sectors + 3);
        create(&DiskDevice::new(&disk), CreateOptions::new().plain(plain)).unwrap();
        Self { disk }
    }

    pub fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    /// Puts the ring into loom's memory. Called inside a model.
    pub fn shared(&self, plan: Plan) -> Shared {
        Shared::ring(&self.disk.image(), self.disk.geometry(), plan)
    }

    pub fn device(&self, memory: &Shared, who: Who, orders: Orders) -> MappedDevice<Shared> {
        MappedDevice::over(memory.with(who, orders), "model", self.disk.geometry())
    }

    /// Attaches both ends before anything happens.
    pub fn producer(&self, memory: &Shared, orders: Orders) -> Producer<MappedDevice<Shared>> {
        let device = self.device(memory, Who::Producer, orders);
        Producer::attach(device, "queue", "model").unwrap()
    }

    pub fn consumer(&self, memory: &Shared, orders: Orders) -> Consumer<MappedDevice<Shared>> {
        let device = self.device(memory, Who::Consumer, orders);
        Consumer::attach(device, "queue", "model").unwrap()
    }
}

/// Returns an item's payload: its number in front and at the end, where tearing shows.
pub fn payload(number: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[..4].fill(number);
    bytes[len - 4..].fill(number);
    bytes
}

/// Parameters of one run of a pair.
#[derive(Debug, Clone, Copy)]
struct Run {
    producer: Orders,
    consumer: Orders,
    sectors: u64,
    data: Data,
    payload: usize,
    items: u8,
    /// Largest number of looks of each side: a run ends whether or not the other side made
    /// progress.
    looks: usize,
}

/// Three items of a sector each, in a ring of two: the third takes the space of the first.
const REUSE: Run = Run {
    producer: Orders::RING,
    consumer: Orders::RING,
    sectors: 2,
    data: Data::Sectors,
    payload: SECTOR_PAYLOAD,
    items: 3,
    looks: 4,
};

/// Three items of half a sector, in a ring of one: the second is written with the first in front of
/// it, the third with the second behind.
const SHARED_SECTOR: Run =
    Run { sectors: 1, data: Data::Words(HALF_WORDS), payload: HALF_PAYLOAD, ..REUSE };

/// Pops and frees items in `looks` looks.
fn consume<D: RingDevice>(consumer: &mut Consumer<D>, run: Run, seen: &mut u8, looks: usize) {
    for _ in 0..looks {
        match consumer.pop(consumer.position()) {
            Ok(item) => {
                *seen += 1;
                assert!(
                    item.bytes == payload(*seen, run.payload),
                    "item {seen} is not what was pushed"
                );
                let next = item.next;
                consumer.advance(next).unwrap();
            }
            Err(Error::Retry) => {}
            Err(e) => panic!("the consumer met {e}"),
        }
    }
}

/// Returns the number of items that were pushed, and of those that were consumed meanwhile.
fn pair(fresh: &Fresh, run: Run) -> (u8, u8) {
    let memory = fresh.shared(Plan { data: run.data, ..PAIR });
    let mut producer = fresh.producer(&memory, run.producer);
    let mut consumer = fresh.consumer(&memory, run.consumer);
    let consuming = thread::spawn(move || {
        let mut seen = 0;
        consume(&mut consumer, run, &mut seen, run.looks);
        (consumer, seen)
    });
    let mut pushed = 0;
    for _ in 0..run.looks {
        if pushed < run.items {
            match producer.push(&payload(pushed + 1, run.payload)) {
                Ok(end) => {
                    pushed += 1;
                    producer.advance(end).unwrap();
                }
                Err(Error::Retry) => {}
                Err(e) => panic!("the producer met {e}"),
            }
        }
    }
    let (mut consumer, meanwhile) = consuming.join().unwrap();
    let mut seen = meanwhile;
    let left = usize::from(pushed - seen);
    consume(&mut consumer, run, &mut seen, left);
    assert_eq!((seen, consumer.position()), (pushed, producer.position()));
    (pushed, meanwhile)
}

fn search(run: Run, bound: Bound) {
    let fresh = Fresh::new(run.sectors, true);
    let outcomes = explore(bound, move || pair(&fresh, run));
    // Both happened: the ring stayed full, and the consumer kept up.
    assert!(outcomes.contains(&(run.items - 1, 0)) && outcomes.contains(&(run.items, run.items)));
}

#[test]
fn every_item_arrives_whole_and_in_order_and_its_space_is_reused_only_then() {
    search(REUSE, Bound::Preemptions(4, None));
}

#[test]
fn items_that_share_a_sector_with_the_next_and_the_oldest_arrive_whole() {
    search(SHARED_SECTOR, Bound::Preemptions(3, Some(4)));
}

/// Failures: an unordered access to a sector, or an item that is not what was pushed.
const RACE: &[&str] = &["Causality violation", "is not what was pushed"];

fn mutant(run: Run) {
    let fresh = Fresh::new(run.sectors, true);
    caught(RACE, move || pair(&fresh, run));
}

const NO_RELEASE: Orders = Orders { store: Ordering::Relaxed, ..Orders::RING };

/// The fence behind the copy of the pointer sector is left out, too: without slots, either of the
/// two is enough.
const NO_ACQUIRE: Orders =
    Orders { load: Ordering::Relaxed, after_read: Ordering::Relaxed, ..Orders::RING };

#[test]
fn producer_that_does_not_release_its_items_is_caught() {
    mutant(Run { producer: NO_RELEASE, ..REUSE });
    mutant(Run { producer: NO_RELEASE, ..SHARED_SECTOR });
}

#[test]
fn consumer_that_does_not_acquire_the_items_is_caught() {
    mutant(Run { consumer: NO_ACQUIRE, ..REUSE });
    mutant(Run { consumer: NO_ACQUIRE, ..SHARED_SECTOR });
}

#[test]
fn consumer_that_does_not_release_the_space_is_caught() {
    mutant(Run { consumer: NO_RELEASE, ..REUSE });
}

#[test]
fn producer_that_does_not_acquire_the_space_is_caught() {
    mutant(Run { producer: NO_ACQUIRE, ..REUSE });
}
