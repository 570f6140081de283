//! What it costs to verify a span before its first item is handed out.
//!
//! `cargo bench --bench verify`. The checksum alone must pass 8 GB/s on one core; the whole of it (a copy out of a shared mapping,
//! the checksum, the item) is beside it, and what the copy alone costs.
#![allow(missing_docs, clippy::unwrap_used)]

use divan::Bencher;
use divan::counter::BytesCount;
use shared_block_ring::device::{Mapping, Memory};
use shared_block_ring::format::{Geometry, SectorSize, Tally};
use shared_block_ring::{Consumer, CreateOptions, MappedDevice, Position, Producer, create};
use std::cell::RefCell;

/// A span that is read in one go, of items of 4 KiB.
const ITEMS: usize = 60;
const ITEM: usize = 4096;

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

/// Sees a new span, verifies it, and looks at its first item: what a consumer in steady state does.
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
