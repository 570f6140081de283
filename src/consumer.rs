//! The end that pops.

mod freeing;

use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::{FormatError, Position, Side, Tally};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::history::superseded;
use crate::item::Decode;
use crate::reader::{Found, Reader};
use crate::rules::{Mark, plausible, verifiable};
use crate::window::Popped;
use std::fmt;

/// The only consumer of a ring.
///
/// [`pop`](Self::pop) looks at an item, [`advance`](Self::advance) gives its space back once it has been dealt with: after a
/// crash in between the item is delivered again, never lost. Nothing here waits; an empty ring answers [`Error::Retry`].
///
/// What the producer has published since we looked last is verified against its checksum before the first item of it is lent.
/// [`FormatError::Span`] names a span that is not what the producer wrote; advancing to its end skips it.
///
/// [`Error::Superseded`] says that another life of this process has moved the ring, as after the restore of an older snapshot. The consumer
/// goes on where the ring stands; what was popped and not advanced over is delivered again, if the other life has not freed it.
pub struct Consumer<D: BlockDevice> {
    handle: Handle<D>,
    /// Everything before it is free, as our pointer in the ring says.
    mark: Mark,
    /// Everything before it was advanced over: `mark`, or further on where that is written lazily.
    done: Position,
    /// Bytes that `done` can be ahead of the pointer.
    lag: u64,
    /// The last place between `mark` and `done` that something is known of without walking there again.
    known: Mark,
    /// Everything before it is what the producer wrote, as far as that can be known.
    verified: Mark,
    /// Published, as far as we have looked, and what the producer's slot says of it.
    producer: Position,
    claim: Option<Tally>,
    /// Bytes that nothing was known of.
    unchecked: u64,
    reader: Reader,
}

/// What was advanced over and is not written yet would be delivered again.
impl<D: BlockDevice> Drop for Consumer<D> {
    fn drop(&mut self) {
        // At least once: who has to know that it was not more calls `settle`.
        let _ = self.settle();
    }
}

impl<D: BlockDevice> fmt::Debug for Consumer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("handle", &self.handle)
            .field("mark", &self.mark)
            .field("done", &self.done)
            .field("lag", &self.lag)
            .field("verified", &self.verified)
            .field("producer", &self.producer)
            .field("claim", &self.claim)
            .field("unchecked", &self.unchecked)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

/// Where the ring's consumer stands.
fn stand<D: BlockDevice>(handle: &mut Handle<D>) -> Result<Mark> {
    let producer = handle.read_pointer(Side::Producer)?.position;
    let (pointer, tally) = handle.read_mark(Side::Consumer)?;
    plausible(producer, pointer.position, handle.geometry)?;
    Ok(Mark::new(pointer.position, tally))
}

impl<D: BlockDevice> Consumer<D> {
    /// Becomes the consumer of the ring on `device`. `queue` and `client` go into the text of sector 2.
    pub fn attach(device: D, queue: &str, client: &str) -> Result<Self> {
        let mut handle = Handle::attach(device, Side::Consumer, queue, client)?;
        let mark = stand(&mut handle)?;
        let reader = Reader::new(handle.geometry);
        Ok(Self {
            handle,
            mark,
            done: mark.position,
            lag: 0,
            known: mark,
            verified: mark,
            producer: mark.position,
            claim: None,
            unchecked: 0,
            reader,
        })
    }

    /// Chooses what `advance` waits for.
    pub fn set_durability(&mut self, durability: Durability) {
        self.handle.durability = durability;
    }

    /// Has [`advance`](Self::advance) write the pointer only once `bytes` of the ring can be freed in one go, where that
    /// is less than half of it. It is also written when there is nothing more to pop, by [`settle`](Self::settle), and at the end.
    ///
    /// The pointer is what costs: flushes, and where both sides are awake the cache lines that they pass to each other. What was advanced over since it was
    /// written last is delivered again after a crash, and its space is not the producer's yet.
    pub fn advance_every(&mut self, bytes: u64) {
        self.lag = bytes;
    }

    /// Gives the role back. Every later call answers [`Error::Detached`].
    pub fn detach(&mut self) {
        // As when dropped.
        let _ = self.settle();
        self.handle.detach();
    }

    /// The device below, for [`Wait`](crate::wait::Wait).
    pub fn device(&self) -> &D {
        &self.handle.device
    }

    /// Everything before it is consumed: where to start popping.
    pub fn position(&self) -> Position {
        self.done
    }

    /// Bytes looked at so far that no checksum covers: they were published by a peer that writes none.
    pub fn unchecked(&self) -> u64 {
        self.unchecked
    }

    /// Whether the producer has acknowledged a suspend.
    pub fn state(&mut self) -> Result<State> {
        self.handle.acknowledged()
    }

    /// The sectors' facts, read afresh.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Asks the producer to stop. [`Error::Retry`] while the previous change is not acknowledged.
    pub fn suspend(&mut self) -> Result<()> {
        self.set_suspend(true)
    }

    /// Lets the producer go on. [`Error::Retry`] while the previous change is not acknowledged.
    pub fn resume(&mut self) -> Result<()> {
        self.set_suspend(false)
    }

    fn set_suspend(&mut self, suspend: bool) -> Result<()> {
        if self.handle.change_wanted(suspend)? {
            self.edit(|pointer, _| pointer.flag = suspend)?;
            self.handle.flush()?;
        }
        Ok(())
    }

