//! Suspending a ring in use: `suspend` and position have one sector and two writers, and an
//! acknowledgement is final.

use crate::explore::{Bound, caught, explore};
use crate::memory::{Plan, Shared, Who};
use crate::ring::{Fresh, PAIR, SECTOR_PAYLOAD, payload};
use loom::thread;
use ring_simulation::unlocked;
use shared_block_ring::device::{MappedDevice, Memory, Orders};
use shared_block_ring::format::Side;
use shared_block_ring::{Consumer, Control, Error, Position, RingDevice, State};
use std::sync::atomic::Ordering;

const ITEM: u64 = SECTOR_PAYLOAD as u64 + 4;

/// Runs a consumer that advances over two items, and a suspend by another process meanwhile.
fn two_writers<D: RingDevice + 'static>(fresh: &Fresh, device: impl Fn(MappedDevice<Shared>) -> D) {
    let memory = fresh.shared(Plan { suspender: Who::Control, ..PAIR });
    let mut producer = fresh.producer(&memory, Orders::RING);
    for number in 1..=2 {
        let end = producer.push(&payload(number, SECTOR_PAYLOAD)).unwrap();
        producer.advance(end).unwrap();
    }
    let [consumers, controls] =
        [Who::Consumer, Who::Control].map(|who| device(fresh.device(&memory, who, Orders::RING)));
    let mut consumer = Consumer::attach(consumers, "queue", "model").unwrap();
    let mut control = Control::open(controls).unwrap();
    let consuming = thread::spawn(move || {
        for _ in 0..2 {
            let next = consumer.pop(consumer.position()).unwrap().next;
            consumer.advance(next).unwrap();
        }
    });
    control.suspend().unwrap();
    consuming.join().unwrap();
    let facts = control.debug_info().unwrap();
    assert!(facts.suspend, "undone: the suspend");
    assert_eq!(facts.consumer.get(), 2 * ITEM, "undone: the advance");
    assert_eq!(facts.consumer_items, Some(2), "undone: the slot");
}

#[test]
fn suspend_and_advance_do_not_undo_each_other() {
    let fresh = Fresh::new(2, false);
    explore(Bound::Preemptions(3, Some(5)), move || two_writers(&fresh, |device| device));
}

#[test]
fn write_of_the_whole_pointer_sector_is_caught() {
    let fresh = Fresh::new(2, false);
    caught(&["stores another's bytes"], move || two_writers(&fresh, unlocked));
}

/// Runs a consumer that suspends a producer at work, and takes what it sees after the
/// acknowledgement for everything.
///
/// Returns the number of those items, if the suspend was acknowledged in time.
fn acknowledged(fresh: &Fresh, consuming: Orders) -> Option<u64> {
    let memory = fresh.shared(PAIR);
    let mut producer = fresh.producer(&memory, Orders::RING);
    let mut consumer = fresh.consumer(&memory, consuming);
    let suspending = thread::spawn(move || {
        consumer.suspend().unwrap();
        for _ in 0..2 {
            if consumer.state().unwrap() == State::Suspended {
                let (end, ()) = consumer.fold(Position::ZERO, (), |(), _| ()).unwrap();
                return Some(end);
            }
        }
        None
    });
    for number in 1..=2 {
        let advanced =
            producer.push(&payload(number, SECTOR_PAYLOAD)).and_then(|end| producer.advance(end));
        match advanced {
            Ok(()) => {}
            Err(Error::Suspended) => break,
            Err(e) => panic!("the producer met {e}"),
        }
    }
    let end = suspending.join().unwrap()?;
    let published = memory.load_u64(fresh.geometry().pointer_start(Side::Producer));
    assert_eq!(published, end.get(), "published behind the acknowledgement");
    Some(published / ITEM)
}

#[test]
fn consumer_sees_everything_after_the_acknowledgement() {
    let fresh = Fresh::new(2, true);
    let outcomes = explore(Bound::None, move || acknowledged(&fresh, Orders::RING));
    assert!(outcomes.contains(&None) && outcomes.contains(&Some(0)) && outcomes.contains(&Some(1)));
}

#[test]
fn unordered_reading_that_misses_published_items_is_caught() {
    let fresh = Fresh::new(2, true);
    let weaker = Orders { after_read: Ordering::Relaxed, ..Orders::RING };
    caught(&["published behind the acknowledgement"], move || acknowledged(&fresh, weaker));
}
