//! Random operations on a ring against a queue of vectors.
#![allow(clippy::unwrap_used)]

mod common;

use common::RingFile;
use proptest::prelude::*;
use shared_block_ring::{BlockDevice, Consumer, Error, Producer};
use std::collections::VecDeque;

#[derive(Debug, Clone)]
enum Operation {
    Push(Vec<u8>),
    Batch(Vec<Vec<u8>>),
    Some(Vec<Vec<u8>>),
    Advance,
    Pop,
    PopAll,
    Suspend,
    Resume,
    ReattachProducer,
    ReattachConsumer,
}

fn operation() -> impl Strategy<Value = Operation> {
    let item = || {
        prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 0..40),
            2 => prop::collection::vec(any::<u8>(), 480..530),
            1 => prop::collection::vec(any::<u8>(), 0..2200),
        ]
    };
    prop_oneof![
        6 => item().prop_map(Operation::Push),
        2 => prop::collection::vec(item(), 0..5).prop_map(Operation::Batch),
        2 => prop::collection::vec(item(), 1..8).prop_map(Operation::Some),
        4 => Just(Operation::Advance),
        4 => Just(Operation::Pop),
        1 => Just(Operation::PopAll),
        1 => Just(Operation::Suspend),
        2 => Just(Operation::Resume),
        1 => Just(Operation::ReattachProducer),
        1 => Just(Operation::ReattachConsumer),
    ]
}

/// The ring as it should be.
#[derive(Default)]
struct Model {
    pushed: VecDeque<Vec<u8>>,
    published: VecDeque<Vec<u8>>,
    suspended: bool,
}

impl Model {
    fn used(&self) -> usize {
        let framed = |item: &Vec<u8>| (item.len() + 7) & !3;
        self.pushed.iter().chain(&self.published).map(framed).sum()
    }
}

/// Bytes that items take in a row, without the padding behind the last one.
fn unpadded(items: &[Vec<u8>]) -> usize {
    let Some((last, others)) = items.split_last() else { return 0 };
    others.iter().map(|item| (item.len() + 7) & !3).sum::<usize>() + last.len() + 4
}

struct Ring {
    file: RingFile,
    mapped: bool,
    producer: Option<Producer<Box<dyn BlockDevice>>>,
    consumer: Option<Consumer<Box<dyn BlockDevice>>>,
    model: Model,
    capacity: usize,
}

impl Ring {
    fn new(data_sectors: usize, sector_size: u32, mapped: bool) -> Self {
        let capacity = data_sectors * sector_size as usize;
        let file = RingFile::new(capacity + 3 * sector_size as usize, sector_size);
        let model = Model::default();
        let mut ring = Self { file, mapped, producer: None, consumer: None, model, capacity };
        ring.run(Operation::ReattachProducer);
        ring.run(Operation::ReattachConsumer);
        ring
    }

    fn open(&self) -> Box<dyn BlockDevice> {
        if self.mapped { Box::new(self.file.open_mapped()) } else { Box::new(self.file.open()) }
    }

    fn push(&mut self, items: &[Vec<u8>]) {
        let producer = self.producer.as_mut().unwrap();
        let result =
            if let [item] = items { producer.push(item) } else { producer.push_batch(items) };
        let unpadded = unpadded(items);
        match result {
            Ok(_) => {
                assert!(!self.model.suspended && unpadded <= self.capacity - self.model.used());
                self.model.pushed.extend(items.iter().cloned());
            }
            Err(Error::Suspended) => assert!(self.model.suspended),
            Err(Error::TooLarge { .. }) => assert!(unpadded > self.capacity),
            Err(Error::Retry) => assert!(unpadded > self.capacity - self.model.used()),
            Err(e) => panic!("{e}"),
        }
    }

