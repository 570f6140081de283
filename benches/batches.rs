//! Cost of a batch of 64 items of 64 bytes in a file: pushed and advanced, popped and freed; and
//! durable, beside the bare system calls.
#![allow(clippy::unwrap_used, missing_docs)]

use divan::{Bencher, counter::ItemsCount};
use shared_block_ring::{
    Consumer, CreateOptions, Durability, FileDevice, OpenOptions, Producer, create,
};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BATCH: usize = 64;
const ITEM: [u8; 64] = [7; 64];

fn main() {
    divan::main();
}

fn ends(path: &Path) -> (Producer<FileDevice>, Consumer<FileDevice>) {
    File::create(path).unwrap().set_len(8 << 20).unwrap();
    let open = || OpenOptions::default().open(path).unwrap();
    create(&open(), CreateOptions::default()).unwrap();
    let producer = Producer::attach(open(), "q", "bench").unwrap();
    (producer, Consumer::attach(open(), "q", "bench").unwrap())
}

fn push(producer: &mut Producer<FileDevice>) {
    let mut end = producer.position();
    for _ in 0..BATCH {
        end = producer.push(&ITEM).unwrap();
    }
    producer.advance(end).unwrap();
}

fn pop(consumer: &mut Consumer<FileDevice>) {
    let mut at = consumer.position();
    for _ in 0..BATCH {
        at = consumer.pop(at).unwrap().next;
    }
    consumer.advance(at).unwrap();
}

/// Pushes alone, the producer's own part: framing, copying, the checksum; and once in sixty batches
/// a large write.
#[divan::bench]
fn push_alone(bencher: Bencher) {
    let dir = tempfile::tempdir().unwrap();
    let (mut producer, mut consumer) = ends(&dir.path().join("ring"));
    producer.set_durability(Durability::PageCache);
    consumer.set_durability(Durability::PageCache);
    let mut batches = 0;
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        for _ in 0..BATCH {
            divan::black_box(producer.push(divan::black_box(&ITEM)).unwrap());
        }
        batches += 1;
        if batches % 60 == 0 {
            producer.advance(producer.position()).unwrap();
            let (end, ()) = consumer.fold(consumer.position(), (), |(), _| ()).unwrap();
            consumer.advance(end).unwrap();
        }
    });
}

#[divan::bench]
fn push_and_pop(bencher: Bencher) {
    let dir = tempfile::tempdir().unwrap();
    let (mut producer, mut consumer) = ends(&dir.path().join("ring"));
    producer.set_durability(Durability::PageCache);
    consumer.set_durability(Durability::PageCache);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        push(&mut producer);
        pop(&mut consumer);
    });
}

/// Makes a file in the build's folder: a temporary folder may be in memory, where nothing is
/// durable.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[divan::bench(sample_count = 400)]
fn durable_batch(bencher: Bencher) {
    let dir = on_disk();
    let (mut producer, mut consumer) = ends(&dir.path().join("ring"));
    consumer.set_durability(Durability::PageCache);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        push(&mut producer);
        // Without a flush this costs next to nothing.
        pop(&mut consumer);
    });
}

/// Writes the same bytes to the same places.
#[divan::bench(sample_count = 400)]
fn durable_batch_by_bare_calls(bencher: Bencher) {
    let dir = on_disk();
    let file = File::create(dir.path().join("file")).unwrap();
    file.set_len(8 << 20).unwrap();
    let mut at = 1536;
    let (data, pointer) = (vec![7; 4608], [7; 512]);
    bencher.counter(ItemsCount::new(BATCH)).bench_local(|| {
        file.write_all_at(&data, at).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&pointer, 512).unwrap();
        file.sync_data().unwrap();
        at = (at + 4352) % (7 << 20);
        at -= at % 512;
    });
}
