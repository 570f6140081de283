//! Repair of damaged rings: what it restores, and the items that are delivered then.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use shared_block_ring::format::{EXTENSION, SLOTS_AT};
use shared_block_ring::{Error, Position, Repair, check};

const SECTOR: usize = 512;

/// Three items of 12 bytes with framing, the first one consumed.
fn ring() -> RingFile {
    let ring = RingFile::new(16384, 512);
    let mut producer = ring.producer().unwrap();
    for item in ["item one", "item two", "item 333"] {
        let end = producer.push(item).unwrap();
        producer.advance(end).unwrap();
    }
    let mut consumer = ring.consumer().unwrap();
    let next = consumer.pop(Position::ZERO).unwrap().next;
    consumer.advance(next).unwrap();
    ring
}

fn damaged(change: impl Fn(&mut [u8])) -> RingFile {
    let ring = ring();
    let mut bytes = ring.bytes();
    change(&mut bytes);
    std::fs::write(&ring.path, bytes).unwrap();
    ring
}

/// Repairs, and answers what is delivered then and the words of the repair.
fn repaired(ring: &RingFile) -> (Vec<String>, String) {
    let plan = Repair::plan(&ring.open()).unwrap();
    assert!(!plan.fixes.is_empty());
    assert_eq!(plan.old, ring.bytes()[..3 * SECTOR]);
    plan.write(&ring.open()).unwrap();
    check(ring.open()).unwrap();
    assert_eq!(Repair::plan(&ring.open()).unwrap().fixes, [], "once is enough");
    let mut consumer = ring.consumer().unwrap();
    let start = consumer.position();
    let (end, items) = consumer
        .fold(start, Vec::new(), |mut items, item| {
            items.push(String::from_utf8(item.bytes.to_vec()).unwrap());
            items
        })
        .unwrap();
    consumer.advance(end).unwrap();
    // And it goes on.
    let mut producer = ring.producer().unwrap();
    let next = producer.push("more").unwrap();
    producer.advance(next).unwrap();
    assert_eq!(consumer.pop(end).unwrap().bytes, b"more");
    (items, plan.fixes.iter().map(|fix| fix.what.clone() + "\n").collect())
}

#[test]
fn repair_leaves_a_sound_ring_alone() {
    assert_eq!(Repair::plan(&ring().open()).unwrap().fixes, []);
    let plain = RingFile::blank(16384, 512);
    let options = shared_block_ring::CreateOptions::new().plain(true);
    shared_block_ring::create(&plain.open(), options).unwrap();
    assert_eq!(Repair::plan(&plain.open()).unwrap().fixes, []);
}

#[test]
fn repair_restores_every_byte_of_the_first_sectors_but_their_text() {
    let sound = ring();
    let positions = |ring: &RingFile| {
        let facts = ring.consumer().unwrap().debug_info().unwrap();
        (facts.producer, facts.consumer)
    };
    let expected = positions(&sound);
    for byte in (0..84).chain(SECTOR..SECTOR + 128).chain(2 * SECTOR..2 * SECTOR + 128) {
        let ring = damaged(|bytes| bytes[byte] ^= 0x55);
        let plan = Repair::plan(&ring.open()).unwrap_or_else(|e| panic!("byte {byte}: {e}"));
        plan.write(&ring.open()).unwrap();
        check(ring.open()).unwrap_or_else(|e| panic!("byte {byte}: {e}"));
        assert_eq!(positions(&ring), expected, "byte {byte}");
    }
}

#[test]
fn repair_restores_a_wiped_signature_with_its_uuid() {
    let uuid = |ring: &RingFile| ring.consumer().unwrap().debug_info().unwrap().uuid;
    let ring = damaged(|bytes| bytes[..30].fill(0));
    assert!(ring.consumer().is_err());
    let (items, words) = repaired(&ring);
    assert_eq!(items, ["item two", "item 333"]);
    assert!(words.contains("its UUID is kept"), "{words}");
    assert!(uuid(&ring).is_some());
}

#[test]
fn repair_restores_a_pointer_from_its_slot() {
    let ring = damaged(|bytes| bytes[SECTOR..SECTOR + 8].fill(0x44));
    let (items, words) = repaired(&ring);
    assert_eq!(items, ["item two", "item 333"]);
    assert!(words.contains("becomes 36, as its slot says"), "{words}");
}

#[test]
fn repair_of_a_lost_consumer_delivers_the_first_lap_again() {
    let ring = damaged(|bytes| bytes[2 * SECTOR..2 * SECTOR + 128].fill(0x99));
    let (items, words) = repaired(&ring);
    assert_eq!(items, ["item one", "item two", "item 333"]);
    assert!(words.contains("cannot be right and becomes 0"), "{words}");
}

#[test]
fn repair_ends_the_ring_in_front_of_a_broken_length() {
    let ring = damaged(|bytes| bytes[3 * SECTOR + 24 + 2] = 9);
    let (items, words) = repaired(&ring);
    assert_eq!(items, ["item two"]);
    assert!(words.contains("the items behind are lost"), "{words}");
}

#[test]
fn repair_refuses_a_device_without_a_ring() {
    let blank = RingFile::blank(16384, 512);
    assert!(matches!(Repair::plan(&blank.open()), Err(Error::Format(_))));
    let noise = damaged(|bytes| {
        bytes[..SECTOR].fill(7);
        bytes[SECTOR..][EXTENSION].fill(7);
        bytes[2 * SECTOR + SLOTS_AT[0]] ^= 1;
    });
    assert!(matches!(Repair::plan(&noise.open()), Err(Error::Format(_))));
}

#[test]
fn repair_moves_a_blank_producer_to_the_consumer_and_reuses_no_position() {
    let ring = damaged(|bytes| bytes[SECTOR..2 * SECTOR].fill(0));
    let (items, words) = repaired(&ring);
    assert_eq!(items, [""; 0]);
    assert!(words.contains("producer sector is blank: its position is lost"), "{words}");
    assert_eq!(ring.consumer().unwrap().position().get(), 12, "positions begin again");
}

#[test]
fn repair_of_a_blank_consumer_delivers_again() {
    let ring = damaged(|bytes| bytes[2 * SECTOR..3 * SECTOR].fill(0));
    let (items, words) = repaired(&ring);
    assert_eq!(items, ["item one", "item two", "item 333"]);
    assert!(words.contains("consumer sector is blank: its position is lost"), "{words}");
}