    fn push_some(&mut self, items: &[Vec<u8>]) {
        let producer = self.producer.as_mut().unwrap();
        let room = self.capacity - self.model.used();
        match producer.push_some(items) {
            Ok((count, _)) => {
                assert!(!self.model.suspended && count > 0 && unpadded(&items[..count]) <= room);
                assert!(count == items.len() || unpadded(&items[..=count]) > room);
                self.model.pushed.extend(items[..count].iter().cloned());
            }
            Err(Error::Suspended) => assert!(self.model.suspended),
            Err(Error::TooLarge { .. }) => assert!(unpadded(&items[..1]) > self.capacity),
            Err(Error::Retry) => assert!(unpadded(&items[..1]) > room),
            Err(e) => panic!("{e}"),
        }
    }

    fn pop(&mut self, limit: usize) {
        let consumer = self.consumer.as_mut().unwrap();
        let mut at = consumer.position();
        for _ in 0..limit {
            match consumer.pop(at) {
                Ok(item) => {
                    assert_eq!(Some(item.bytes), self.model.published.pop_front().as_deref());
                    at = item.next;
                }
                Err(Error::Retry) => {
                    assert!(self.model.published.is_empty());
                    break;
                }
                Err(e) => panic!("{e}"),
            }
        }
        consumer.advance(at).unwrap();
    }

    fn run(&mut self, operation: Operation) {
        match operation {
            Operation::Push(item) => self.push(&[item]),
            Operation::Batch(items) => self.push(&items),
            Operation::Some(items) => self.push_some(&items),
            Operation::Advance => {
                let producer = self.producer.as_mut().unwrap();
                match producer.advance(producer.position()) {
                    Ok(()) => self.model.published.append(&mut self.model.pushed),
                    Err(Error::Suspended) => assert!(self.model.suspended),
                    Err(e) => panic!("{e}"),
                }
            }
            Operation::Pop => self.pop(1),
            Operation::PopAll => self.pop(usize::MAX),
            Operation::Suspend => {
                self.producer.as_mut().unwrap().state().unwrap();
                self.consumer.as_mut().unwrap().suspend().unwrap();
                self.model.suspended = true;
            }
            Operation::Resume => {
                self.producer.as_mut().unwrap().state().unwrap();
                self.consumer.as_mut().unwrap().resume().unwrap();
                self.model.suspended = false;
            }
            Operation::ReattachProducer => {
                self.producer = None;
                self.producer = Some(Producer::attach(self.open(), "queue", "producer").unwrap());
                self.model.pushed.clear();
            }
            Operation::ReattachConsumer => {
                self.consumer = None;
                self.consumer = Some(Consumer::attach(self.open(), "queue", "consumer").unwrap());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_ring_is_a_queue(
        sector_size in prop_oneof![Just(512u32), Just(4096)],
        data_sectors in 1usize..5,
        mapped in any::<bool>(),
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        let mut ring = Ring::new(data_sectors, sector_size, mapped);
        for operation in operations {
            ring.run(operation);
        }
        if ring.model.suspended {
            ring.run(Operation::Resume);
        }
        ring.run(Operation::Advance);
        ring.run(Operation::PopAll);
        prop_assert!(ring.model.published.is_empty());
    }

    /// Any bytes in place of a ring's: typed errors or items no larger than the ring, never a panic.
    #[test]
    fn hostile_bytes_are_errors(
        edits in prop::collection::vec((0usize..16 * 512, any::<u8>()), 1..40),
        pointers in prop::option::of((any::<u64>(), any::<u64>())),
    ) {
        let ring = Ring::new(13, 512, false);
        let mut bytes = ring.file.bytes();
        let Ring { file, producer, consumer, .. } = ring;
        drop((producer, consumer));
        if let Some((producer, consumer)) = pointers {
            bytes[512..520].copy_from_slice(&producer.to_le_bytes());
            bytes[1024..1032].copy_from_slice(&consumer.to_le_bytes());
        }
        for (at, byte) in edits {
            bytes[at] = byte;
        }
        std::fs::write(&file.path, bytes).unwrap();
        if let Ok(mut consumer) = file.consumer() {
            let start = consumer.position();
            let _ = consumer.fold(start, (), |(), item| assert!(item.bytes.len() <= 13 * 512));
        }
        if let Ok(mut producer) = file.producer() {
            let _ = producer.push("item").and_then(|position| producer.advance(position));
        }
    }
}
