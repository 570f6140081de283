//! Random operations on a ring and on a queue of vectors, which must agree.

use proptest::prelude::*;
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::{Consumer, Error, Producer, RingDevice};
use std::collections::VecDeque;

type Item = Vec<u8>;

/// An operation of a ring's users.
#[derive(Debug, Clone)]
pub enum Operation {
    /// Push one item.
    Push(Item),
    /// Push several items, all or none.
    Batch(Vec<Item>),
    /// Push as many items as there is room for.
    Some(Vec<Item>),
    /// Publish the pushed items.
    Advance,
    /// Pop one item.
    Pop,
    /// Pop all items.
    PopAll,
    /// Suspend the ring, from the consumer.
    Suspend,
    /// Resume the ring, from the consumer.
    Resume,
    /// Attach another producer: what was not published is gone.
    ReattachProducer,
    /// Attach another consumer.
    ReattachConsumer,
}

/// A new ring, and the operations on it.
#[derive(Debug, Clone)]
pub struct Case {
    /// Sector size of the device.
    pub sector_size: SectorSize,
    /// Number of sectors of the device, those of the pointers included.
    pub sectors: u64,
    /// The operations, in order.
    pub operations: Vec<Operation>,
}

/// Generates cases of small rings, which are often full and wrap often, with sectors of 512 and
/// 4096 bytes.
pub fn case() -> impl Strategy<Value = Case> {
    let shape = (prop_oneof![Just(512), Just(4096)], 4..8_u64);
    shape.prop_flat_map(|(bytes, sectors)| {
        let sector_size = SectorSize::new(bytes).expect("a power of two");
        operations(sector_size).prop_map(move |operations| Case {
            sector_size,
            sectors,
            operations,
        })
    })
}

/// Generates operations with items of the lengths that matter for this sector size.
pub fn operations(sector_size: SectorSize) -> impl Strategy<Value = Vec<Operation>> {
    let size = sector_size.bytes();
    let item = move || {
        prop_oneof![
            3 => prop::collection::vec(any::<u8>(), 0..40),
            2 => prop::collection::vec(any::<u8>(), size - 32..size + 18),
            1 => prop::collection::vec(any::<u8>(), 0..4 * size + size / 4),
        ]
    };
    let operation = prop_oneof![
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
    ];
    prop::collection::vec(operation, 1..60)
}

/// Carries out the operations on the ring that `open` opens for either side, and on a queue. The
/// ring may have been used before: its items are popped first. In the end everything is popped.
///
/// # Panics
/// Where the two differ.
pub fn follow<D: RingDevice>(open: impl Fn(Side) -> D, operations: Vec<Operation>) {
    let mut pair = Pair::new(open);
    for operation in operations {
        pair.run(operation);
    }
    if pair.model.suspended {
        pair.run(Operation::Resume);
    }
    pair.run(Operation::Advance);
    pair.run(Operation::PopAll);
    assert!(pair.model.published.is_empty());
}

/// The expected content of the ring.
#[derive(Default)]
struct Model {
    pushed: VecDeque<Item>,
    published: VecDeque<Item>,
    suspended: bool,
}

impl Model {
    fn used(&self) -> usize {
        self.pushed.iter().chain(&self.published).map(framed).sum()
    }
}

fn framed(item: &Item) -> usize {
    (item.len() + 7) & !3
}

/// Returns the bytes that items take in a row, without the padding behind the last one.
fn unpadded(items: &[Item]) -> usize {
    let Some((last, others)) = items.split_last() else { return 0 };
    others.iter().map(framed).sum::<usize>() + last.len() + 4
}

struct Pair<D: RingDevice, F> {
    open: F,
    producer: Option<Producer<D>>,
    consumer: Option<Consumer<D>>,
    model: Model,
    capacity: usize,
}

