//! The consumer.

mod freeing;

use crate::device::RingDevice;
use crate::error::{Error, Result};
use crate::format::{FormatError, Position, Side, Tally};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::history::superseded;
use crate::item::Decode;
use crate::reader::{Found, Reader};
use crate::rules::{Mark, plausible, verifiable};
use crate::window::Popped;
use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The only consumer of a ring.
///
/// [`pop`](Self::pop) looks at an item, and [`advance`](Self::advance) frees its space once it has
/// been dealt with: after a crash in between the item is delivered again, never lost. No call
/// waits; an empty ring answers [`Error::Retry`].
///
/// Newly published items are verified against the producer's checksum before the first of them is
/// lent. [`FormatError::Span`] names a range of positions whose bytes are not what the producer
/// wrote; advancing to its end skips it.
///
/// [`Error::Superseded`] says that another instance of this process has moved the ring, as after
/// the restore of an older snapshot. The consumer goes on at the ring's position; items that were
/// popped and not advanced over are delivered again, unless the other instance has freed them.
///
/// Dropping a consumer writes the position that [`advance_every`](Self::advance_every) has kept
/// back, and ignores an error of that; [`flush`](Self::flush) reports it.
pub struct Consumer<D: RingDevice> {
    handle: Handle<D>,
    /// The consumer's pointer in the ring: everything before it is free.
    mark: Mark,
    /// The end of what was advanced over: `mark`, or further on where the pointer is written
    /// lazily.
    done: Position,
    /// Bytes that `done` can be ahead of the pointer.
    lag: u64,
    /// The last mark between `mark` and `done` whose tally needs no walk over the items.
    known: Mark,
    /// The end of what was verified to be what the producer wrote.
    verified: Mark,
    /// The producer's position at the last look.
    producer: Position,
    /// The tally that the producer's slot claims for that position.
    claim: Option<Tally>,
    /// Time of the producer's `advance` to that position, in nanoseconds since 1970.
    published_ns: Option<u64>,
    /// Bytes that no checksum covered.
    unchecked_bytes: u64,
    reader: Reader,
}

/// Writes the pointer: items that were advanced over would be delivered again without it.
impl<D: RingDevice> Drop for Consumer<D> {
    fn drop(&mut self) {
        // Delivery is at least once: a caller that has to know of an error calls `flush`.
        let _ = self.flush();
    }
}

impl<D: RingDevice> fmt::Debug for Consumer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("handle", &self.handle)
            .field("mark", &self.mark)
            .field("done", &self.done)
            .field("lag", &self.lag)
            .field("verified", &self.verified)
            .field("producer", &self.producer)
            .field("claim", &self.claim)
            .field("unchecked_bytes", &self.unchecked_bytes)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}

/// Reads the consumer's pointer, and refuses one that contradicts the producer's.
fn read_mark<D: RingDevice>(handle: &mut Handle<D>) -> Result<Mark> {
    let producer = handle.read_pointer(Side::Producer)?.position;
    let (pointer, tally) = handle.read_mark(Side::Consumer)?;
    plausible(producer, pointer.position, handle.geometry)?;
    Ok(Mark::new(pointer.position, tally))
}

