//! A guest that is restored from an older snapshot, whose end of the ring is behind: nothing published changes, it is told, and goes on.
//!
//! The snapshot is taken between any two requests. A restored end is made by driving a second one through the same operations, with
//! the answers that the first one got up to that request; from there on it meets the ring as it is.
#![allow(clippy::unwrap_used)]

mod common;

use common::disk::{Disk, Driver};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::{Geometry, Side, framed_len};
use shared_block_ring::{BlockDevice, Consumer, Error, MappedDevice, Position, Producer};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Histories for each side of the ring.
const HISTORIES: u64 = 3000;

/// What a guest is told about its requests: the bytes of a read, nothing of others.
type Answers = Mutex<Vec<Vec<u8>>>;

/// The guest's disk, whose answers are kept, or, for the first so many requests, those that were kept.
struct Snapshotted<'a, 'd> {
    driver: &'a Driver<'d>,
    answers: &'a Answers,
    /// Requests before the snapshot; none of them reaches the disk again.
    before: usize,
    made: AtomicUsize,
}

impl<'a, 'd> Snapshotted<'a, 'd> {
    fn first_life(driver: &'a Driver<'d>, answers: &'a Answers) -> Self {
        Self { driver, answers, before: 0, made: AtomicUsize::new(0) }
    }

    fn restored(driver: &'a Driver<'d>, answers: &'a Answers, before: usize) -> Self {
        Self { driver, answers, before, made: AtomicUsize::new(0) }
    }

    fn is_restored(&self) -> bool {
        self.made.load(Ordering::Relaxed) >= self.before
    }

    /// The answer from before the snapshot.
    fn kept(&self) -> Option<Vec<u8>> {
        let index = self.made.fetch_add(1, Ordering::Relaxed);
        (index < self.before).then(|| self.answers.lock().unwrap()[index].clone())
    }

    fn keep(&self, answer: Vec<u8>) {
        self.answers.lock().unwrap().push(answer);
    }
}

