//! The load's producer.

use ring_program::Stop;
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{Error, Position, Producer};

use super::item::{Recipe, Stamp};
use super::log::{Line, Log};
use super::{Device, Failure, PATIENCE, Random, Temper};

/// Pushes batches until `stop`, or `batches` of them: by one write or several, sometimes the next
/// one before this one is visible.
pub fn produce(
    producer: &mut Producer<Device>,
    recipe: Recipe,
    run: u32,
    batches: Option<u32>,
    log: &mut Log,
    stop: &Stop,
) -> Result<(), Failure> {
    let mut random = Random::of(recipe.seed, &[3, run.into()]);
    let temper = Temper::of(&mut random);
    let mut source = Source { recipe, run, batch: 0, number: 0, limit: batches };
    let mut ahead: Option<Batch> = None;
    loop {
        let more = !stop.requested();
        let mut batch = match ahead.take() {
            Some(batch) => batch,
            None if more => match source.next(log)? {
                Some(batch) => batch,
                None => return Ok(()),
            },
            None => return Ok(()),
        };
        let mut wait = Wait::new(Side::Consumer, Some(PATIENCE));
        while !batch.push(producer, &mut random)? {
            if wait.pause(producer.device(), &[])? == Woken::TimedOut {
                return Err(Failure::Stuck);
            }
        }
        if more && random.one_in(4) {
            ahead = source.next(log)?;
            if let Some(next) = &mut ahead {
                // As far as there is room: there may be more only once this batch is visible.
                next.push(producer, &mut random)?;
            }
        }
        producer.advance(batch.end)?;
        log.write(&Line::Done(batch.number))?;
        temper.pause(&mut random);
    }
}

struct Source {
    recipe: Recipe,
    run: u32,
    batch: u32,
    number: u32,
    limit: Option<u32>,
}

impl Source {
    /// Returns the next batch, after saying that it will be pushed.
    fn next(&mut self, log: &mut Log) -> Result<Option<Batch>, Failure> {
        if self.limit == Some(self.batch) {
            return Ok(None);
        }
        let (run, batch, number) = (self.run, self.batch, self.number);
        let size = self.recipe.batch_size(run, batch);
        let stamp = |index| Stamp { run, batch, index, size, number: number + index };
        let items = (0..size).map(|index| self.recipe.item(stamp(index))).collect();
        log.write(&Line::Push { batch, size, number })?;
        self.batch += 1;
        self.number += size;
        Ok(Some(Batch { number: batch, items, pushed: 0, end: Position::ZERO }))
    }
}

/// Items that become visible together.
struct Batch {
    number: u32,
    items: Vec<Vec<u8>>,
    pushed: usize,
    end: Position,
}

impl Batch {
    /// Pushes what is not pushed yet; false when there is no room for all of it.
    fn push(
        &mut self,
        producer: &mut Producer<Device>,
        random: &mut Random,
    ) -> Result<bool, Failure> {
        while self.pushed < self.items.len() {
            let count = 1 + random.count(self.items.len() - self.pushed);
            let items = &self.items[self.pushed..self.pushed + count];
            let end = match items {
                [item] => producer.push(item),
                items => producer.push_batch(items),
            };
            match end {
                Ok(end) => (self.pushed, self.end) = (self.pushed + count, end),
                Err(Error::Retry) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }
}
