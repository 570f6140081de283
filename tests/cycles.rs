//! Handles that are opened and closed again and again keep neither descriptors nor memory. One test
//! alone in its process: it counts what the process has.
#![allow(clippy::unwrap_used)]

use futures_util::TryStreamExt;
use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Word};
use shared_block_ring::stream::{ItemSink, ItemStream};
use shared_block_ring::wait::Readiness;
use shared_block_ring::{Consumer, Control, Durability, FileDevice, Producer, Role};
use std::fs;

/// Attachments in a file.
const CYCLES: u32 = 10_000;

/// Attachments by a backend, and as streams.
const FEWER: u32 = 500;

/// Memory that the allocator may keep, in pages.
const SLACK: u64 = 512;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Returns the process's resident pages.
fn pages() -> u64 {
    let text = fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse().unwrap()
}

/// A producer that does not wait for the disk.
fn producer_of(file: &RingFile) -> Producer<FileDevice> {
    let mut producer = file.producer().unwrap();
    producer.set_durability(Durability::PageCache);
    producer
}

fn consumer_of(file: &RingFile) -> Consumer<FileDevice> {
    let mut consumer = Consumer::attach(file.open(), "queue", "consumer").unwrap();
    consumer.set_durability(Durability::PageCache);
    consumer
}

fn file_cycle(file: &RingFile) {
    let mut producer = producer_of(file);
    let end = producer.push("item").unwrap();
    producer.advance(end).unwrap();
    let mut consumer = consumer_of(file);
    let next = consumer.pop(consumer.position()).unwrap().next;
    consumer.advance(next).unwrap();
    Readiness::for_items().unwrap().arm(consumer.device()).unwrap();
    Control::open(file.open()).unwrap().debug_info().unwrap();
}

fn backend_cycle(backend: &Backend) {
    let (device, _client) = backend.connect_and_stay(Role::Consumer);
    let consumer = Consumer::attach(device, "queue", "consumer").unwrap();
    let mut readiness = Readiness::for_items().unwrap();
    assert!(readiness.arm(consumer.device()).unwrap());
    assert!(!readiness.arm(consumer.device()).unwrap());
}

async fn stream_cycle(file: &RingFile) {
    let mut sink = ItemSink::new(producer_of(file)).unwrap();
    futures_util::SinkExt::send(&mut sink, "item").await.unwrap();
    let mut stream = ItemStream::new(consumer_of(file)).unwrap();
    let next = stream.try_next().await.unwrap().unwrap().next;
    stream.advance(next).await.unwrap();
    // Waiting for the next one begins, and goes with the stream.
    let waiting = std::future::poll_fn(|cx| {
        let polled = TryStreamExt::try_poll_next_unpin(&mut stream, cx);
        std::task::Poll::Ready(polled.is_pending())
    });
    assert!(waiting.await);
    // The call that has begun gives the role back.
    drop(stream.into_consumer().await.unwrap());
}

#[test]
fn attachments_leave_descriptors_and_memory_as_they_were() {
    let file = RingFile::new(64 << 10, 512);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let backend = Backend::new(&file, Word::Guarded);
    let cycles = |count| {
        for _ in 0..count {
            file_cycle(&file);
        }
        for _ in 0..count.min(FEWER) {
            backend_cycle(&backend);
            runtime.block_on(stream_cycle(&file));
        }
    };
    cycles(100);
    let before = (descriptors(), pages());
    cycles(CYCLES);
    assert_eq!(descriptors(), before.0);
    assert!(pages() <= before.1 + SLACK, "{} pages before, {} after", before.1, pages());
}
