//! The cost of a batch for the device: one write of data, one of the pointer, the flushes that
//! durability asks for, and no read.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use ring_simulation::{Disk, DiskDevice, Hook, Hooked};
use ring_test_support::RingFile;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::SectorSize;
use shared_block_ring::{Consumer, CreateOptions, Durability, Error, Position, Producer, create};
use std::io::IoSlice;
use std::sync::{Arc, Mutex};

/// A request to the device: the first sector of the transfer, and the number of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read(u64, usize),
    Write(u64, usize),
    Flush,
}
use Access::{Flush, Read, Write};

/// Counts the accesses to a disk, none of which is free.
struct Counter(Arc<Mutex<Vec<Access>>>);

impl Hook<DiskDevice> for Counter {
    fn access(
        &self,
        device: &DiskDevice,
        access: &mut ring_simulation::Access<'_, '_>,
    ) -> Result<(), DeviceError> {
        let sectors = access.bytes() / 512;
        self.0.lock().unwrap().push(match access {
            ring_simulation::Access::Read { first, .. } => Read(*first, sectors),
            ring_simulation::Access::Write { first, bufs } => {
                let aligned = |buf: &IoSlice<'_>| buf.as_ptr().addr().is_multiple_of(512);
                assert!(bufs.iter().all(aligned), "aligned to a sector");
                Write(*first, sectors)
            }
            ring_simulation::Access::Flush => Flush,
        });
        access.carry_out(device)
    }

    fn reads_are_free(&self, _: &DiskDevice) -> bool {
        false
    }
}

struct Ring {
    producer: Producer<Hooked<DiskDevice, Counter>>,
    consumer: Consumer<DiskDevice>,
    accesses: Arc<Mutex<Vec<Access>>>,
}

fn ring(data: u64) -> Ring {
    let disk = Disk::new(SectorSize::DEFAULT, data + 3);
    create(&DiskDevice::new(&disk), CreateOptions::default()).unwrap();
    let accesses = Arc::default();
    let counted = Hooked::new(DiskDevice::new(&disk), Counter(Arc::clone(&accesses)));
    let producer = Producer::attach(counted, "q", "producer").unwrap();
    let consumer = Consumer::attach(DiskDevice::new(&disk), "q", "consumer").unwrap();
    accesses.lock().unwrap().clear();
    Ring { producer, consumer, accesses }
}

impl Ring {
    fn taken(&self) -> Vec<Access> {
        std::mem::take(&mut self.accesses.lock().unwrap())
    }

    fn batch(&mut self, items: usize) -> Position {
        (0..items)
            .map(|number| self.producer.push(&[u8::try_from(number).unwrap(); 64]).unwrap())
            .last()
            .unwrap()
    }

    fn consume_all(&mut self) {
        let consumer = &mut self.consumer;
        let (end, ()) = consumer.fold(consumer.position(), (), |(), _| ()).unwrap();
        consumer.advance(end).unwrap();
    }
}

#[test]
fn batch_of_64_items_costs_one_write_of_data_and_one_of_the_pointer() {
    let mut ring = ring(1000);
    for round in 0..10 {
        let start = ring.producer.position().get();
        let end = ring.batch(64);
        assert_eq!(ring.taken(), [], "round {round}: pushing costs no request");
        ring.producer.advance(end).unwrap();
        let (first, last) = (start / 512, end.get().div_ceil(512));
        let data = Write(3 + first, usize::try_from(last - first).unwrap());
        assert_eq!(ring.taken(), [data, Flush, Write(1, 1), Flush], "round {round}");
    }
    ring.producer.set_durability(Durability::PageCache);
    let end = ring.batch(64);
    ring.producer.advance(end).unwrap();
    assert!(matches!(ring.taken()[..], [Write(3.., 9..), Write(1, 1)]));
}

#[test]
fn producer_reads_the_consumer_pointer_again_only_when_the_ring_seems_full() {
    let mut ring = ring(32);
    let mut reads = 0;
    // Items of 68 bytes, 240 of which fit: one look for each time that the ring seems full, and a
    // flush before freed space is used.
    for _ in 0..100 {
        let end = ring.batch(60);
        ring.producer.advance(end).unwrap();
        ring.consume_all();
        let taken = ring.taken();
        let looks = taken.iter().filter(|access| **access == Read(1, 2)).count();
        let tails = taken.iter().filter(|access| matches!(access, Read(3.., 1))).count();
        assert_eq!(looks + tails, taken.iter().filter(|a| matches!(a, Read(..))).count());
        assert!(looks <= 1 && taken.len() <= 8, "{taken:?}");
        reads += looks;
    }
    assert!((20..=26).contains(&reads), "{reads} looks in 25 laps");
}

#[test]
fn push_writes_when_the_stage_is_full() {
    let mut ring = ring(4000);
    let item = vec![7; 60_000];
    let ends: Vec<_> = (0..20).map(|_| ring.producer.push(&item).unwrap()).collect();
    let written = ring.taken();
    assert_eq!(written.len(), 4, "four items at a time: {written:?}");
    assert!(written.iter().all(|access| matches!(access, Write(3.., 400..=512))), "{written:?}");
    ring.producer.advance(ends[19]).unwrap();
    assert!(matches!(ring.taken()[..], [Write(3.., _), Flush, Write(1, 1), Flush]));
    let (_, whole) = ring
        .consumer
        .fold(Position::ZERO, 0, |count, popped| count + usize::from(popped.bytes == item))
        .unwrap();
    assert_eq!(whole, 20);
}

