//! Items from a producer to a consumer: through our backend, and through a file.

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::figures::{Distribution, Items};
use crate::front::{REGION, START};
use crate::machine::{Processors, median, nanoseconds, pin};
use nix::time::{ClockId, clock_gettime};
use qemu_tests::Daemon;
use shared_block_ring::format::Side;
use shared_block_ring::handover::Role;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{
    BlockDevice, Consumer, CreateOptions, Durability, OpenOptions, Producer, UnixDevice,
    VirtioDevice, create, make_file,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// Bytes of an item, and items pushed at once.
pub const SIZES: [usize; 3] = [64, 1 << 10, 64 << 10];
pub const BATCHES: [usize; 2] = [1, 64];

/// Bytes of the ring: more than front ends write when a backend has started.
pub const RING: u64 = START + REGION;

/// Between two items of which each is waited for: the consumer is asleep by then.
const PACE: Duration = Duration::from_micros(500);

/// Longer than a consumer takes to take what is there.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long, how often.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Of each kind.
    pub count: u32,
    /// Of each.
    pub time: Duration,
}

/// Our daemon, and the ways to it.
pub struct Served<'a> {
    /// The daemon.
    pub backend: &'a Backend,
    /// Where it hands the ring over.
    pub consumer: PathBuf,
}

/// Every way, size and batch.
pub fn all(
    served: &Served<'_>,
    dir: &Path,
    cpus: Processors,
    rounds: Rounds,
) -> Result<Vec<Items>> {
    served.backend.resume()?;
    let mut found = Vec::new();
    for bytes in SIZES {
        for batch in BATCHES {
            found.push(one_thread(served, bytes, batch, rounds)?);
            found.push(two_processes(served, dir, cpus, bytes, batch, rounds)?);
        }
    }
    served.backend.halt()?;
    found.push(file(dir, rounds)?);
    Ok(found)
}

/// Both ends in this thread.
fn one_thread(served: &Served<'_>, bytes: usize, batch: usize, rounds: Rounds) -> Result<Items> {
    let producer = producer(served)?;
    let consumer = consumer(&served.consumer)?;
    let mut ends = Ends { producer, consumer };
    ends.measure("one thread", bytes, batch, rounds)
}

/// Without a backend: a ring in a file.
fn file(dir: &Path, rounds: Rounds) -> Result<Items> {
    let path = dir.join("file.ring");
    let open = || OpenOptions::default().open(&path);
    make_file(&path, RING).map_err(crate::error::doing("making a ring"))?;
    create(&open()?, CreateOptions::default())?;
    let producer = quick(Producer::attach(open()?, "bench", "producer")?);
    let mut consumer = Consumer::attach(open()?, "bench", "consumer")?;
    consumer.set_durability(Durability::PageCache);
    Ends { producer, consumer }.measure("a file", 64, 64, rounds)
}

fn producer(served: &Served<'_>) -> Result<Producer<VirtioDevice>> {
    let device = VirtioDevice::connect(served.backend.socket(), None)?;
    Ok(quick(Producer::attach(device, "bench", "producer")?))
}

fn quick<D: BlockDevice>(mut producer: Producer<D>) -> Producer<D> {
    producer.set_durability(Durability::PageCache);
    producer
}

fn consumer(socket: &Path) -> Result<Consumer<UnixDevice>> {
    let device = UnixDevice::connect(socket, Role::Consumer)?;
    let mut consumer = Consumer::attach(device, "bench", "consumer")?;
    consumer.set_durability(Durability::PageCache);
    Ok(consumer)
}

/// Producer and consumer of one thread.
struct Ends<P, C: BlockDevice> {
    producer: Producer<P>,
    consumer: Consumer<C>,
}

impl<P: BlockDevice, C: BlockDevice> Ends<P, C> {
    fn measure(
        &mut self,
        way: &'static str,
        bytes: usize,
        batch: usize,
        rounds: Rounds,
    ) -> Result<Items> {
        let payload = vec![7u8; bytes];
        let items = vec![&payload[..]; batch];
        let mut latencies = Vec::with_capacity(1 << 20);
        let mut rates = Vec::new();
        self.pass(&items)?;
        for _ in 0..rounds.count {
            let start = Instant::now();
            let (mut passed, mut now) = (0, start);
            while now - start < rounds.time {
                self.pass(&items)?;
                passed += batch;
                let after = Instant::now();
                latencies.push(nanoseconds(after - now));
                now = after;
            }
            rates.push(passed as f64 / (now - start).as_secs_f64());
        }
        let latency = (batch == 1).then(|| Distribution::of(&mut latencies));
        Ok(Items { way, bytes, batch, rate: median(&mut rates), latency })
    }

    /// A batch from one end to the other.
    fn pass(&mut self, items: &[&[u8]]) -> Result<()> {
        let end = self.producer.push_batch(items)?;
        self.producer.advance(end)?;
        let mut at = self.consumer.position();
        while at < end {
            at = self.consumer.pop(at)?.next;
        }
        Ok(self.consumer.advance(end)?)
    }
}

