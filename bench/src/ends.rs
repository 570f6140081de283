//! Both ends of a ring in one thread.

use crate::error::{Result, doing};
use crate::machine::nanoseconds;
use crate::rounds::Rounds;
use shared_block_ring::{
    Consumer, CreateOptions, Durability, FileDevice, OpenOptions, Popped, Position, Producer,
    RingDevice, create, make_file,
};
use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

/// Producer and consumer.
pub struct Ends<P, C: RingDevice> {
    /// The producer.
    pub producer: Producer<P>,
    /// The consumer.
    pub consumer: Consumer<C>,
}

/// Figures of a round.
pub struct Passed {
    /// Items per second.
    pub rate: f64,
    /// Times from before each push until its advance had returned, and so until the consumer could
    /// see it, in nanoseconds.
    pub visible: Vec<f64>,
    /// Times from before each push until its last item was popped.
    pub times: Vec<f64>,
}

impl Ends<FileDevice, FileDevice> {
    /// Attaches both ends of a new ring in a file of that many bytes.
    pub fn in_file(path: &Path, bytes: u64, durability: Durability) -> Result<Self> {
        make_file(path, bytes).map_err(doing("making a ring"))?;
        let open = || OpenOptions::default().open(path);
        create(&open()?, CreateOptions::default())?;
        let producer = Producer::attach(open()?, "bench", "producer")?;
        let consumer = Consumer::attach(open()?, "bench", "consumer")?;
        let mut ends = Self { producer, consumer };
        ends.set_durability(durability);
        Ok(ends)
    }
}

impl<P: RingDevice, C: RingDevice> Ends<P, C> {
    /// Sets the durability of both ends.
    pub fn set_durability(&mut self, durability: Durability) {
        self.producer.set_durability(durability);
        self.consumer.set_durability(durability);
    }

    /// Runs one round of batches from one end to the other; `clock` is the cost of a look at the
    /// clock.
    pub fn round(&mut self, items: &[&[u8]], rounds: Rounds, clock: f64) -> Result<Passed> {
        let (mut visible, mut times) = (Vec::with_capacity(1 << 20), Vec::with_capacity(1 << 20));
        let rate = rounds.one(|| {
            let before = Instant::now();
            let end = self.push(items)?;
            visible.push((nanoseconds(before.elapsed()) - clock).max(0.0));
            self.pop_to(end)?;
            times.push((nanoseconds(before.elapsed()) - 2.0 * clock).max(0.0));
            self.consumer.advance(end)?;
            Ok(items.len())
        })?;
        Ok(Passed { rate, visible, times })
    }

    /// Publishes a batch, and returns its end.
    pub fn push(&mut self, items: &[&[u8]]) -> Result<Position> {
        let end = match items {
            [item] => self.producer.push(*item)?,
            items => self.producer.push_batch(items)?,
        };
        self.producer.advance(end)?;
        Ok(end)
    }

    /// Pops all items in front of `end`, without freeing them.
    pub fn pop_to(&mut self, end: Position) -> Result<()> {
        let mut at = self.consumer.position();
        while at < end {
            let seen = |bytes: usize, item: Popped<'_>| black_box(bytes + item.bytes.len());
            (at, _) = self.consumer.fold(at, 0, seen)?;
        }
        Ok(())
    }
}
