//! A stream of random items, pushed at one end of a ring and popped at the other.

use super::report::{Report, Tally};
use qemu_tests::load::{Device, Random};
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Error, Position, Producer};
use std::time::Duration;

/// Parameters of a producer.
pub struct Push {
    pub items: u64,
    /// Longest payload, in bytes.
    pub max: u64,
    pub seed: u64,
    /// Items that become visible together.
    pub batch: usize,
    /// Whether they become visible at all.
    pub publish: bool,
}

/// Pushes random items; gives up when the consumer has not moved for `patience`.
pub fn produce(
    producer: &mut Producer<Device>,
    push: &Push,
    patience: Duration,
) -> Result<Report, Error> {
    let mut random = Random::new(push.seed);
    let mut tally = Tally::default();
    let mut pending: Vec<Vec<u8>> = Vec::new();
    for number in 1..=push.items {
        let item = random_item(&mut random, push.max);
        tally.add(&item);
        pending.push(item);
        if pending.len() < push.batch && number < push.items {
            continue;
        }
        let position = patiently(producer, patience, &mut tally.waits, |producer| {
            producer.push_batch(&pending)
        })?;
        if push.publish {
            patiently(producer, patience, &mut tally.waits, |producer| producer.advance(position))?;
        } else {
            producer.flush()?;
        }
        pending.clear();
    }
    Ok(tally.report())
}

/// Pops items and gives them back, `batch` at a time; gives up when the producer has not moved for
/// `patience`.
pub fn consume(
    consumer: &mut Consumer<Device>,
    items: u64,
    batch: u64,
    patience: Duration,
) -> Result<Report, Error> {
    let mut tally = Tally::default();
    let mut at: Position = consumer.position();
    while tally.items < items {
        match consumer.pop(at) {
            Ok(item) => {
                tally.add(item.bytes);
                at = item.next;
                if tally.items.is_multiple_of(batch) || tally.items == items {
                    consumer.advance(at)?;
                }
            }
            Err(Error::Retry) => {
                // The space that is not given back yet may be what the producer waits for.
                consumer.advance(at)?;
                let mut wait = Wait::new(Side::Producer, Some(patience));
                tally.waits += 1;
                while matches!(consumer.pop(at), Err(Error::Retry)) {
                    if wait.pause(consumer.device(), &[])? == Woken::TimedOut {
                        return Err(Error::Retry);
                    }
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(tally.report())
}

/// Repeats `attempt` while it fails for want of the consumer's progress; counts the waits.
fn patiently<T>(
    producer: &mut Producer<Device>,
    patience: Duration,
    waits: &mut u64,
    mut attempt: impl FnMut(&mut Producer<Device>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut wait = Wait::new(Side::Consumer, Some(patience));
    let mut first = true;
    loop {
        match attempt(producer) {
            Err(e) if e.is_transient() => {
                *waits += u64::from(std::mem::take(&mut first));
                if wait.pause(producer.device(), &[])? == Woken::TimedOut {
                    return Err(e);
                }
            }
            other => return other,
        }
    }
}

fn random_item(random: &mut Random, max: u64) -> Vec<u8> {
    let len = usize::try_from(random.below(max + 1)).unwrap_or(0);
    let mut item = vec![0; len];
    random.fill(&mut item);
    item
}
