//! What a batch costs the device: one write of data, one of the pointer, the flushes that durability asks for, and no read.
#![allow(clippy::unwrap_used)]

use ring_simulation::{Disk, DiskDevice};
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::{Geometry, SectorSize};
use shared_block_ring::{
    BlockDevice, Consumer, CreateOptions, Durability, Error, Position, Producer, create,
};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};

/// As the device sees it: the first sector of a transfer, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    Read(u64, usize),
    Write(u64, usize),
    Flush,
}
use Access::{Flush, Read, Write};

/// A disk where each access is a request.
struct Counted {
    inner: DiskDevice,
    accesses: Arc<Mutex<Vec<Access>>>,
}

impl Counted {
    fn note(&self, access: Access) {
        self.accesses.lock().unwrap().push(access);
    }
}

impl BlockDevice for Counted {
    fn name(&self) -> &'static str {
        "counted"
    }

    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.note(Read(first, bufs.iter().map(|buf| buf.len()).sum::<usize>() / 512));
        self.inner.read(first, bufs)
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        assert!(
            bufs.iter().all(|buf| buf.as_ptr().addr().is_multiple_of(512)),
            "aligned to a sector"
        );
        self.note(Write(first, bufs.iter().map(|buf| buf.len()).sum::<usize>() / 512));
        self.inner.write(first, bufs)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.note(Flush);
        self.inner.flush()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

struct Ring {
    producer: Producer<Counted>,
    consumer: Consumer<DiskDevice>,
    accesses: Arc<Mutex<Vec<Access>>>,
}

fn ring(data: u64) -> Ring {
    let disk = Disk::new(SectorSize::DEFAULT, data + 3);
    create(&DiskDevice::new(&disk), CreateOptions::default()).unwrap();
    let accesses = Arc::default();
    let counted = Counted { inner: DiskDevice::new(&disk), accesses: Arc::clone(&accesses) };
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
fn a_batch_of_64_items_is_one_write_of_data_and_one_of_the_pointer() {
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
fn the_consumers_pointer_is_read_again_only_where_the_last_one_says_full() {
    let mut ring = ring(32);
    let mut reads = 0;
    // Items of 68 bytes, 240 of which fit: one look for each time that the ring seems full, and a flush before freed space is used.
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
fn more_than_is_staged_at_once_is_written_as_it_comes() {
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
fn what_is_flushed_is_on_the_device_and_nobody_sees_it() {
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
fn a_suspend_is_heard_by_a_look_and_within_a_lap() {
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
