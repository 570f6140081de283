//! Slots: damage is found before it is delivered, and a peer without slots is no obstacle.
#![allow(clippy::unwrap_used)]

use ring_simulation::Image;
use ring_test_support::RingFile;
use shared_block_ring::device::{MappedDevice, Memory};
use shared_block_ring::format::{
    EXTENSION, FormatError, Geometry, SLOTS_AT, SectorSize, Side, find_slot, put_slot,
};
use shared_block_ring::{Consumer, Error, Position, check};
use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Mutex;

const DATA_AT: usize = 3 * 512;

fn at(bytes: u64) -> Position {
    Position::new(bytes).unwrap()
}

/// Publishes each item by itself; all take `12` bytes with their framing.
fn publish(ring: &RingFile, items: &[&str]) {
    let mut producer = ring.producer().unwrap();
    for item in items {
        let end = producer.push(*item).unwrap();
        producer.advance(end).unwrap();
    }
}

fn edit(ring: &RingFile, change: impl Fn(&mut [u8])) {
    let mut bytes = ring.bytes();
    change(&mut bytes);
    std::fs::write(&ring.path, bytes).unwrap();
}

/// What an OCaml peer does to a pointer sector that it writes.
fn without_slots(ring: &RingFile, sector: usize) {
    edit(ring, |bytes| bytes[sector * 512..][EXTENSION].fill(0));
}

#[test]
fn damaged_items_are_reported_before_the_first_is_lent_and_can_be_skipped() {
    let ring = RingFile::new(16384, 512);
    publish(&ring, &["item one", "item two"]);
    // In the second item: the first is whole, and yet part of a span that is not.
    edit(&ring, |bytes| bytes[DATA_AT + 12 + 6] ^= 1);
    assert!(check(ring.open()).unwrap_err().to_string().contains("from position 0 to 24"));
    let mut consumer = ring.consumer().unwrap();
    for _ in 0..2 {
        match consumer.pop(Position::ZERO) {
            Err(Error::Format(FormatError::Span { from, to, .. })) => {
                assert_eq!((from, to), (Position::ZERO, at(24)));
            }
            other => panic!("{other:?}"),
        }
    }
    // A damaged span can be skipped as a whole, and not in part.
    let error = consumer.advance(at(12)).unwrap_err();
    assert!(matches!(error, Error::Format(FormatError::Span { .. })), "{error}");
    consumer.advance(at(24)).unwrap();
    publish(&ring, &["item 333"]);
    assert_eq!(consumer.pop(at(24)).unwrap().bytes, b"item 333");
    consumer.advance(at(36)).unwrap();
    let facts = consumer.debug_info().unwrap();
    assert_eq!((facts.producer_items, facts.consumer_items), (Some(3), Some(3)));
}

#[test]
fn damage_is_found_in_more_than_is_read_at_a_time() {
    let ring = RingFile::new(4 << 20, 512);
    let mut producer = ring.producer().unwrap();
    for _ in 0..50 {
        producer.push(&vec![7; 60_000]).unwrap();
    }
    producer.advance(producer.position()).unwrap();
    let mut consumer = ring.consumer().unwrap();
    assert!(consumer.pop(Position::ZERO).is_ok());
    drop(consumer);
    edit(&ring, |bytes| bytes[DATA_AT + 2_999_000] ^= 0x80);
    let mut consumer = ring.consumer().unwrap();
    assert!(matches!(consumer.pop(Position::ZERO), Err(Error::Format(FormatError::Span { .. }))));
}

#[test]
fn consumer_reports_unchecked_bytes_of_a_producer_without_slots() {
    let ring = RingFile::new(16384, 512);
    publish(&ring, &["item one"]);
    without_slots(&ring, 1);
    let mut consumer = ring.consumer().unwrap();
    assert_eq!(consumer.pop(Position::ZERO).unwrap().bytes, b"item one");
    assert_eq!(consumer.unchecked_bytes(), 12);
    publish(&ring, &["item two"]);
    assert_eq!(consumer.pop(at(12)).unwrap().bytes, b"item two");
    assert_eq!(consumer.unchecked_bytes(), 12);
    consumer.advance(at(24)).unwrap();
    assert_eq!(consumer.debug_info().unwrap().producer_items, None, "counted since the base only");
    publish(&ring, &["item 333"]);
    edit(&ring, |bytes| bytes[DATA_AT + 24 + 4] ^= 1);
    assert!(matches!(consumer.pop(at(24)), Err(Error::Format(FormatError::Span { .. }))));
}