    /// The item at `from`. The same item every time, until it is advanced over.
    ///
    /// It is lent where it lies if a backend guards the ring, unless it straddles the wrap point; elsewhere it is a copy, which nobody
    /// can change after the look. To advance ends the loan:
    ///
    /// ```compile_fail,E0499
    /// # use shared_block_ring::{BlockDevice, Consumer, Result};
    /// # fn use_after_free<D: BlockDevice>(consumer: &mut Consumer<D>) -> Result<()> {
    /// let item = consumer.pop(consumer.position())?;
    /// consumer.advance(item.next)?; // its bytes may be overwritten from here on
    /// println!("{:?}", item.bytes);
    /// # Ok(())
    /// # }
    /// ```
    pub fn pop(&mut self, from: Position) -> Result<Popped<'_>> {
        let found = self.find(from)?;
        // It is lent no more if our pointer has moved since, which the next look tells.
        self.reader.lend(&mut self.handle.device, found).ok_or(Error::Retry)
    }

    /// The item at `from` as a `T`. One that is not a `T` is [`Error::Undecodable`], and can be skipped deliberately.
    pub fn pop_as<'a, T: Decode<'a>>(&'a mut self, from: Position) -> Result<(Position, T)> {
        let item = self.pop(from)?;
        match T::decode(item.bytes) {
            Ok(value) => Ok((item.next, value)),
            Err(e) => Err(Error::Undecodable { at: from, next: item.next, reason: e.to_string() }),
        }
    }

    /// Calls `f` on every item from `from` on, and returns the position behind the last one with the result. The cheapest way to look at many:
    /// those that are lent where they lie cost the device one question for all.
    pub fn fold<T>(
        &mut self,
        from: Position,
        start: T,
        mut f: impl FnMut(T, Popped<'_>) -> T,
    ) -> Result<(Position, T)> {
        let (mut at, mut value) = (from, start);
        loop {
            match self.ready(at) {
                Err(Error::Retry) => return Ok((at, value)),
                other => other?,
            }
            let (device, to) = (&mut self.handle.device, self.verified.position);
            let (end, so_far, damage) = self.reader.fold(device, at, to, value, &mut f);
            (at, value) = (end, so_far);
            if let Some(damage) = damage {
                return Err(self.moved(damage.into()));
            }
            if at == to {
                continue;
            }
            // It straddles the wrap point, or has to be copied first.
            match self.pop(at) {
                Ok(item) => {
                    at = item.next;
                    value = f(value, item);
                }
                Err(Error::Retry) => return Ok((at, value)),
                Err(e) => return Err(e),
            }
        }
    }

    /// Whether there is an item at `from`.
    fn ready(&mut self, from: Position) -> Result<()> {
        self.handle.attached()?;
        if from >= self.verified.position {
            self.look()?;
        }
        let (consumer, producer) = (self.done, self.verified.position);
        if from < consumer || (from > producer && from > consumer) {
            return Err(Error::From { from, consumer, producer });
        }
        if from >= producer {
            // The producer may be waiting for that space before it goes on.
            self.settle()?;
            return Err(Error::Retry);
        }
        Ok(())
    }

    /// The item at `from`.
    #[inline]
    fn find(&mut self, from: Position) -> Result<Found> {
        self.ready(from)?;
        let found = match self.reader.find(&mut self.handle.device, from, self.verified.position) {
            Err(e @ Error::Format(_)) => return Err(self.moved(e)),
            found => found?,
        };
        if found.is_fresh() {
            // What was read just now was verified earlier, and stays as it was only until it is freed.
            self.ours()?;
        }
        Ok(found)
    }

    /// Whether the ring's pointer is where we have left it.
    fn ours(&mut self) -> Result<()> {
        if self.handle.read_pointer(Side::Consumer)?.position == self.mark.position {
            return Ok(());
        }
        let from = self.mark;
        let mark = stand(&mut self.handle)?;
        (self.mark, self.verified, self.producer, self.claim) = (mark, mark, mark.position, None);
        (self.done, self.known) = (mark.position, mark);
        self.reader.clear();
        // From an older copy of the ring everything is delivered again.
        let from = if from.position < mark.position { from } else { mark };
        Err(superseded(Side::Consumer, mark.position, from, mark))
    }

    /// What `error` has come of: it may be that what we look at is not ours any more.
    fn moved(&mut self, error: Error) -> Error {
        self.ours().err().filter(Error::is_superseded).unwrap_or(error)
    }

    /// Sees what is published, and verifies what of it is new.
    fn look(&mut self) -> Result<()> {
        self.look_ahead().map_err(|e| if matches!(e, Error::Format(_)) { self.moved(e) } else { e })
    }

    fn look_ahead(&mut self) -> Result<()> {
        let all_verified = self.verified.position == self.producer;
        if all_verified && self.handle.device.glance(Side::Producer) == Some(self.producer.get()) {
            return Ok(());
        }
        let (pointer, claim) = self.handle.glean_mark(Side::Producer)?;
        plausible(pointer.position, self.mark.position, self.handle.geometry)?;
        (self.producer, self.claim) = (pointer.position, claim);
        let (from, to) = (self.verified, Mark::new(pointer.position, claim));
        if to.position <= from.position {
            return Ok(());
        }
        let (start, seed) = verifiable(from, to);
        let computed = self.reader.digest(&mut self.handle.device, start, to.position, seed)?;
        let found = to.tally.crc;
        if computed != found {
            let (from, to) = (from.position, to.position);
            return Err(FormatError::Span { from, to, found, computed }.into());
        }
        self.unchecked += start.since(from.position).unwrap_or(0);
        self.verified = to;
        Ok(())
    }
}
