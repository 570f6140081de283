//! Rings with slots: a reader that meets a writer anywhere finds the slot of its position, and
//! never calls a ring in use corrupt.

use crate::explore::{Bound, caught, explore};
use crate::memory::Who;
use crate::ring::{Fresh, PAIR, SECTOR_PAYLOAD, payload};
use loom::thread;
use shared_block_ring::device::Orders;
use shared_block_ring::{Control, Error};
use std::sync::atomic::Ordering;

/// The number of items: one for each of two slots, and one whose slot overwrites the older of them.
const ITEMS: u8 = 3;

/// Number of looks of the consumer.
const LOOKS: u64 = 2;

/// Runs a producer that advances item by item, and a consumer that looks meanwhile. Returns the
/// number of items it saw, and whether a look took more than one reading.
fn published(fresh: &Fresh, producing: Orders, consuming: Orders) -> (u8, bool) {
    let memory = fresh.shared(PAIR);
    let mut producer = fresh.producer(&memory, producing);
    let mut consumer = fresh.consumer(&memory, consuming);
    let publishing = thread::spawn(move || {
        for number in 1..=ITEMS {
            let end = producer.push(&payload(number, SECTOR_PAYLOAD)).unwrap();
            producer.advance(end).unwrap();
        }
    });
    let before = consumer.device().memory().loads();
    let (mut at, mut seen) = (consumer.position(), 0);
    for _ in 0..LOOKS {
        match consumer.pop(at) {
            Ok(item) => {
                seen += 1;
                assert!(item.bytes == payload(seen, SECTOR_PAYLOAD), "item {seen} is another");
                at = item.next;
            }
            Err(Error::Retry) => {}
            Err(e) => panic!("the consumer met {e}"),
        }
    }
    assert_eq!(consumer.unchecked_bytes(), 0, "a slot was overlooked");
    let readings = consumer.device().memory().loads() - before;
    publishing.join().unwrap();
    (seen, readings > LOOKS)
}

#[test]
fn published_items_are_verified_at_any_time() {
    let fresh = Fresh::new(u64::from(ITEMS), false);
    let bound = Bound::Preemptions(2, Some(3));
    let outcomes = explore(bound, move || published(&fresh, Orders::RING, Orders::RING));
    assert!(outcomes.contains(&(0, false)) && outcomes.contains(&(2, true)));
}

/// Runs a consumer that advances item by item, and a process that asks for diagnostics meanwhile.
fn consumed(fresh: &Fresh) -> u64 {
    let memory = fresh.shared(PAIR);
    let mut producer = fresh.producer(&memory, Orders::RING);
    for number in 1..=ITEMS {
        let end = producer.push(&payload(number, SECTOR_PAYLOAD)).unwrap();
        producer.advance(end).unwrap();
    }
    let mut consumer = fresh.consumer(&memory, Orders::RING);
    let control = Control::open(fresh.device(&memory, Who::Control, Orders::RING)).unwrap();
    let consuming = thread::spawn(move || {
        for _ in 1..=ITEMS {
            let next = consumer.pop(consumer.position()).unwrap().next;
            consumer.advance(next).unwrap();
        }
    });
    let facts = control.debug_info().unwrap();
    let items = facts.consumer.get() / (SECTOR_PAYLOAD as u64 + 4);
    // Before the first item there is no slot.
    assert_eq!(facts.consumer_items, (items > 0).then_some(items), "a slot was overlooked");
    consuming.join().unwrap();
    items
}

#[test]
fn diagnostics_count_the_items_before_the_position() {
    let fresh = Fresh::new(u64::from(ITEMS), false);
    let outcomes = explore(Bound::Preemptions(2, Some(4)), move || consumed(&fresh));
    assert_eq!(outcomes.len(), usize::from(ITEMS) + 1);
}

/// Errors that a reader of slots must not report for a sound ring.
const MISREAD: &[&str] = &["neither slot is whole", "a slot was overlooked"];

fn mutant(producing: Orders, consuming: Orders) {
    let fresh = Fresh::new(u64::from(ITEMS), false);
    caught(MISREAD, move || published(&fresh, producing, consuming));
}

#[test]
fn producer_that_does_not_release_its_slots_is_caught() {
    mutant(Orders { store: Ordering::Relaxed, ..Orders::RING }, Orders::RING);
}

#[test]
fn consumer_that_does_not_acquire_the_slots_is_caught() {
    mutant(Orders::RING, Orders { load: Ordering::Relaxed, ..Orders::RING });
}

#[test]
fn slot_overwritten_before_the_position_moves_is_caught() {
    mutant(Orders { before_write: Ordering::Relaxed, ..Orders::RING }, Orders::RING);
}

#[test]
fn second_reading_that_may_find_an_older_position_is_caught() {
    mutant(Orders::RING, Orders { after_read: Ordering::Relaxed, ..Orders::RING });
}
