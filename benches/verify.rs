//! Cost of verifying a span before its first item is delivered, and of reading its items.
//!
//! `cargo bench --bench verify`. The checksum alone must pass 8 GB/s on one core; the whole of it
//! (a copy out of a shared mapping, the checksum, the item) is beside it, and what the copy alone
//! costs. Small items are counted one by one: what they cost where they are lent in place, and
//! where they are copied first, with and without checksums; and what it costs to free them.
#![allow(missing_docs, clippy::unwrap_used)]

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use shared_block_ring::device::{Mapping, Memory};
use shared_block_ring::format::{Geometry, SectorSize, Tally};
use shared_block_ring::{
    Consumer, CreateOptions, Durability, MappedDevice, Popped, Position, Producer, create,
};
use std::cell::RefCell;

/// A span of items of 4 KiB that is read at once.
const ITEMS: usize = 60;
const ITEM: usize = 4096;

/// A batch of small items.
const SMALL_ITEMS: usize = 64;
const SMALL_ITEM: [u8; 64] = [7; 64];

fn main() {
    divan::main();
}

fn memory() -> std::fs::File {
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(1 << 20).unwrap();
    file
}

fn device(file: &std::fs::File) -> MappedDevice {
    let geometry = Geometry::new(SectorSize::DEFAULT, 2048).unwrap();
    MappedDevice::new(file.try_clone().unwrap(), "bench", geometry).unwrap()
}

fn span() -> BytesCount {
    BytesCount::new(ITEMS * (ITEM + 4))
}

#[divan::bench]
fn checksum(bencher: Bencher<'_, '_>) {
    let bytes = vec![0x5a_u8; ITEMS * (ITEM + 4)];
    let tally = Tally::from_here(Position::ZERO);
    bencher.counter(span()).bench(|| tally.extend(60, divan::black_box(&bytes)));
}

#[divan::bench]
fn copy(bencher: Bencher<'_, '_>) {
    let mapping = Mapping::new(memory(), 1 << 20).unwrap();
    let mut bytes = vec![0_u8; ITEMS * (ITEM + 4)];
    bencher.counter(span()).bench_local(|| mapping.read(1536, divan::black_box(&mut bytes)));
}

/// Finds a new span, verifies it, and reads its first item, as a consumer in steady state does.
#[divan::bench(sample_size = 1, sample_count = 1000)]
fn first_pop(bencher: Bencher<'_, '_>) {
    let file = memory();
    create(&device(&file), CreateOptions::default()).unwrap();
    let mut producer = Producer::attach(device(&file), "bench", "producer").unwrap();
    let consumer = Consumer::attach(device(&file), "bench", "consumer").unwrap();
    let (consumer, item) = (RefCell::new(consumer), vec![7; ITEM]);
    bencher
        .counter(span())
        .with_inputs(|| {
            let mut consumer = consumer.borrow_mut();
            consumer.advance(producer.position()).unwrap();
            for _ in 0..ITEMS {
                producer.push(&item).unwrap();
            }
            producer.advance(producer.position()).unwrap();
            consumer.position()
        })
        .bench_local_values(|at| consumer.borrow_mut().pop(at).unwrap().bytes.len());
}

/// A ring with one batch of small items in it at a time.
struct Batches {
    producer: Producer<MappedDevice>,
    consumer: RefCell<Consumer<MappedDevice>>,
}

impl Batches {
    /// Lent in place or copied; plain rings have no checksums.
    fn new(in_place: bool, plain: bool) -> Self {
        let file = memory();
        create(&device(&file), CreateOptions::new().plain(plain)).unwrap();
        let mut lending = device(&file);
        if in_place {
            // SAFETY: the file has no name. The only producer writes into free space, and the only
            // consumer is over this device.
            lending = unsafe { lending.lend_in_place() };
        }
        let mut producer = Producer::attach(device(&file), "bench", "producer").unwrap();
        let mut consumer = Consumer::attach(lending, "bench", "consumer").unwrap();
        producer.set_durability(Durability::PageCache);
        consumer.set_durability(Durability::PageCache);
        Self { producer, consumer: RefCell::new(consumer) }
    }

    /// Frees everything and publishes a batch. Returns its start and its end.
    fn next(&mut self) -> (Position, Position) {
        let start = self.producer.position();
        let consumer = self.consumer.get_mut();
        consumer.fold(start, (), |(), _| ()).unwrap();
        consumer.advance(start).unwrap();
        let end = self.producer.push_batch(&[SMALL_ITEM; SMALL_ITEMS]).unwrap();
        self.producer.advance(end).unwrap();
        (start, end)
    }

    fn fold(&self, from: Position) -> usize {
        let sum = |sum, item: Popped<'_>| sum + usize::from(item.bytes[9]);
        self.consumer.borrow_mut().fold(from, 0, sum).unwrap().1
    }
}

const CASES: [(bool, bool); 4] = [(true, false), (true, true), (false, false), (false, true)];

/// Finds a new batch and reads all of it. Arguments: whether in place, and whether without
/// checksums.
#[divan::bench(args = CASES, sample_size = 1, sample_count = 5000)]
fn small_fold(bencher: Bencher<'_, '_>, (in_place, plain): (bool, bool)) {
    let batches = RefCell::new(Batches::new(in_place, plain));
    bencher
        .counter(ItemsCount::new(SMALL_ITEMS))
        .with_inputs(|| batches.borrow_mut().next())
        .bench_local_values(|(start, _)| batches.borrow().fold(start));
}

/// Finds a new batch and reads it item by item.
#[divan::bench(args = CASES, sample_size = 1, sample_count = 5000)]
fn small_pop(bencher: Bencher<'_, '_>, (in_place, plain): (bool, bool)) {
    let batches = RefCell::new(Batches::new(in_place, plain));
    bencher
        .counter(ItemsCount::new(SMALL_ITEMS))
        .with_inputs(|| batches.borrow_mut().next())
        .bench_local_values(|(start, end)| {
            let batches = batches.borrow();
            let mut consumer = batches.consumer.borrow_mut();
            let mut at = start;
            while at < end {
                let item = consumer.pop(at).unwrap();
                divan::black_box(item.bytes);
                at = item.next;
            }
        });
}

/// Frees a batch that was read.
#[divan::bench(sample_size = 1, sample_count = 5000)]
fn small_advance(bencher: Bencher<'_, '_>) {
    let batches = RefCell::new(Batches::new(true, false));
    bencher
        .with_inputs(|| {
            let (start, end) = batches.borrow_mut().next();
            batches.borrow().fold(start);
            end
        })
        .bench_local_values(|end| batches.borrow().consumer.borrow_mut().advance(end).unwrap());
}

/// Looks for new items where there are none.
#[divan::bench]
fn empty_look(bencher: Bencher<'_, '_>) {
    let batches = Batches::new(true, false);
    bencher.bench_local(|| batches.consumer.borrow_mut().pop(Position::ZERO).is_err());
}
