//! A whole ring in memory of this process, with a producer and a consumer over it: no file, no
//! socket and no lock, so that an interpreter that looks for undefined behaviour can run it
//! (`scripts/sanitize.sh`).
#![allow(clippy::unwrap_used)]

use shared_block_ring::device::Mapping;
use shared_block_ring::format::{Geometry, SectorSize, framed_len};
use shared_block_ring::{
    Consumer, CreateOptions, Error, MappedDevice, Popped, Position, Producer, create,
};
use std::sync::Arc;

type Device = MappedDevice<Arc<Mapping>>;

/// Items in each test: some tens of laps, or a few where an interpreter runs them.
const ITEMS: u32 = if cfg!(miri) { 10 } else { 2000 };

/// A data area of 1024 bytes.
fn geometry() -> Geometry {
    Geometry::new(SectorSize::DEFAULT, 5).unwrap()
}

/// Makes an empty ring.
fn ring() -> Arc<Mapping> {
    let memory = Arc::new(Mapping::anonymous(geometry().total_bytes()).unwrap());
    create(&copying(&memory), CreateOptions::default()).unwrap();
    memory
}

fn copying(memory: &Arc<Mapping>) -> Device {
    MappedDevice::over(Arc::clone(memory), "ring", geometry())
}

fn lending(memory: &Arc<Mapping>) -> Device {
    // SAFETY: the test that uses this device writes to the ring by a `Producer` alone, and only
    // while nothing is lent. It has one consumer.
    unsafe { copying(memory).lend_in_place() }
}

/// Items of lengths that differ, each of one byte all over.
fn payload(number: u32) -> Vec<u8> {
    vec![number.to_le_bytes()[0]; usize::try_from(number * 97 % 301).unwrap()]
}

/// Pushes the items from `number` on, as many as there is room for, and publishes them. Returns the
/// number of the next item.
fn publish(producer: &mut Producer<Device>, mut number: u32) -> u32 {
    let mut end = producer.position();
    loop {
        // By turns as a batch and one by one.
        let items = [payload(number), payload(number + 1)];
        let pushed = if number.is_multiple_of(3) {
            producer.push_some(&items).map(|(count, end)| (u32::try_from(count).unwrap(), end))
        } else {
            producer.push(&items[0]).map(|end| (1, end))
        };
        match pushed {
            Ok((count, to)) => (number, end) = (number + count, to),
            Err(Error::Retry) => break,
            Err(e) => panic!("{e}"),
        }
    }
    producer.advance(end).unwrap();
    number
}

/// Passes items from a producer to a consumer over `device`, and returns how many of them lay in
/// the ring's memory, and how many passed the wrap point.
fn pass_by_turns(device: fn(&Arc<Mapping>) -> Device) -> (usize, usize) {
    let memory = ring();
    let mut producer = Producer::attach(copying(&memory), "queue", "producer").unwrap();
    let mut consumer = Consumer::attach(device(&memory), "queue", "consumer").unwrap();
    let (mut lent, mut straddling, mut next, mut at) = (0, 0, 0, Position::ZERO);
    let capacity = geometry().capacity().get();
    let mut check = |number: u32, item: Popped<'_>| {
        assert_eq!(item.bytes, payload(number), "item {number}");
        lent += usize::from(memory.addresses().contains(&item.bytes.as_ptr().addr()));
        let start = item.next.get() - framed_len(u32::try_from(item.bytes.len()).unwrap());
        straddling += usize::from(start / capacity != (item.next.get() - 1) / capacity);
    };
    while next < ITEMS {
        let first = next;
        next = publish(&mut producer, first);
        assert!(next > first);
        // One item popped, the others folded; then all of them again, and freed.
        let item = consumer.pop(at).unwrap();
        check(first, item);
        let second = item.next;
        for from in [second, at] {
            let start = if from == at { first } else { first + 1 };
            let (end, number) = consumer
                .fold(from, start, |number, item| {
                    check(number, item);
                    number + 1
                })
                .unwrap();
            assert_eq!((end, number), (producer.position(), next));
        }
        at = producer.position();
        assert!(matches!(consumer.pop(at), Err(Error::Retry)));
        consumer.advance(at).unwrap();
    }
    (lent, straddling)
}

#[test]
fn items_pass_the_wrap_point_copied() {
    let (lent, straddling) = pass_by_turns(copying);
    assert_eq!(lent, 0);
    assert!(straddling > 0);
}

#[test]
fn items_pass_the_wrap_point_lent() {
    let (lent, straddling) = pass_by_turns(lending);
    assert!(lent > 0 && straddling > 0, "{lent} {straddling}");
}

/// A producer writes whole sectors, so that it repeats published bytes in the sector in which they
/// end: what is read meanwhile must be a copy. (Miri knows no atomics of different sizes in one
/// place, such as a position and the copy of its sector, once two threads use them.)
#[cfg(not(miri))]
#[test]
fn items_are_copied_whole_while_a_producer_publishes() {
    let memory = ring();
    let mut producer = Producer::attach(copying(&memory), "queue", "producer").unwrap();
    let mut consumer = Consumer::attach(copying(&memory), "queue", "consumer").unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut next = 0;
            while next < ITEMS {
                next = publish(&mut producer, next);
                std::thread::yield_now();
            }
        });
        let (mut number, mut at) = (0, Position::ZERO);
        while number < ITEMS {
            let (end, next) = consumer
                .fold(at, number, |number, item| {
                    assert_eq!(item.bytes, payload(number), "item {number}");
                    number + 1
                })
                .unwrap();
            if end == at {
                std::thread::yield_now();
                continue;
            }
            (at, number) = (end, next);
            consumer.advance(at).unwrap();
        }
    });
}