/// The consumer is a process of its own, on the producer's processor since the backend has the other one. It sleeps when there is
/// nothing for it.
fn two_processes(
    served: &Served<'_>,
    dir: &Path,
    cpus: Processors,
    bytes: usize,
    batch: usize,
    rounds: Rounds,
) -> Result<Items> {
    let mut producer = producer(served)?;
    let program = std::env::current_exe().map_err(crate::error::doing("finding this program"))?;
    let mut command = Command::new(program);
    command.arg("--consume").arg(&served.consumer);
    command.arg("--cpus").arg(format!("{},{}", cpus.front, cpus.back));
    let logs = tempfile::tempdir_in(dir).map_err(crate::error::doing("making a folder"))?;
    let mut child = Daemon::spawn("consumer", command, logs.path())?;
    let attached = |child: &Daemon| child.printed() > 0;
    child.wait_for("attaching", PATIENCE, attached)?;
    let payload = vec![7u8; bytes];
    let mut rates = Vec::new();
    for _ in 0..rounds.count {
        let rate = stream(&mut producer, &payload, batch, rounds.time).map_err(|e| {
            // What the consumer has said tells more than that it no longer takes anything.
            let ended = child.wait_for("taking items", Duration::ZERO, |_| false);
            ended.err().map_or(e, Error::from)
        });
        rates.push(rate?);
    }
    if batch == 1 {
        let start = Instant::now();
        while start.elapsed() < rounds.time * rounds.count {
            push_one(&mut producer, &stamped(&payload, now()?))?;
            std::thread::sleep(PACE);
        }
    }
    push_one(&mut producer, &stamped(&payload, LAST))?;
    child.wait(PATIENCE)?;
    let text = String::from_utf8_lossy(&child.stdout()).into_owned();
    let mut times: Vec<f64> = text.lines().skip(1).filter_map(|line| line.parse().ok()).collect();
    let latency = (batch == 1 && !times.is_empty()).then(|| Distribution::of(&mut times));
    Ok(Items { way: "two processes", bytes, batch, rate: median(&mut rates), latency })
}

/// As much as the consumer takes; items in a second.
fn stream<D: BlockDevice>(
    producer: &mut Producer<D>,
    payload: &[u8],
    batch: usize,
    time: Duration,
) -> Result<f64> {
    let plain = stamped(payload, 0);
    let items = vec![&plain[..]; batch];
    let start = Instant::now();
    let mut passed = 0;
    let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
    while start.elapsed() < time {
        match producer.push_batch(&items) {
            Ok(end) => {
                producer.advance(end)?;
                passed += batch;
                wait = Wait::new(Side::Consumer, Some(PATIENCE));
            }
            Err(e) if e.is_transient() => {
                if wait.pause(producer.device(), &[])? == Woken::TimedOut {
                    return Err(Error::Stalled("the consumer"));
                }
            }
            Err(e) => return Err(e.into()),
        }
    }
    // What is in the ring is not there yet.
    let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
    while producer.debug_info()?.used > 0 {
        if wait.pause(producer.device(), &[])? == Woken::TimedOut {
            return Err(Error::Stalled("the consumer"));
        }
    }
    Ok(passed as f64 / start.elapsed().as_secs_f64())
}

fn push_one<D: BlockDevice>(producer: &mut Producer<D>, item: &[u8]) -> Result<()> {
    let end = producer.push(item)?;
    Ok(producer.advance(end)?)
}

/// Instead of a time: the end.
const LAST: u64 = u64::MAX;

fn stamped(payload: &[u8], stamp: u64) -> Vec<u8> {
    let mut item = payload.to_vec();
    item[..8].copy_from_slice(&stamp.to_le_bytes());
    item
}

/// Of a clock that all processes share, nanoseconds.
fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|e| crate::error::doing("reading the clock")(e.into()))?;
    Ok(u64::try_from(Duration::from(time).as_nanos()).unwrap_or(0))
}

/// The other process of [`two_processes`]: prints a line when it is there, and at the end how long each stamped item took.
pub fn consume(socket: &Path, cpus: Processors) -> Result<()> {
    pin(cpus.front)?;
    let mut consumer = consumer(socket)?;
    println!("attached");
    let mut times = Vec::new();
    let mut wait = Wait::new(Side::Producer, Some(PATIENCE));
    let mut last = false;
    while !last {
        let mut at = consumer.position();
        loop {
            match consumer.pop(at) {
                Ok(item) => {
                    let mut stamp = [0; 8];
                    stamp.copy_from_slice(&item.bytes[..8]);
                    match u64::from_le_bytes(stamp) {
                        0 => {}
                        LAST => last = true,
                        sent => times.push(now()?.saturating_sub(sent)),
                    }
                    at = item.next;
                }
                Err(e) if e.is_transient() => break,
                Err(e) => return Err(e.into()),
            }
        }
        if at > consumer.position() {
            consumer.advance(at)?;
            wait = Wait::new(Side::Producer, Some(PATIENCE));
        } else if wait.pause(consumer.device(), &[])? == Woken::TimedOut {
            return Err(Error::Stalled("the producer"));
        }
    }
    for time in times {
        println!("{time}");
    }
    Ok(())
}
