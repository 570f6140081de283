//! Measurements with the consumer in a process of its own.

use crate::error::{Error, Result, doing, print};
use crate::figures::{Distribution, Items, Load};
use crate::items::{Look, Served, consumer};
use crate::machine::{Processors, median, pin};
use crate::requests::Plan;
use nix::time::{ClockId, clock_gettime};
use qemu_tests::Daemon;
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Producer, RingDevice};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Pause between two items that are each waited for: the consumer is asleep by then.
const PACE: Duration = Duration::from_micros(500);

/// Bound on the time that the consumer takes for what is in the ring.
const PATIENCE: Duration = Duration::from_secs(20);

/// Measures items to a consumer in another process. It runs on the producer's processor, since the
/// backend has the other one, and sleeps when there is nothing for it.
pub fn two_processes(served: &Served, dir: &Path, plan: &Plan, load: Load) -> Result<Items> {
    let Plan { rounds, processors: cpus, .. } = *plan;
    let Load { bytes, batch, .. } = load;
    let mut producer = served.producer()?;
    let program = std::env::current_exe().map_err(doing("finding this program"))?;
    let mut command = Command::new(program);
    command.arg("--consume").arg(served.consumer());
    command.arg("--cpus").arg(format!("{},{}", cpus.front, cpus.back));
    let logs = tempfile::tempdir_in(dir).map_err(doing("making a folder"))?;
    let mut child = Daemon::spawn("consumer", command, logs.path())?;
    let attached = |child: &Daemon| child.printed() > 0;
    child.wait_for("attaching", PATIENCE, attached)?;
    let payload = vec![7u8; bytes];
    let rates = rounds.each(|| {
        stream(&mut producer, &payload, batch, rounds.time).map_err(|e| {
            // The consumer's own message says more than that it stands still.
            let ended = child.wait_for("taking items", Duration::ZERO, |_| false);
            ended.err().map_or(e, Error::from)
        })
    });
    let rate = median(&mut rates?);
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
    Ok(Items { way: "two processes", load, rate, latency, beside: None, bars: &[] })
}

/// Pushes as much as the consumer takes. Returns the items per second.
fn stream<D: RingDevice>(
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
    // Items that are still in the ring have not arrived.
    let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
    while producer.debug_info()?.used > 0 {
        if wait.pause(producer.device(), &[])? == Woken::TimedOut {
            return Err(Error::Stalled("the consumer"));
        }
    }
    Ok(passed as f64 / start.elapsed().as_secs_f64())
}

fn push_one<D: RingDevice>(producer: &mut Producer<D>, item: &[u8]) -> Result<()> {
    let end = producer.push(item)?;
    Ok(producer.advance(end)?)
}

/// Stamp of the last item, instead of a time.
const LAST: u64 = u64::MAX;

fn stamped(payload: &[u8], stamp: u64) -> Vec<u8> {
    let mut item = payload.to_vec();
    item[..8].copy_from_slice(&stamp.to_le_bytes());
    item
}

/// Returns the time of a clock that all processes share, in nanoseconds.
fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_err(|e| doing("reading the clock")(e.into()))?;
    Ok(u64::try_from(Duration::from(time).as_nanos()).unwrap_or(0))
}

/// Runs the other process of [`two_processes`]: prints a line when it is attached, and at the end
/// the time of each stamped item.
pub fn consume(socket: &Path, cpus: Processors) -> Result<()> {
    pin(cpus.front)?;
    let mut consumer = consumer(socket, Look::InPlace)?;
    print("attached\n")?;
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
        print(&format!("{time}\n"))?;
    }
    Ok(())
}
