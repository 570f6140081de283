//! Sleeping and waking alone: the announcement and the value that is waited for, one word each.

use crate::device::{Bell, Event, PAGE_WORDS};
use crate::explore::{Bound, caught, explore};
use crate::memory::{Shared, Who};
use loom::thread;
use shared_block_ring::device::bell::Sleeper;
use shared_block_ring::device::{Memory, Orders};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A mutation.
#[derive(Debug, Clone, Copy)]
struct Ways {
    sleeper: Orders,
    ringer: Orders,
    looks_again: bool,
    publishes_first: bool,
}

const PRODUCT: Ways =
    Ways { sleeper: Orders::RING, ringer: Orders::RING, looks_again: true, publishes_first: true };

const NO_FENCE: Orders = Orders { fence: Ordering::Relaxed, ..Orders::RING };

/// A lost wake-up is a sleeper that no thread is left to wake.
const ASLEEP: &[&str] = &["deadlock"];

/// Runs a publisher, which wakes the other side after each store.
struct Ringer {
    bell: Bell,
    word: u64,
    memory: Shared,
    publishes_first: bool,
}

impl Ringer {
    fn publish(&self, value: u64) {
        if self.publishes_first {
            self.memory.store_u64(self.word, value);
            self.bell.ring();
        } else {
            self.bell.ring();
            self.memory.store_u64(self.word, value);
        }
    }
}

/// Waits as the backend holds a read: announce, look once more, give the thread back until the bell
/// rings.
///
/// Returns the number of sleeps.
fn hold(bell: &Bell, ways: Ways, moved: impl Fn() -> bool) -> u32 {
    let mut slept = 0;
    if moved() {
        return slept;
    }
    loop {
        bell.announce();
        if ways.looks_again && moved() {
            bell.awake();
            return slept;
        }
        bell.wait();
        slept += 1;
        bell.awake();
        if !ways.looks_again && moved() {
            return slept;
        }
    }
}

/// Runs a sleeper that waits for each of `values` in turn, and one publisher for each of `words`.
fn model(ways: Ways, words: &'static [usize], values: u64) -> u32 {
    let threads = words.len() + 1;
    let (page, memory) = (Shared::page(&PAGE_WORDS, threads), Shared::page(words, threads));
    let event = Arc::new(Event::default());
    let mut threads = Vec::new();
    for &word in words {
        let ringer = Ringer {
            bell: Bell::new(page.with(Who::Control, ways.ringer), Sleeper::Backend, &event),
            word: word as u64,
            memory: memory.with(Who::Control, ways.ringer),
            publishes_first: ways.publishes_first,
        };
        threads.push(thread::spawn(move || {
            for value in 1..=values {
                ringer.publish(value);
            }
        }));
    }
    let bell = Bell::new(page.with(Who::Control, ways.sleeper), Sleeper::Backend, &event);
    let reached = |value| words.iter().all(|&word| memory.load_u64(word as u64) >= value);
    let slept = (1..=values).map(|value| hold(&bell, ways, || reached(value))).sum();
    for thread in threads {
        thread.join().unwrap();
    }
    slept
}

#[test]
fn wake_up_is_never_lost() {
    let slept = explore(Bound::None, || model(PRODUCT, &[0], 1));
    assert!(slept.contains(&0) && slept.contains(&1));
}

#[test]
fn wake_up_is_never_lost_when_more_follows() {
    let slept = explore(Bound::Preemptions(4, None), || model(PRODUCT, &[0], 2));
    assert!(slept.contains(&0) && slept.contains(&2));
}

#[test]
fn wake_up_is_never_lost_when_two_sides_wake() {
    let slept = explore(Bound::Preemptions(3, Some(4)), || model(PRODUCT, &[0, 8], 1));
    assert!(slept.contains(&0) && slept.contains(&2));
}

fn mutant(ways: Ways) {
    caught(ASLEEP, move || model(ways, &[0], 1));
}

#[test]
fn announcement_without_its_fence_loses_a_wake_up() {
    mutant(Ways { sleeper: NO_FENCE, ..PRODUCT });
}

#[test]
fn publisher_without_its_fence_loses_a_wake_up() {
    mutant(Ways { ringer: NO_FENCE, ..PRODUCT });
}

#[test]
fn weaker_fence_on_either_side_loses_a_wake_up() {
    let weaker = Orders { fence: Ordering::AcqRel, ..Orders::RING };
    mutant(Ways { sleeper: weaker, ..PRODUCT });
    mutant(Ways { ringer: weaker, ..PRODUCT });
}

#[test]
fn sleeper_without_a_second_look_loses_a_wake_up() {
    mutant(Ways { looks_again: false, ..PRODUCT });
}

#[test]
fn publisher_that_wakes_first_loses_a_wake_up() {
    mutant(Ways { publishes_first: false, ..PRODUCT });
}
