//! Histories of a guest that consumes, with the host's producer.

use crate::lives::{self, End, Plan};
use crate::snapshotted::Snapshotted;
use crate::stream::{Published, Step, end_of, item};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ring_test_support::executor_disk::{Disk, Driver};
use shared_block_ring::format::Side;
use shared_block_ring::{Consumer, Error, MappedDevice, Position, Producer};
use std::sync::Arc;

/// A consumer in the guest.
struct Receiver<'a, 'd> {
    device: &'a Snapshotted<'a, 'd>,
    end: Consumer<&'a Snapshotted<'a, 'd>>,
    at: Position,
    superseded: u32,
    stream: Published,
}

impl<'a, 'd> Receiver<'a, 'd> {
    fn new(device: &'a Snapshotted<'a, 'd>, stream: &Published) -> Self {
        let end = Consumer::attach(device, "q", "receiver").unwrap();
        let (at, stream) = (end.position(), Arc::clone(stream));
        Self { device, end, at, superseded: 0, stream }
    }

    fn pop(&mut self, count: usize) -> Result<(), Error> {
        for _ in 0..count {
            let popped = self.end.pop(self.at)?;
            let stream = self.stream.lock().unwrap();
            let (end, bytes) = stream.behind(self.at.get()).unwrap();
            assert_eq!((popped.next.get(), popped.bytes), (*end, &bytes[..]));
            self.at = popped.next;
        }
        Ok(())
    }
}

impl End for Receiver<'_, '_> {
    fn step(&mut self, step: &Step) {
        let outcome = match step {
            Step::Move(lengths) => self.pop(lengths.len()),
            Step::Advance(_) => self.end.advance(self.at),
            Step::Again => {
                self.end = Consumer::attach(self.device, "q", "again").unwrap();
                self.at = self.end.position();
                Ok(())
            }
        };
        match outcome {
            Ok(()) | Err(Error::Retry) => {}
            Err(Error::Superseded { side, ring, from, to, items }) => {
                self.superseded += 1;
                assert_eq!((side, to), (Side::Consumer, ring));
                assert_eq!(self.end.position(), ring);
                let stream = self.stream.lock().unwrap();
                let elsewhere = |end: u64| end > from.get() && end <= to.get();
                let count = stream.0.iter().filter(|(end, _)| elsewhere(*end)).count();
                assert_eq!(items, Some(count as u64));
                self.at = ring;
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn superseded(&self) -> u32 {
        self.superseded
    }

    fn is_past(&self, end: u64) -> bool {
        self.end.position().get() >= end
    }
}

/// Publishes items on the host, as far as there is space.
fn put(
    producer: &mut Producer<MappedDevice>,
    stream: &Published,
    number: &mut u64,
    lengths: &[usize],
) {
    let mut at = producer.position().get();
    for &len in lengths {
        let item = item(7, *number, len);
        match producer.push(&item[..]) {
            Ok(end) => {
                at = end_of(at, &item);
                assert_eq!(at, end.get());
                stream.lock().unwrap().0.push((at, item));
                *number += 1;
            }
            Err(Error::Retry | Error::TooLarge { .. }) => break,
            Err(e) => panic!("{e}"),
        }
    }
    producer.advance(producer.position()).unwrap();
}

/// Runs one history of a guest that consumes. Returns how often its restored consumer was
/// superseded.
pub fn history(seed: u64) -> u32 {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut disk = Disk::with(Side::Consumer, false, random.random_range(4..9), |_| ());
    let stream = Published::default();
    let mut host = Producer::attach(disk.outside()(), "q", "sender").unwrap();
    let (queue, mut paces, mut number) = (Arc::clone(&stream), SmallRng::seed_from_u64(!seed), 0);
    let longest = if random.random_bool(0.6) { 9 } else { 300 };
    let driver = Driver::distrusted(&mut disk, move || {
        let most = if paces.random_bool(0.3) { paces.random_range(0..8) } else { 0 };
        let lengths: Vec<_> = (0..most).map(|_| paces.random_range(8..longest)).collect();
        put(&mut host, &queue, &mut number, &lengths);
    });
    let plan = Plan { early: 20, late: 40, restored: 20, more: Step::Move(vec![0; 8]) };
    lives::told(&plan, &mut random, &driver, &stream, |device| {
        Box::new(Receiver::new(device, &stream))
    })
}