impl<D: RingDevice, F: Fn(Side) -> D> Pair<D, F> {
    fn new(open: F) -> Self {
        let model = Model::default();
        let mut pair = Self { open, producer: None, consumer: None, model, capacity: 0 };
        pair.run(Operation::ReattachProducer);
        pair.run(Operation::ReattachConsumer);
        let capacity = pair.producer().device().geometry().capacity().get();
        pair.capacity = usize::try_from(capacity).expect("a small ring");
        pair.run(Operation::Resume);
        let consumer = pair.consumer();
        let (end, ()) = consumer.fold(consumer.position(), (), |(), _| ()).expect("a sound ring");
        consumer.advance(end).expect("what was popped can be freed");
        pair
    }

    fn producer(&mut self) -> &mut Producer<D> {
        self.producer.as_mut().expect("attached")
    }

    fn consumer(&mut self) -> &mut Consumer<D> {
        self.consumer.as_mut().expect("attached")
    }

    fn run(&mut self, operation: Operation) {
        match operation {
            Operation::Push(item) => self.push(&[item]),
            Operation::Batch(items) => self.push(&items),
            Operation::Some(items) => self.push_some(&items),
            Operation::Advance => {
                let producer = self.producer();
                match producer.advance(producer.position()) {
                    Ok(()) => {
                        // Where a look costs a request, a suspend is noticed later.
                        let heard = producer.device().reads_are_free();
                        let any = !self.model.pushed.is_empty();
                        assert!(!(self.model.suspended && heard && any));
                        self.model.published.append(&mut self.model.pushed);
                    }
                    Err(Error::Suspended) => assert!(self.model.suspended),
                    Err(e) => panic!("{e}"),
                }
            }
            Operation::Pop => self.pop(1),
            Operation::PopAll => self.pop(usize::MAX),
            Operation::Suspend => {
                // The producer acknowledges the change before.
                self.producer().state().expect("attached");
                self.consumer().suspend().expect("acknowledged");
                self.model.suspended = true;
            }
            Operation::Resume => {
                self.producer().state().expect("attached");
                self.consumer().resume().expect("acknowledged");
                self.model.suspended = false;
            }
            Operation::ReattachProducer => {
                self.producer = None;
                let device = (self.open)(Side::Producer);
                self.producer = Some(Producer::attach(device, "queue", "producer").expect("free"));
                self.model.pushed.clear();
            }
            Operation::ReattachConsumer => {
                self.consumer = None;
                let device = (self.open)(Side::Consumer);
                self.consumer = Some(Consumer::attach(device, "queue", "consumer").expect("free"));
            }
        }
    }

    fn push(&mut self, items: &[Item]) {
        let producer = self.producer();
        let result =
            if let [item] = items { producer.push(item) } else { producer.push_batch(items) };
        let (unpadded, free) = (unpadded(items), self.capacity - self.model.used());
        match result {
            Ok(_) => {
                assert!(unpadded <= free);
                self.model.pushed.extend(items.iter().cloned());
            }
            Err(Error::Suspended) => assert!(self.model.suspended),
            Err(Error::TooLarge { .. }) => assert!(unpadded > self.capacity),
            Err(Error::Retry) => assert!(unpadded > free),
            Err(e) => panic!("{e}"),
        }
    }

    fn push_some(&mut self, items: &[Item]) {
        let free = self.capacity - self.model.used();
        match self.producer().push_some(items) {
            Ok((count, _)) => {
                assert!(count > 0 && unpadded(&items[..count]) <= free);
                assert!(count == items.len() || unpadded(&items[..=count]) > free);
                self.model.pushed.extend(items[..count].iter().cloned());
            }
            Err(Error::Suspended) => assert!(self.model.suspended),
            Err(Error::TooLarge { .. }) => assert!(unpadded(&items[..1]) > self.capacity),
            Err(Error::Retry) => assert!(unpadded(&items[..1]) > free),
            Err(e) => panic!("{e}"),
        }
    }

    fn pop(&mut self, limit: usize) {
        let consumer = self.consumer.as_mut().expect("attached");
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
        consumer.advance(at).expect("what was popped can be freed");
    }
}
