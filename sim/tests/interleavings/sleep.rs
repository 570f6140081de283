//! Producer and consumer that sleep until the other one has moved: with an item too many for the
//! ring, each has to wait for the other.

use crate::device::{Bell, Belled, Event, PAGE_WORDS};
use crate::explore::{Bound, caught, explore};
use crate::memory::{Shared, Who};
use crate::ring::{Fresh, PAIR, SECTOR_PAYLOAD, payload};
use loom::thread;
use shared_block_ring::device::Orders;
use shared_block_ring::device::bell::Sleeper;
use shared_block_ring::format::Side;
use shared_block_ring::wait::Wait;
use shared_block_ring::{Consumer, Error, Producer, RingDevice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

const ITEMS: u8 = 2;

/// Mutation of one end.
#[derive(Debug, Clone, Copy)]
struct Ways {
    /// Orders of its handle on the page with the announcements.
    page: Orders,
    looks_again: bool,
    rings_too_early: bool,
}

const PRODUCT: Ways = Ways { page: Orders::RING, looks_again: true, rings_too_early: false };

const NO_FENCE: Ways =
    Ways { page: Orders { fence: Ordering::Relaxed, ..Orders::RING }, ..PRODUCT };

const ASLEEP: &[&str] = &["deadlock"];

/// Repeats `attempt` until it succeeds, and sleeps in between as the programs do.
fn wait_for<D: RingDevice, H>(
    handle: &mut H,
    device: impl Fn(&H) -> &D,
    ways: Ways,
    mut step: impl FnMut(&mut H) -> Result<(), Error>,
) {
    // An end with a bell waits for that.
    let mut wait = Wait::new(Side::Producer, None);
    loop {
        match step(handle) {
            Ok(()) => return,
            Err(Error::Retry) => {}
            Err(e) => panic!("an end met {e}"),
        }
        wait.pause(device(handle), &[]).unwrap();
        if !ways.looks_again {
            wait.pause(device(handle), &[]).unwrap();
        }
    }
}

/// Returns the number of sleeps of the producer, and of the consumer.
fn pair(fresh: &Fresh, producing: Ways, consuming: Ways) -> (u64, u64) {
    let memory = fresh.shared(PAIR);
    let page = Shared::page(&PAGE_WORDS, PAIR.threads);
    let events = [Arc::new(Event::default()), Arc::new(Event::default())];
    let belled = |who, ways: Ways| {
        let mut bells = [(Sleeper::Host, &events[0]), (Sleeper::Backend, &events[1])];
        if who == Who::Producer {
            bells.reverse();
        }
        let [ours, theirs] =
            bells.map(|(sleeper, event)| Bell::new(page.with(who, ways.page), sleeper, event));
        let region = fresh.device(&memory, who, Orders::RING);
        Belled::new(region, ours, theirs, ways.rings_too_early)
    };
    let mut producer =
        Producer::attach(belled(Who::Producer, producing), "queue", "model").unwrap();
    let mut consumer =
        Consumer::attach(belled(Who::Consumer, consuming), "queue", "model").unwrap();
    let consuming_end = thread::spawn(move || {
        for number in 1..=ITEMS {
            wait_for(&mut consumer, Consumer::device, consuming, |consumer| {
                let item = consumer.pop(consumer.position())?;
                assert!(item.bytes == payload(number, SECTOR_PAYLOAD), "item {number} is another");
                let next = item.next;
                consumer.advance(next)
            });
        }
        consumer.device().sleeps()
    });
    for number in 1..=ITEMS {
        wait_for(&mut producer, Producer::device, producing, |producer| {
            let end = producer.push(&payload(number, SECTOR_PAYLOAD))?;
            producer.advance(end)
        });
    }
    (producer.device().sleeps(), consuming_end.join().unwrap())
}

fn mutant(producing: Ways, consuming: Ways) {
    let fresh = Fresh::new(1, true);
    caught(ASLEEP, move || pair(&fresh, producing, consuming));
}

#[test]
fn both_ends_sleep_and_are_woken() {
    let fresh = Fresh::new(1, true);
    let outcomes = explore(Bound::Preemptions(4, Some(6)), move || pair(&fresh, PRODUCT, PRODUCT));
    assert!(outcomes.iter().any(|&(producer, consumer)| producer > 0 && consumer > 0));
}

#[test]
fn end_that_does_not_look_again_sleeps_for_ever() {
    let hasty = Ways { looks_again: false, ..PRODUCT };
    mutant(hasty, PRODUCT);
    mutant(PRODUCT, hasty);
}

#[test]
fn end_that_wakes_before_it_publishes_leaves_the_other_asleep() {
    let early = Ways { rings_too_early: true, ..PRODUCT };
    mutant(early, PRODUCT);
    mutant(PRODUCT, early);
}

#[test]
fn end_without_its_fences_sleeps_for_ever_or_leaves_the_other_asleep() {
    mutant(NO_FENCE, PRODUCT);
    mutant(PRODUCT, NO_FENCE);
}