#[test]
fn flush_writes_items_and_publishes_none() {
    let mut ring = ring(100);
    let end = ring.batch(3);
    ring.producer.flush().unwrap();
    assert_eq!(ring.taken(), [Write(3, 1), Flush]);
    assert!(matches!(ring.consumer.pop(Position::ZERO), Err(Error::Retry)));
    ring.producer.advance(end).unwrap();
    assert_eq!(ring.taken(), [Flush, Write(1, 1), Flush]);
    assert_eq!(ring.consumer.pop(Position::ZERO).unwrap().bytes, [0; 64]);
}

#[test]
fn producer_notices_a_suspend_by_state_and_within_a_lap() {
    let mut ring = ring(32);
    ring.consumer.suspend().unwrap();
    let mut refused = None;
    for _ in 0..=32 * 512 / 68 {
        let pushed = ring.producer.push(&[1; 64]);
        refused = pushed.and_then(|end| ring.producer.advance(end)).err();
        if refused.is_some() {
            break;
        }
    }
    assert!(matches!(refused, Some(Error::Suspended)), "{refused:?}");
    ring.consumer.resume().unwrap();
    ring.consume_all();
    let end = ring.producer.push(&[1; 64]).unwrap();
    ring.producer.advance(end).unwrap();
}

/// Reads and writes of this thread since it began (`syscr` and `syscw` in proc(5)).
fn calls() -> u64 {
    let counts = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    let count = |name| {
        let line = counts.lines().find_map(|line: &str| line.strip_prefix(name)).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    count("syscr:") + count("syscw:")
}

/// In an empty ring nothing can be read ahead. The producer looks at both pointers and writes data
/// and pointer; the consumer looks at both pointers, reads the item, and writes slot and pointer.
#[test]
fn item_through_an_empty_ring_in_a_file_takes_seven_calls() {
    let ring = RingFile::new(16384, 512);
    let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
    producer.set_durability(Durability::PageCache);
    consumer.set_durability(Durability::PageCache);
    // What a look at the count costs.
    let own = -(calls().cast_signed() - calls().cast_signed());
    let mut way = || {
        let before = calls().cast_signed();
        let end = producer.push("an item").unwrap();
        producer.advance(end).unwrap();
        let next = consumer.pop(consumer.position()).unwrap().next;
        consumer.advance(next).unwrap();
        calls().cast_signed() - before - own
    };
    let mut ways: Vec<_> = (0..1000).map(|_| way()).collect();
    ways.sort_unstable();
    // One may pass the end of the data area, in two pieces. Where the machine keeps this thread from
    // its processor for long, the pointer is read once more.
    assert_eq!(ways[..900], [7; 900]);
}

/// A way to add an item of some bytes.
#[derive(Debug, Clone)]
enum Added {
    Pushed(Vec<u8>),
    /// Into room for so many bytes more.
    Reserved(Vec<u8>, usize),
    /// Room that is not committed.
    Dropped(usize),
    Advance,
}

fn added() -> impl Strategy<Value = Added> {
    let item = || proptest::collection::vec(any::<u8>(), 0..700);
    prop_oneof![
        item().prop_map(Added::Pushed),
        (item(), 0..100usize).prop_map(|(item, more)| Added::Reserved(item, more)),
        (0..700usize).prop_map(Added::Dropped),
        Just(Added::Advance),
    ]
}

proptest! {
    #[test]
    fn reserved_items_are_delivered_as_pushed_ones(steps in proptest::collection::vec(added(), 1..60)) {
        let ring = RingFile::new(16384, 512);
        let (mut producer, mut consumer) = (ring.producer().unwrap(), ring.consumer().unwrap());
        let (mut expected, mut delivered) = (Vec::new(), Vec::new());
        let mut take = |producer: &mut Producer<_>| {
            producer.advance(producer.position()).unwrap();
            let (end, mut items) = consumer
                .fold(consumer.position(), Vec::new(), |mut items, item| {
                    items.push(item.bytes.to_vec());
                    items
                })
                .unwrap();
            consumer.advance(end).unwrap();
            delivered.append(&mut items);
        };
        for step in steps {
            if matches!(producer.reserve(800), Err(Error::Retry)) {
                take(&mut producer);
            }
            match step {
                Added::Pushed(item) => {
                    producer.push(&item).unwrap();
                    expected.push(item);
                }
                Added::Reserved(item, more) => {
                    let mut room = producer.reserve(item.len() + more).unwrap();
                    room.fill(0xaa);
                    room[..item.len()].copy_from_slice(&item);
                    room.truncate(item.len());
                    prop_assert_eq!(&room[..], &item);
                    let end = room.commit().unwrap();
                    prop_assert_eq!(producer.position(), end);
                    expected.push(item);
                }
                Added::Dropped(len) => {
                    let before = producer.position();
                    producer.reserve(len).unwrap().fill(0x55);
                    prop_assert_eq!(producer.position(), before);
                }
                Added::Advance => producer.advance(producer.position()).unwrap(),
            }
        }
        take(&mut producer);
        prop_assert_eq!(delivered, expected);
        shared_block_ring::check(ring.open()).unwrap();
    }
}

#[test]
fn room_is_refused_as_an_item_is() {
    let ring = RingFile::new(16384, 512);
    let mut producer = ring.producer().unwrap();
    assert!(matches!(producer.reserve(1 << 20), Err(Error::TooLarge { .. })));
    assert!(matches!(producer.reserve(usize::MAX), Err(Error::TooLarge { .. })));
    let end = producer.push(&[7; 10_000]).unwrap();
    producer.advance(end).unwrap();
    assert!(matches!(producer.reserve(10_000), Err(Error::Retry)));
    producer.reserve(4_000).unwrap().commit().unwrap();
}
