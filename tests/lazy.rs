//! A consumer that writes its pointer lazily, by choice.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use ring_test_support::RingFile;
use shared_block_ring::{Consumer, Durability, Error, FileDevice, Position};
use std::collections::VecDeque;

/// Framed, an item of these takes 100 bytes.
const ITEM: usize = 96;

/// Ten items in a ring of 2048 bytes of data, and a consumer that frees so much at a time.
fn scene(every: u64) -> (RingFile, Consumer<FileDevice>) {
    let file = RingFile::new(7 * 512, 512);
    let mut producer = file.producer().unwrap();
    let items: Vec<_> = (0..10).map(|number| vec![number; ITEM]).collect();
    let end = producer.push_batch(&items).unwrap();
    producer.advance(end).unwrap();
    let mut consumer = file.consumer().unwrap();
    consumer.advance_every(every);
    (file, consumer)
}

/// Pops one item and advances over it; which one it was.
fn take(consumer: &mut Consumer<FileDevice>) -> u8 {
    let item = consumer.pop(consumer.position()).unwrap();
    let (number, next) = (item.bytes[0], item.next);
    consumer.advance(next).unwrap();
    number
}

fn freed(consumer: &Consumer<FileDevice>) -> u64 {
    consumer.debug_info().unwrap().consumer.get()
}

/// Returns what is delivered to the next consumer after a crash.
fn after_a_crash(file: &RingFile) -> u8 {
    let copy = RingFile::blank(0, 512);
    std::fs::copy(&file.path, &copy.path).unwrap();
    take(&mut copy.consumer().unwrap())
}

#[test]
fn lazy_consumer_writes_its_pointer_once_enough_can_be_freed() {
    let (file, mut consumer) = scene(300);
    for (number, pointer) in [0, 0, 300, 300, 300, 600].into_iter().enumerate() {
        assert_eq!(usize::from(take(&mut consumer)), number);
        assert_eq!(freed(&consumer), pointer);
        assert_eq!(consumer.position().get(), 100 * (number as u64 + 1));
    }
    take(&mut consumer);
    assert_eq!(after_a_crash(&file), 6, "what was not written is delivered again");
    // What was advanced over is not delivered to us again.
    assert!(matches!(consumer.pop(Position::new(600).unwrap()), Err(Error::InvalidStart { .. })));
    consumer.flush().unwrap();
    assert_eq!(freed(&consumer), 700);
    assert_eq!(after_a_crash(&file), 7);
}

#[test]
fn lazy_consumer_writes_its_pointer_when_the_ring_is_empty() {
    let (_file, mut consumer) = scene(u64::MAX);
    for _ in 0..9 {
        take(&mut consumer);
    }
    assert_eq!(freed(&consumer), 0, "less than half of the ring");
    take(&mut consumer);
    assert!(matches!(consumer.pop(consumer.position()), Err(Error::Retry)));
    assert_eq!(freed(&consumer), 1000);
}

#[test]
fn lazy_consumer_writes_its_pointer_when_it_is_dropped() {
    let (file, mut consumer) = scene(u64::MAX);
    take(&mut consumer);
    drop(consumer);
    let mut consumer = file.consumer().unwrap();
    consumer.advance_every(u64::MAX);
    assert_eq!(take(&mut consumer), 1);
    consumer.detach();
    assert_eq!(take(&mut file.consumer().unwrap()), 2);
}

#[test]
fn lazy_consumer_leaves_the_producer_half_of_the_ring_at_least() {
    let (file, mut consumer) = scene(u64::MAX);
    let mut producer = file.producer().unwrap();
    let end = producer.push(&vec![10; 1000]).unwrap();
    producer.advance(end).unwrap();
    assert!(matches!(producer.push(&vec![11; 1000]), Err(Error::Retry)));
    for _ in 0..11 {
        take(&mut consumer);
    }
    producer.push(&vec![11; 1000]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Whatever is chosen, everything arrives once and in order, also by a successor; and the
    /// pointer is behind by less than was chosen.
    #[test]
    fn lazy_consumer_behaves_as_a_queue(
        every in prop_oneof![0_u64..2500, Just(u64::MAX)],
        steps in prop::collection::vec((0_u8..4, prop::collection::vec(0_usize..700, 0..6)), 1..60),
    ) {
        let file = RingFile::new(7 * 512, 512);
        let mut producer = file.producer().unwrap();
        producer.set_durability(Durability::PageCache);
        let attach = || {
            let mut consumer = file.consumer().unwrap();
            consumer.set_durability(Durability::PageCache);
            consumer.advance_every(every);
            consumer
        };
        let mut consumer = Some(attach());
        let (mut expected, mut number) = (VecDeque::new(), 0_u8);
        for (kind, lengths) in steps {
            let end = consumer.as_mut().unwrap();
            match kind {
                0 if !lengths.is_empty() => {
                    let items: Vec<_> = lengths.iter().map(|&length| {
                        number = number.wrapping_add(1);
                        vec![number; length]
                    }).collect();
                    if let Ok((count, position)) = producer.push_some(&items) {
                        producer.advance(position).unwrap();
                        expected.extend(items.into_iter().take(count));
                    }
                }
                1 => {
                    drop(consumer.take());
                    consumer = Some(attach());
                }
                _ => {
                    for _ in 0..=lengths.len() {
                        let start = end.position();
                        let Ok(item) = end.pop(start) else { break };
                        prop_assert_eq!(Some(item.bytes.to_vec()), expected.pop_front());
                        let next = item.next;
                        end.advance(next).unwrap();
                        let behind = next.get() - freed(end);
                        prop_assert!(behind == 0 || behind < every.min(1024));
                    }
                }
            }
        }
    }
}