impl BlockDevice for &Snapshotted<'_, '_> {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn geometry(&self) -> Geometry {
        self.driver.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let [buf] = bufs else { panic!("the library reads into one buffer") };
        if let Some(kept) = self.kept() {
            buf.copy_from_slice(&kept);
        } else {
            self.driver.read(first, &mut [IoSliceMut::new(buf)])?;
            self.keep(buf.to_vec());
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        if self.kept().is_some() {
            return Ok(());
        }
        self.keep(Vec::new());
        self.driver.write(first, bufs)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.kept().is_some() {
            return Ok(());
        }
        self.keep(Vec::new());
        self.driver.flush()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// What is published, or about to be: the items in order, each with the position behind it.
#[derive(Default)]
struct Stream(Vec<(u64, Vec<u8>)>);

impl Stream {
    fn end(&self) -> u64 {
        self.0.last().map_or(0, |(end, _)| *end)
    }

    fn at(&self, end: u64) -> Option<&Vec<u8>> {
        let index = self.0.binary_search_by_key(&end, |(end, _)| *end).ok()?;
        Some(&self.0[index].1)
    }

    /// The item that starts there.
    fn behind(&self, start: u64) -> Option<&(u64, Vec<u8>)> {
        self.0.get(self.0.partition_point(|(end, _)| *end <= start))
    }
}

type Published = Arc<Mutex<Stream>>;

fn item(life: u8, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![life; len];
    bytes.iter_mut().zip(number.to_le_bytes()).for_each(|(byte, digit)| *byte ^= digit);
    bytes
}

fn end_of(start: u64, item: &[u8]) -> u64 {
    start + framed_len(u32::try_from(item.len()).unwrap())
}

#[derive(Debug, Clone)]
enum Step {
    /// A batch of items of these lengths, or as many items popped.
    Move(Vec<usize>),
    /// Over the first so many of the pushed batches, or over all that was popped.
    Advance(usize),
    /// The process ends and another one takes its place.
    Again,
}

fn steps(random: &mut SmallRng, most: usize, again: bool) -> Vec<Step> {
    let count = random.random_range(0..most);
    // Of equal lengths more often than not: then positions of different histories are the same.
    let longest = if random.random_bool(0.6) { 9 } else { 300 };
    (0..count)
        .map(|_| match random.random_range(0..10) {
            0 if again => Step::Again,
            0..6 => Step::Move(
                (0..random.random_range(1..4)).map(|_| random.random_range(8..longest)).collect(),
            ),
            _ => Step::Advance(random.random_range(1..6)),
        })
        .collect()
}

/// A producer in the guest.
struct Sender<'a, 'd> {
    device: &'a Snapshotted<'a, 'd>,
    end: Producer<&'a Snapshotted<'a, 'd>>,
    life: u8,
    number: u64,
    /// Not yet advanced over.
    pushed: Vec<(u64, Vec<u8>)>,
    /// Of the batches among them.
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

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }

    fn step(&mut self, step: &Step) {
        let outcome = match step {
            Step::Move(lengths) => self.push(lengths),
            Step::Advance(batches) => self.advance(*batches),
            Step::Again => {
                // What was pushed goes first: a restored one may have it pushed, and its bytes must not be others.
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

    /// What was pushed before `from` must be published, as it was pushed. How many items are behind it.
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

    /// What lies before `end` is published, or gone.
    fn forget(&mut self, end: u64) {
        self.pushed.retain(|(at, _)| *at > end);
        self.ends.retain(|at| *at > end);
    }

    fn advance(&mut self, batches: usize) -> Result<(), Error> {
        let Some(&end) = self.ends.iter().take(batches).next_back() else { return Ok(()) };
        // Before: the host can have consumed them when `advance` returns.
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

/// Takes up to `most` items on the host.
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

/// One history of a guest that produces. How often its restored producer was told.
fn produced(seed: u64) -> u32 {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut disk = Disk::with(Side::Producer, false, random.random_range(4..9), |_| ());
    let stream = Published::default();
    let mut host = disk.consumer();
    let (queue, mut paces) = (Arc::clone(&stream), SmallRng::seed_from_u64(!seed));
    let driver = Driver::distrusted(&mut disk, move || {
        let most = if paces.random_bool(0.2) { paces.random_range(0..6) } else { 0 };
        take(&mut host, &queue, most);
    });
    let (early, late) = (steps(&mut random, 12, false), steps(&mut random, 12, true));
    let answers = Answers::default();
    let first = Snapshotted::first_life(&driver, &answers);
    let mut life = Sender::new(&first, &stream);
    let attached = answers.lock().unwrap().len();
    life.steps(&early);
    let requests = answers.lock().unwrap().len();
    life.life = 1;
    life.steps(&late);
    assert_eq!(life.superseded, 0, "nobody has moved what it has moved");
    drop(life);

    let before = random.random_range(attached..=requests);
    let second = Snapshotted::restored(&driver, &answers, before);
    let mut life = Sender::new(&second, &stream);
    life.life = 2;
    life.steps(&early);
    life.steps(&steps(&mut random, 12, true));
    // It goes on, whatever was.
    let end = stream.lock().unwrap().end();
    for _ in 0..10_000 {
        life.step(&Step::Move(vec![8]));
        life.step(&Step::Advance(usize::MAX));
        if stream.lock().unwrap().end() > end {
            break;
        }
    }
    assert!(stream.lock().unwrap().end() > end);
    assert!(life.superseded <= 1);
    life.superseded
}

#[test]
fn a_restored_producer_is_told_and_goes_on_and_nothing_published_changes() {
    let told: u32 = (0..HISTORIES).map(|seed| told_of(seed, produced)).sum();
    println!("{told} of {HISTORIES} restored producers were told that they are superseded");
    assert!(u64::from(told) > HISTORIES / 4 && u64::from(told) < HISTORIES);
}

/// Names the seed of a history that fails.
fn told_of(seed: u64, history: impl Fn(u64) -> u32 + std::panic::RefUnwindSafe) -> u32 {
    std::panic::catch_unwind(|| history(seed)).unwrap_or_else(|_| panic!("seed {seed}"))
}

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

    fn steps(&mut self, steps: &[Step]) {
        for step in steps {
            self.step(step);
        }
    }

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

/// Publishes items on the host, where there is room.
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

/// One history of a guest that consumes. How often its restored consumer was told.
fn consumed(seed: u64) -> u32 {
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
    let (early, late) = (steps(&mut random, 20, false), steps(&mut random, 40, true));
    let answers = Answers::default();
    let first = Snapshotted::first_life(&driver, &answers);
    let mut life = Receiver::new(&first, &stream);
    let attached = answers.lock().unwrap().len();
    life.steps(&early);
    let requests = answers.lock().unwrap().len();
    life.steps(&late);
    assert_eq!(life.superseded, 0, "nobody has moved what it has moved");
    drop(life);

    let before = random.random_range(attached..=requests);
    let second = Snapshotted::restored(&driver, &answers, before);
    let mut life = Receiver::new(&second, &stream);
    life.steps(&early);
    life.steps(&steps(&mut random, 20, true));
    // It gets all that is published by now, and frees it.
    let end = stream.lock().unwrap().end();
    for _ in 0..10_000 {
        life.step(&Step::Move(vec![0; 8]));
        life.step(&Step::Advance(usize::MAX));
        if life.end.position().get() >= end {
            break;
        }
    }
    assert!(life.end.position().get() >= end);
    assert!(life.superseded <= 1);
    life.superseded
}

#[test]
fn a_restored_consumer_is_told_and_frees_nothing_twice() {
    let told: u32 = (0..HISTORIES).map(|seed| told_of(seed, consumed)).sum();
    println!("{told} of {HISTORIES} restored consumers were told that they are superseded");
    assert!(u64::from(told) > HISTORIES / 4 && u64::from(told) < HISTORIES);
}