#[test]
fn consumer_after_one_without_slots_verifies_from_the_producer_on() {
    let ring = RingFile::new(16384, 512);
    publish(&ring, &["item one", "item two", "item 333"]);
    let advance = |consumer: &mut Consumer<_>, from, to| {
        consumer.pop(from).unwrap();
        consumer.advance(to).unwrap();
    };
    advance(&mut ring.consumer().unwrap(), Position::ZERO, at(12));
    without_slots(&ring, 2);
    let mut consumer = ring.consumer().unwrap();
    advance(&mut consumer, at(12), at(24));
    assert_eq!(consumer.unchecked_bytes(), 24, "its own past is unknown");
    advance(&mut consumer, at(24), at(36));
    publish(&ring, &["item four"]);
    consumer.pop(at(36)).unwrap();
    assert_eq!(
        consumer.unchecked_bytes(),
        24,
        "from the producer's position on all is known again"
    );
    assert_eq!(check(ring.open()).unwrap().unchecked_bytes, 0);
}

#[test]
fn damaged_slot_is_reported() {
    let ring = RingFile::new(16384, 512);
    publish(&ring, &["item one", "item two"]);
    edit(&ring, |bytes| bytes[512..][EXTENSION].iter_mut().for_each(|byte| *byte ^= 0xff));
    for error in [ring.producer().err(), ring.consumer().unwrap().pop(Position::ZERO).err()] {
        let text = error.unwrap().to_string();
        assert!(text.contains("producer sector: neither slot"), "{text}");
    }
}

#[test]
fn check_reports_a_count_that_contradicts_the_items() {
    let ring = RingFile::new(16384, 512);
    let uuid = uuid::Uuid::parse_str(&ring.consumer().unwrap().debug_info().unwrap().uuid.unwrap());
    publish(&ring, &["item one", "item two"]);
    assert_eq!(check(ring.open()).unwrap().items, 2);
    edit(&ring, |bytes| {
        let sector = &mut bytes[512..1024];
        let uuid = *uuid.as_ref().unwrap();
        let mut slot = find_slot(uuid, Side::Producer, sector, at(24)).unwrap().unwrap();
        slot.tally.items = 3;
        // Over the slot that speaks for the position: as no writer would.
        put_slot(uuid, sector, at(12), &slot);
    });
    let text = check(ring.open()).unwrap_err().to_string();
    assert!(text.contains("2 items lie before position 24") && text.contains("says 3"), "{text}");
}

#[test]
fn debug_info_reports_the_time_of_the_last_advance() {
    let ring = RingFile::new(16384, 512);
    assert_eq!(ring.consumer().unwrap().debug_info().unwrap().producer_time_ns, None);
    publish(&ring, &["item one"]);
    let facts = ring.consumer().unwrap().debug_info().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let age = now.as_nanos() - u128::from(facts.producer_time_ns.unwrap());
    assert!(age < 60_000_000_000, "{age}");
}

/// A reader that is overtaken between the position and the rest of sector 1.
struct Overtaken {
    memory: Image,
    /// What the first loads of the producer's position still find.
    old: Mutex<VecDeque<u64>>,
}

impl Memory for Overtaken {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.memory.read(offset, bytes);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.memory.write(offset, bytes);
    }

    fn load_u64(&self, offset: u64) -> u64 {
        let old = if offset == 512 { self.old.lock().unwrap().pop_front() } else { None };
        old.unwrap_or_else(|| self.memory.load_u64(offset))
    }

    fn store_u64(&self, offset: u64, value: u64) {
        self.memory.store_u64(offset, value);
    }

    fn store_u8(&self, offset: u64, value: u8) {
        self.memory.store_u8(offset, value);
    }

    fn fence(&self) {}

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[test]
fn reader_does_not_take_a_slot_under_way_for_an_absent_one() {
    let ring = RingFile::new(16384, 512);
    publish(&ring, &["item one", "item two"]);
    // The third advance has begun: it will write over the slot of the first.
    edit(&ring, |bytes| bytes[512 + SLOTS_AT[0]..][..8].fill(0));
    let geometry = Geometry::new(SectorSize::DEFAULT, 32).unwrap();
    // Attaching loads the position, looking for the first item again.
    let memory = Overtaken { memory: Image::of(&ring.bytes()), old: Mutex::new([0, 12].into()) };
    let device = MappedDevice::over(memory, "overtaken", geometry);
    let mut consumer = Consumer::attach(device, "queue", "test").unwrap();
    let next = consumer.pop(Position::ZERO).unwrap().next;
    assert_eq!(consumer.pop(next).unwrap().bytes, b"item two");
    assert_eq!(consumer.unchecked_bytes(), 0);
}
