//! A wait as a descriptor: no wake-up is lost, and an idle ring costs next to nothing.
#![allow(clippy::unwrap_used)]

use ring_test_support::RingFile;
use ring_test_support::backend::{Backend, Served, Word};
use shared_block_ring::device::Displaced;
use shared_block_ring::wait::{Readiness, wait_readable};
use shared_block_ring::{Consumer, Error, Producer, RingDevice};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

type Device = Box<dyn RingDevice>;

/// Longest wait for what has to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a small ring.
const BYTES: usize = 64 << 10;

/// A consumer with an event loop of one descriptor.
struct Loop {
    consumer: Consumer<Device>,
    readiness: Readiness,
}

impl Loop {
    fn new(device: Device) -> Self {
        let consumer = Consumer::attach(device, "queue", "consumer").unwrap();
        Self { consumer, readiness: Readiness::for_items().unwrap() }
    }

    /// Takes the next item, or returns `None` when the descriptor is to be waited for.
    fn look(&mut self) -> Result<Option<String>, Error> {
        loop {
            match self.consumer.pop_as::<String>(self.consumer.position()) {
                Ok((next, item)) => {
                    self.consumer.advance(next)?;
                    return Ok(Some(item));
                }
                Err(Error::Retry) if self.readiness.arm(self.consumer.device())? => {}
                Err(Error::Retry) => return Ok(None),
                Err(e) => return Err(e),
            }
        }
    }

    fn is_readable_within(&self, time: Duration) -> bool {
        wait_readable(&[self.readiness.as_fd()], Some(time)).unwrap().is_some()
    }

    fn next(&mut self) -> Result<String, Error> {
        loop {
            if let Some(item) = self.look()? {
                return Ok(item);
            }
            assert!(self.is_readable_within(PATIENCE), "the descriptor did not become readable");
        }
    }

    /// Counts the looks until nothing has moved for so long.
    fn looks_in(&mut self, time: Duration) -> u32 {
        let end = Instant::now() + time;
        let mut looks = 0;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            assert_eq!(self.look().unwrap(), None);
            looks += u32::from(self.is_readable_within(left));
        }
        looks
    }
}

fn publish<D: RingDevice>(producer: &mut Producer<D>, item: &str) {
    let end = loop {
        match producer.push(item) {
            Err(Error::Retry) => std::thread::yield_now(),
            pushed => break pushed.unwrap(),
        }
    };
    producer.advance(end).unwrap();
}

#[test]
fn no_wake_up_of_a_backend_is_lost_between_two_threads() {
    const ITEMS: u32 = 3000;
    let (mut served, device) = Served::new();
    let mut wait = Loop::new(device);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..ITEMS {
                publish(&mut served.producer, &number.to_string());
                served.client.ring();
            }
        });
        for number in 0..ITEMS {
            assert_eq!(wait.next().unwrap(), number.to_string());
        }
    });
}

#[test]
fn items_of_a_file_are_seen_without_a_wake_up() {
    let file = RingFile::new(BYTES, 512);
    let mut producer = file.producer().unwrap();
    let mut wait = Loop::new(Box::new(file.open()));
    for round in 0..20 {
        assert_eq!(wait.look().unwrap(), None);
        publish(&mut producer, &round.to_string());
        assert_eq!(wait.next().unwrap(), round.to_string());
    }
}

#[test]
fn idle_rings_are_looked_at_once_a_second_with_a_backend_and_every_4_ms_without() {
    let (mut served, device) = Served::new();
    let mut wait = Loop::new(device);
    let looks = wait.looks_in(Duration::from_millis(2500));
    assert!(looks <= 3, "{looks} looks in 2.5 s at a ring that wakes");
    // And it still sleeps on the backend.
    publish(&mut served.producer, "item");
    assert!(served.client.ring(), "it does not sleep");
    assert_eq!(wait.next().unwrap(), "item");

    let file = RingFile::new(BYTES, 512);
    let mut wait = Loop::new(Box::new(file.open()));
    let looks = wait.looks_in(Duration::from_secs(1));
    // Some short pauses come first.
    assert!(looks <= 270, "{looks} looks in a second");
}

#[test]
fn descriptor_of_a_busy_ring_is_readable_after_each_wake_up_alone() {
    let (mut served, device) = Served::new();
    let mut wait = Loop::new(device);
    for round in 0..100 {
        let item = round.to_string();
        assert_eq!(wait.look().unwrap(), None);
        publish(&mut served.producer, &item);
        assert!(served.client.ring(), "it does not sleep");
        assert!(wait.is_readable_within(Duration::ZERO));
        // Nobody asks for a wake-up while it reads.
        assert_eq!(wait.look().unwrap(), Some(item));
        assert!(!served.client.ring());
    }
}

#[test]
fn backend_that_was_away_is_found_again() {
    let (mut served, device) = Served::new();
    let mut wait = Loop::new(device);
    assert_eq!(wait.look().unwrap(), None);
    for round in 0..3 {
        // An item that was published before the backend ended is read while the backend is away.
        publish(&mut served.producer, "before");
        let backend = {
            std::fs::remove_file(served.file.path.with_extension("socket")).unwrap();
            Backend::new(&served.file, Word::Guarded)
        };
        let (_, old) = (round, served.client);
        drop(old);
        assert_eq!(wait.next().unwrap(), "before");
        served.client = std::thread::scope(|scope| {
            let serving = scope.spawn(|| backend.accept());
            while !serving.is_finished() {
                assert_eq!(wait.look().unwrap(), None);
                wait.is_readable_within(Duration::from_millis(100));
            }
            serving.join().unwrap()
        });
        // The answer is taken in one of the next looks.
        let end = Instant::now() + PATIENCE;
        while {
            assert_eq!(wait.look().unwrap(), None);
            assert!(Instant::now() < end, "the new backend is not slept on");
            publish(&mut served.producer, "after");
            !served.client.ring()
        } {
            assert_eq!(wait.next().unwrap(), "after");
        }
        assert_eq!(wait.next().unwrap(), "after");
        assert_eq!(wait.look().unwrap(), None);
    }
}

#[test]
fn ring_that_was_removed_is_reported() {
    let file = RingFile::new(BYTES, 512);
    let mut wait = Loop::new(Box::new(file.open()));
    assert_eq!(wait.look().unwrap(), None);
    std::fs::remove_file(&file.path).unwrap();
    match wait.next() {
        Err(Error::Device(e)) => assert_eq!(Displaced::of(&e), Some(&Displaced::Removed)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn producer_waits_for_space() {
    let file = RingFile::new(16 << 10, 512);
    let mut consumer = Consumer::attach(file.open(), "queue", "consumer").unwrap();
    let mut producer = file.producer().unwrap();
    let mut readiness = Readiness::for_space().unwrap();
    let item = [7u8; 4000];
    while let Ok(end) = producer.push(&item) {
        producer.advance(end).unwrap();
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            let next = consumer.pop(consumer.position()).unwrap().next;
            consumer.advance(next).unwrap();
        });
        loop {
            match producer.push(&item) {
                Ok(_) => break,
                Err(Error::Retry) if readiness.arm(producer.device()).unwrap() => {}
                Err(Error::Retry) => {
                    let readable = wait_readable(&[readiness.as_fd()], Some(PATIENCE)).unwrap();
                    assert_eq!(readable, Some(0));
                }
                Err(e) => panic!("{e}"),
            }
        }
    });
}
