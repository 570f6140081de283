//! Requests and items whose instructions valgrind's callgrind counts: see
//! `bench/tests/instructions.rs`, which holds them to bounds.
//!
//! `instructions CASE TIMES` does something so many times. What is to be counted happens in a
//! function of a name of its own, [`counted_here`]; the rest prepares it. Without arguments every
//! case runs once, which counts nothing.
#![allow(missing_docs, clippy::unwrap_used)]

use ring_test_support::executor_disk::{Disk, open};
use ring_test_support::worker_disk::{Direct, Payload, SIZE};
use shared_block_ring::format::Side;
use shared_block_ring::{
    Consumer, Durability, MappedDevice, Popped, Position, Producer, RingDevice,
};
use std::hint::black_box;
use std::sync::Arc;
use vhost_device_blockring::data_path::flush_pool::FlushPool;
use vhost_device_blockring::data_path::flusher::Flusher;
use vhost_device_blockring::data_path::queue_set::{MAX_QUEUES, QueueSet};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_T_OUT;

/// Sectors: a data area of 128 KiB.
const SECTORS: usize = 3 + 256;

/// Where data begins.
const DATA: u64 = 3;

/// Items that are looked at one after the other, and their bytes.
const ITEMS: usize = 64;
const ITEM: [u8; 64] = [7; 64];

const CASES: [&str; 10] = [
    "write-512",
    "write-512-beside-63",
    "write-512-of-16",
    "write-4K",
    "write-4K-of-16",
    "publish-1",
    "publish-64",
    "push",
    "pop",
    "fold",
];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [case, times] = &arguments[..] {
        return run(case, times.parse().unwrap());
    }
    // Whatever cargo says to a benchmark.
    for case in CASES {
        run(case, 1);
    }
    println!("all run; `cargo test -p ring-bench --test instructions` counts them");
}

fn run(case: &str, times: usize) {
    match case {
        "write-512" => write(512, 1, times),
        "write-512-beside-63" => write_beside_idle_queues(times),
        "write-512-of-16" => write(512, SIZE, times),
        "write-4K" => write(4096, 1, times),
        "write-4K-of-16" => write(4096, SIZE, times),
        "publish-1" => publish(1, times),
        "publish-64" => publish(ITEMS, times),
        "push" => push(times),
        "pop" => consume(times, |consumer| {
            let mut at = consumer.position();
            for _ in 0..ITEMS {
                at = black_box(consumer.pop(at).unwrap()).next;
            }
        }),
        "fold" => consume(times, |consumer| {
            let add = |sum, item: Popped<'_>| sum + black_box(item).bytes.len();
            let (_, sum) = consumer.fold(consumer.position(), 0, add).unwrap();
            assert_eq!(sum, ITEMS * ITEM.len());
        }),
        other => panic!("{other} is none of {CASES:?}"),
    }
}

/// Its name is what callgrind is given.
#[inline(never)]
fn counted_here(work: &mut dyn FnMut()) {
    work();
}

/// Writes by one queue of as many as there can be; nothing was ever offered in the others.
fn write_beside_idle_queues(times: usize) {
    let disk = Disk::with(Side::Producer, false, SECTORS, |_| ());
    let flusher =
        Flusher::start(&FlushPool::new(), open(&disk.path), Arc::clone(&disk.counters)).unwrap();
    let direct = Direct::with_queues(disk, MAX_QUEUES, flusher);
    direct.turn();
    for _ in 0..times {
        let place = direct.put(0, 0, DATA, Payload::Write(&[7; 512]));
        counted_here(&mut || {
            direct.turn_after(QueueSet::one(0));
        });
        assert_eq!(direct.status(place), Some(0));
    }
}

/// Parse, guard, copy, used: the worker's part of requests of that many bytes, so many in a turn.
fn write(bytes: usize, count: u16, times: usize) {
    let disk = Disk::with(Side::Producer, false, SECTORS, |_| ());
    let disk = Direct::over(disk, Box::new(|_, _, turn| counted_here(turn)));
    for _ in 0..times {
        disk.requests(VIRTIO_BLK_T_OUT, DATA, bytes, count);
    }
}

/// The worker's part of making so many items visible.
fn publish(items: usize, times: usize) {
    let disk = Disk::with(Side::Producer, false, SECTORS, |_| ());
    let mut consumer = disk.consumer();
    let watch = |kind, sector, turn: &mut dyn FnMut()| {
        let pointer = kind == VIRTIO_BLK_T_OUT && sector == Side::Producer.sector();
        if pointer { counted_here(turn) } else { turn() }
    };
    let disk = Direct::over(disk, Box::new(watch));
    let mut producer = Producer::attach(&disk, "queue", "guest").unwrap();
    producer.set_durability(Durability::PageCache);
    for _ in 0..times {
        publish_some(&mut producer, items);
        free(&mut consumer, producer.position());
    }
}

fn publish_some<D: RingDevice>(producer: &mut Producer<D>, items: usize) {
    let end = producer.push_batch(&vec![ITEM; items]).unwrap();
    producer.advance(end).unwrap();
}

fn free(consumer: &mut Consumer<MappedDevice>, end: Position) {
    consumer.pop(consumer.position()).unwrap();
    consumer.advance(end).unwrap();
}

/// Both ends of a ring that this process has mapped, and no guard between.
fn ends(disk: &Disk) -> (Producer<MappedDevice>, Consumer<MappedDevice>) {
    let mut producer = Producer::attach(disk.outside()(), "queue", "producer").unwrap();
    let mut consumer = disk.consumer();
    producer.set_durability(Durability::PageCache);
    consumer.set_durability(Durability::PageCache);
    (producer, consumer)
}

/// Pushes without making visible, [`ITEMS`] times.
fn push(times: usize) {
    let disk = Disk::with(Side::Consumer, false, SECTORS, |_| ());
    let (mut producer, mut consumer) = ends(&disk);
    for _ in 0..times {
        counted_here(&mut || {
            for _ in 0..ITEMS {
                black_box(producer.push(&ITEM).unwrap());
            }
        });
        producer.advance(producer.position()).unwrap();
        free(&mut consumer, producer.position());
    }
}

/// Takes [`ITEMS`] items that were made visible at once, their checksum included.
fn consume(times: usize, mut take: impl FnMut(&mut Consumer<MappedDevice>)) {
    let disk = Disk::with(Side::Consumer, false, SECTORS, |_| ());
    let (mut producer, mut consumer) = ends(&disk);
    for _ in 0..times {
        publish_some(&mut producer, ITEMS);
        counted_here(&mut || take(&mut consumer));
        consumer.advance(producer.position()).unwrap();
    }
}
