//! The load's consumer.

use ring_program::Stop;
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Consumer, Error};
use std::collections::VecDeque;

use super::item::{Stamp, hash};
use super::log::{Line, Log};
use super::{Device, Failure, PATIENCE, Random, Temper};

/// Largest number of items that were popped and not freed.
const MOST_HELD: usize = 12;

/// Pops items until `stop`, and then those that are left. Frees some of them, sometimes all.
pub fn consume(
    consumer: &mut Consumer<Device>,
    random: &mut Random,
    log: &mut Log,
    stop: &Stop,
) -> Result<(), Failure> {
    let temper = Temper::of(random);
    let mut at = consumer.position();
    let mut held = VecDeque::new();
    let mut freed = 0;
    let mut wait = Wait::new(Side::Producer, Some(PATIENCE));
    let mut target = 1;
    loop {
        match consumer.pop(at) {
            Ok(item) => {
                let length = item.bytes.len();
                log.write(&match Stamp::of(item.bytes) {
                    Some(stamp) => Line::Item { stamp, length, hash: hash(item.bytes) },
                    None => Line::Scrap(length),
                })?;
                at = item.next;
                held.push_back(at);
                wait = Wait::new(Side::Producer, Some(PATIENCE));
            }
            Err(Error::Retry) if held.is_empty() => {
                // The order of the two looks matters: items from before the stop were visible at
                // the look.
                if stop.requested() && matches!(consumer.pop(at), Err(Error::Retry)) {
                    return Ok(());
                }
                if wait.pause(consumer.device(), &[stop.fd()])? == Woken::TimedOut {
                    return Err(Failure::Stuck);
                }
                continue;
            }
            Err(Error::Retry) => target = 0,
            Err(e) => return Err(e.into()),
        }
        if held.len() < target {
            continue;
        }
        // All when the ring is empty: space that is not freed may be what the producer waits for.
        let count = if target == 0 { held.len() } else { 1 + random.count(held.len()) };
        let Some(&end) = held.get(count - 1) else { continue };
        freed += count as u64;
        log.write(&Line::Free(freed))?;
        consumer.advance(end)?;
        log.write(&Line::Freed(freed))?;
        held.drain(..count);
        target = 1 + random.count(MOST_HELD);
        if !stop.requested() {
            temper.pause(random);
        }
    }
}
