//! Histories of a guest that produces, with the host's consumer.

use crate::lives::{self, End, Plan};
use crate::snapshotted::Snapshotted;
use crate::stream::{Published, Step, end_of, item};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use ring_test_support::executor_disk::{Disk, Driver};
use shared_block_ring::format::Side;
use shared_block_ring::{Consumer, Error, MappedDevice, Position, Producer};
use std::sync::Arc;

/// A producer in the guest.
struct Sender<'a, 'd> {
    device: &'a Snapshotted<'a, 'd>,
    end: Producer<&'a Snapshotted<'a, 'd>>,
    life: u8,
    number: u64,
    /// Items that are not published yet.
    pushed: Vec<(u64, Vec<u8>)>,
    /// The ends of their batches.
    ends: Vec<u64>,
    superseded: u32,
    stream: Published,
}

impl<'a, 'd> Sender<'a, 'd> {
    fn new(device: &'a Snapshotted<'a, 'd>, stream: &Published) -> Self {
        let end = Producer::attach(device, "q", "sender").unwrap();
        let stream = Arc::clone(stream);
        let (pushed, ends) = (Vec::new(), Vec::new());
        Self { device, end, life: 0, number: 0, pushed, ends, superseded: 0, stream }
    }

    /// Checks that items pushed in front of `from` are published as they were pushed. Returns the
    /// number of items behind it.
    fn account_for(&self, from: u64) -> u64 {
        let stream = self.stream.lock().unwrap();
        let (known, lost): (Vec<_>, Vec<_>) = self.pushed.iter().partition(|(end, _)| *end <= from);
        for (end, bytes) in known {
            assert_eq!(stream.at(*end), Some(bytes));
        }
        lost.len() as u64
    }

    fn push(&mut self, lengths: &[usize]) -> Result<(), Error> {
        let life = if self.device.is_restored() { self.life } else { 0 };
        let items: Vec<_> =
            (self.number..).zip(lengths).map(|(n, &len)| item(life, n, len)).collect();
        let mut at = self.end.position().get();
        let end = self.end.push_batch(&items)?;
        self.number += items.len() as u64;
        for item in items {
            at = end_of(at, &item);
            self.pushed.push((at, item));
        }
        assert_eq!(at, end.get());
        self.ends.push(at);
        Ok(())
    }

    /// Forgets the items in front of `end`: they are published, or lost.
    fn forget(&mut self, end: u64) {
        self.pushed.retain(|(at, _)| *at > end);
        self.ends.retain(|at| *at > end);
    }

    fn advance(&mut self, batches: usize) -> Result<(), Error> {
        let Some(&end) = self.ends.iter().take(batches).next_back() else { return Ok(()) };
        // Counted before `advance`: the host may have consumed them when it returns.
        let old = self.stream.lock().unwrap().0.len();
        if self.stream.lock().unwrap().end() < end {
            let start = self.stream.lock().unwrap().end();
            let new = self.pushed.iter().filter(|(at, _)| (start + 1..=end).contains(at)).cloned();
            self.stream.lock().unwrap().0.extend(new);
        }
        match self.end.advance(Position::new(end).unwrap()) {
            Ok(()) => {
                self.account_for(end);
                self.forget(end);
                Ok(())
            }
            Err(e) => {
                self.stream.lock().unwrap().0.truncate(old);
                Err(e)
            }
        }
    }
}

impl End for Sender<'_, '_> {
    fn step(&mut self, step: &Step) {
        let outcome = match step {
            Step::Move(lengths) => self.push(lengths),
            Step::Advance(batches) => self.advance(*batches),
            Step::Again => {
                // Pushed items come first: the restored instance may have pushed them too, and must
                // push the same bytes.
                let _ = self.advance(usize::MAX);
                self.end = Producer::attach(self.device, "q", "again").unwrap();
                self.forget(u64::MAX);
                Ok(())
            }
        };
        match outcome {
            Ok(()) | Err(Error::Retry | Error::TooLarge { .. }) => {}
            Err(Error::Superseded { side, ring, from, to, items }) => {
                self.superseded += 1;
                assert_eq!(side, Side::Producer);
                assert_eq!(ring.get(), self.stream.lock().unwrap().end());
                assert_eq!(self.end.position(), ring);
                let lost = self.account_for(from.get());
                assert_eq!(items, Some(lost));
                assert!(self.pushed.last().is_none_or(|(end, _)| *end == to.get()));
                self.forget(u64::MAX);
            }
            Err(e) => panic!("{e}"),
        }
    }

    fn live(&mut self, life: u8) {
        self.life = life;
    }

    fn superseded(&self) -> u32 {
        self.superseded
    }

    fn is_past(&self, end: u64) -> bool {
        self.stream.lock().unwrap().end() > end
    }
}

/// Pops up to `most` items on the host.
fn take(consumer: &mut Consumer<MappedDevice>, stream: &Published, most: usize) {
    let mut at = consumer.position();
    for _ in 0..most {
        match consumer.pop(at) {
            Ok(popped) => {
                let stream = stream.lock().unwrap();
                let (end, bytes) = stream.behind(at.get()).unwrap();
                assert_eq!((popped.next.get(), popped.bytes), (*end, &bytes[..]));
                at = popped.next;
            }
            Err(Error::Retry) => break,
            Err(e) => panic!("{e}"),
        }
    }
    consumer.advance(at).unwrap();
}

/// Runs one history of a guest that produces. Returns how often its restored producer was
/// superseded.
pub fn history(seed: u64) -> u32 {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut disk = Disk::with(Side::Producer, false, random.random_range(4..9), |_| ());
    let stream = Published::default();
    let mut host = disk.consumer();
    let (queue, mut paces) = (Arc::clone(&stream), SmallRng::seed_from_u64(!seed));
    let driver = Driver::distrusted(&mut disk, move || {
        let most = if paces.random_bool(0.2) { paces.random_range(0..6) } else { 0 };
        take(&mut host, &queue, most);
    });
    let plan = Plan { early: 12, late: 12, restored: 12, more: Step::Move(vec![8]) };
    lives::told(&plan, &mut random, &driver, &stream, |device| {
        Box::new(Sender::new(device, &stream))
    })
}