impl<D: RingDevice> Consumer<D> {
    /// Becomes the consumer of the ring on `device`. `queue` and `client` go into the text of
    /// sector 2, for people who look at it.
    ///
    /// # Errors
    /// [`Error::RoleTaken`] if the ring has a consumer; [`Error::Format`] for a device without a
    /// ring, or with a damaged one; the device's.
    pub fn attach(device: D, queue: &str, client: &str) -> Result<Self> {
        let mut handle = Handle::attach(device, Side::Consumer, queue, client)?;
        let mark = read_mark(&mut handle)?;
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
            published_ns: None,
            unchecked_bytes: 0,
            reader,
        })
    }

    /// Sets what [`advance`](Self::advance) waits for.
    pub fn set_durability(&mut self, durability: Durability) {
        self.handle.durability = durability;
    }

    /// Has [`advance`](Self::advance) keep the pointer back until `bytes` can be freed at once,
    /// half of the ring at most. The pointer is also written when there is nothing more to pop, by
    /// [`flush`](Self::flush), and when the consumer is dropped or detached.
    ///
    /// Writing the pointer is what an `advance` costs: its flushes, and the cache lines that two
    /// busy sides pass to each other. What was advanced over since it was last written is delivered
    /// again after a crash, and its space is not free for the producer yet.
    pub fn advance_every(&mut self, bytes: u64) {
        self.lag = bytes;
    }

    /// Writes the pointer and gives up the role. Every later call answers [`Error::Detached`].
    pub fn detach(&mut self) {
        // As when dropped.
        let _ = self.flush();
        self.handle.detach();
    }

    /// Asks whether the ring is still the one that was attached to: what the device was opened by
    /// names it and it is as large as it was (see [`RingDevice::check_presence`]), and sector 0 is
    /// what it was. It reads one sector and takes a few system calls;
    /// [`Lookout`](crate::device::Lookout) says when a second has passed. Ask once more before
    /// saying that the work is done.
    ///
    /// # Errors
    /// A [`DeviceError`](crate::device::DeviceError) whose source is
    /// [`Displaced`](crate::device::Displaced).
    pub fn check_presence(&self) -> Result<()> {
        self.handle.check_presence()
    }

    /// Returns the device, for [`Wait`](crate::wait::Wait).
    pub fn device(&self) -> &D {
        &self.handle.device
    }

    /// Returns the position of the first item that was not advanced over: to start popping at.
    pub fn position(&self) -> Position {
        self.done
    }

    /// Returns the bytes looked at so far that no checksum covers: a peer published them that
    /// writes none.
    pub fn unchecked_bytes(&self) -> u64 {
        self.unchecked_bytes
    }

    /// Returns the time of the last publication that this handle has seen, by the producer's clock:
    /// what was popped so far was published then or before. `None` before the first item, and where
    /// the producer writes no times.
    pub fn published_at(&self) -> Option<SystemTime> {
        UNIX_EPOCH.checked_add(Duration::from_nanos(self.published_ns?))
    }

    /// Returns whether the producer has acknowledged a suspend.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`] for a damaged pointer.
    pub fn state(&mut self) -> Result<State> {
        self.handle.acknowledged()
    }

    /// Reads the ring's state from its sectors.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`] for damaged pointers.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Asks the producer to stop.
    ///
    /// # Errors
    /// [`Error::Retry`] while the producer has not acknowledged the previous change; the device's.
    pub fn suspend(&mut self) -> Result<()> {
        self.set_suspend(true)
    }

    /// Lets the producer go on.
    ///
    /// # Errors
    /// As [`suspend`](Self::suspend).
    pub fn resume(&mut self) -> Result<()> {
        self.set_suspend(false)
    }

    fn set_suspend(&mut self, suspend: bool) -> Result<()> {
        self.handle.set_suspend(suspend, |owner, pointer, sector| {
            pointer.flag = suspend;
            pointer.encode(Side::Consumer, Some(owner), sector);
        })
    }

    /// Returns the item at `from`: the same one every time, until it is advanced over.
    ///
    /// Its bytes are lent where they lie if a backend guards the ring, unless they straddle the
    /// wrap point; elsewhere they are a copy, which nobody changes after the look. Advancing ends
    /// the loan:
    ///
    /// ```compile_fail,E0499
    /// # use shared_block_ring::{RingDevice, Consumer, Result};
    /// # fn use_after_free<D: RingDevice>(consumer: &mut Consumer<D>) -> Result<()> {
    /// let item = consumer.pop(consumer.position())?;
    /// consumer.advance(item.next)?; // its bytes may be overwritten from here on
    /// println!("{:?}", item.bytes);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Retry`] if no item is published at `from` yet; [`Error::InvalidStart`];
    /// [`Error::Format`] for items that are damaged; [`Error::Superseded`]; the device's.
    pub fn pop(&mut self, from: Position) -> Result<Popped<'_>> {
        let found = self.find(from)?;
        // The loan fails if the pointer has moved since, which the next look finds.
        self.reader.lend(&mut self.handle.device, found).ok_or(Error::Retry)
    }

    /// Returns the item at `from` as a `T`, and the position of the next one.
    ///
    /// # Errors
    /// [`Error::Undecodable`] for an item that is not a `T`: it names the position to advance to if
    /// the item is to be skipped. Those of [`pop`](Self::pop).
    pub fn pop_as<'a, T: Decode<'a>>(&'a mut self, from: Position) -> Result<(Position, T)> {
        let item = self.pop(from)?;
        match T::decode(item.bytes) {
            Ok(value) => Ok((item.next, value)),
            Err(e) => Err(Error::Undecodable { at: from, next: item.next, reason: e.to_string() }),
        }
    }

    /// Calls `f` on every published item from `from` on, and returns the position behind the last
    /// one, with the last result. This is the fastest way to read many items.
    ///
    /// # Errors
    /// Those of [`pop`](Self::pop) but [`Error::Retry`]: no item at `from` is no error.
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
                return Err(self.explain(damage.into()));
            }
            if at == to {
                continue;
            }
            // The item straddles the wrap point, or has to be copied first.
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

    /// Makes sure that a verified item lies at `from`.
    pub(crate) fn ready(&mut self, from: Position) -> Result<()> {
        self.handle.attached()?;
        if from >= self.verified.position {
            self.look()?;
        }
        let (consumer, producer) = (self.done, self.verified.position);
        if from < consumer || (from > producer && from > consumer) {
            return Err(Error::InvalidStart { from, consumer, producer });
        }
        if from >= producer {
            // The producer may wait for the space that was kept back.
            self.flush()?;
            return Err(Error::Retry);
        }
        Ok(())
    }

    /// Finds the item at `from`.
    #[inline]
    fn find(&mut self, from: Position) -> Result<Found> {
        self.ready(from)?;
        let found = match self.reader.find(&mut self.handle.device, from, self.verified.position) {
            Err(e @ Error::Format(_)) => return Err(self.explain(e)),
            found => found?,
        };
        if found.is_fresh() {
            // These bytes were verified earlier, and stay as they were only until they are freed.
            self.check_pointer()?;
        }
        Ok(found)
    }

    /// Compares the pointer in the ring with the one that this handle has written. If another
    /// instance has moved it, the handle starts again at the ring's position.
    fn check_pointer(&mut self) -> Result<()> {
        if self.handle.read_pointer(Side::Consumer)?.position == self.mark.position {
            return Ok(());
        }
        let from = self.mark;
        let mark = read_mark(&mut self.handle)?;
        (self.mark, self.verified, self.producer, self.claim) = (mark, mark, mark.position, None);
        (self.done, self.known) = (mark.position, mark);
        self.reader.clear();
        // An older copy of the ring delivers everything again.
        let from = if from.position < mark.position { from } else { mark };
        Err(superseded(Side::Consumer, mark.position, from, mark))
    }

    /// Returns the error to report for `error`: that the handle is superseded, if that is the
    /// cause.
    fn explain(&mut self, error: Error) -> Error {
        self.check_pointer().err().filter(Error::is_superseded).unwrap_or(error)
    }

    /// Looks for newly published items, and verifies them.
    fn look(&mut self) -> Result<()> {
        self.look_ahead()
            .map_err(|e| if matches!(e, Error::Format(_)) { self.explain(e) } else { e })
    }

    fn look_ahead(&mut self) -> Result<()> {
        let all_verified = self.verified.position == self.producer;
        if all_verified
            && self.handle.device.peek_position(Side::Producer) == Some(self.producer.get())
        {
            return Ok(());
        }
        let (pointer, slot) = self.handle.read_mark_only(Side::Producer)?;
        plausible(pointer.position, self.mark.position, self.handle.geometry)?;
        self.published_ns = slot.map(|slot| slot.time_ns);
        let claim = slot.map(|slot| slot.tally);
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
        self.unchecked_bytes += start.since(from.position).unwrap_or(0);
        self.verified = to;
        Ok(())
    }
}
