//! The producer.

mod at_once;
mod looks;
mod reservation;
mod writes;

pub use reservation::Reservation;

use crate::device::{AlignedBuf, RingDevice};
use crate::error::{Error, Result};
use crate::format::{FormatError, Geometry, HEADER_BYTES, PointerSector, Position, Side};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::item::Encode;
use crate::rules::{Fit, Mark, batch_len, fit, fitting};
use crate::sector0::Sector0;
use crate::stage::Stage;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;

/// The only producer of a ring.
///
/// [`push`](Self::push) adds an item that the consumer does not see yet, and
/// [`advance`](Self::advance) publishes everything before a position at once: several pushes before
/// one `advance` are an atomic batch. No call waits; a full or suspended ring answers
/// [`Error::Retry`] or [`Error::Suspended`].
///
/// Pushed items are gathered in memory and written at once: by `advance`, by
/// [`flush`](Self::flush), or when a larger write would be no faster. A batch costs the device that
/// write, one of the pointer, and the [flushes](Durability) between. The consumer's pointer is read
/// again only when there seems to be no room. So a suspend takes effect within one lap of the ring,
/// or with [`state`](Self::state); where reading costs no request, with each `advance`.
///
/// [`Error::Superseded`] says that another instance of this process has moved the ring, as after
/// the restore of an older snapshot. It names the items that cannot be accounted for, and the
/// producer goes on behind the ring's items.
pub struct Producer<D> {
    handle: Handle<D>,
    /// The mark at which the producer has attached.
    start: Mark,
    /// The end of what is published.
    published: Mark,
    /// The end of what the consumer may read if a write of the pointer that failed was carried out.
    exposed: Position,
    /// The producer's flag: whether it has acknowledged a suspend.
    acknowledged: bool,
    /// The end of what was pushed.
    pushed: Mark,
    /// The ends of what was pushed and not advanced over: the only marks to advance to. Another
    /// instance may have published them.
    ends: VecDeque<Mark>,
    /// The consumer's pointer at the last look.
    consumer: PointerSector,
    /// The consumer position that no power loss takes back: bytes before it may be overwritten.
    durable_consumer: Position,
    /// Items that were pushed and not written.
    stage: Stage,
    /// Sector 1 as this handle has written it.
    sector: AlignedBuf,
    /// Sector 1 as it is to be written.
    next: AlignedBuf,
    /// Sectors 1 and 2 as they were read last.
    heads: AlignedBuf,
}

/// The state, without the buffers.
impl<D> fmt::Debug for Producer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("handle", &self.handle)
            .field("published", &self.published)
            .field("exposed", &self.exposed)
            .field("acknowledged", &self.acknowledged)
            .field("pushed", &self.pushed)
            .field("ends", &self.ends)
            .field("consumer", &self.consumer)
            .field("durable_consumer", &self.durable_consumer)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl<D: RingDevice> Producer<D> {
    /// Becomes the producer of the ring on `device`. `queue` and `client` go into the text of
    /// sector 1, for people who look at it.
    ///
    /// A pending suspend or resume is acknowledged; attaching to a suspended ring succeeds.
    ///
    /// # Errors
    /// [`Error::RoleTaken`] if the ring has a producer; [`Error::Format`] for a device without a
    /// ring, or with a damaged one; the device's.
    pub fn attach(device: D, queue: &str, client: &str) -> Result<Self> {
        let handle = Handle::attach(device, Side::Producer, queue, client)?;
        let size = handle.geometry.sector_size().bytes();
        let nowhere = Mark::new(Position::ZERO, None);
        let mut producer = Self {
            start: nowhere,
            published: nowhere,
            exposed: Position::ZERO,
            acknowledged: false,
            pushed: nowhere,
            ends: VecDeque::new(),
            consumer: PointerSector { position: Position::ZERO, flag: false },
            durable_consumer: Position::ZERO,
            stage: Stage::new(handle.geometry),
            sector: AlignedBuf::zeroed(size),
            next: AlignedBuf::zeroed(size),
            heads: AlignedBuf::zeroed(2 * size),
            handle,
        };
        producer.begin()?;
        producer.acknowledge()?;
        Ok(producer)
    }

    /// Sets what [`advance`](Self::advance) waits for.
    pub fn set_durability(&mut self, durability: Durability) {
        self.handle.durability = durability;
    }

    /// Changes the client's name in the text of sector 1, from the next write of it on. The text is
    /// written together with the position: on a disk both change at once, and in shared memory the
    /// text before the position.
    pub fn set_client(&mut self, client: &str) {
        self.handle.set_client(client);
    }

    /// Gives up the role. Every later call answers [`Error::Detached`].
    pub fn detach(&mut self) {
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

    /// Sector 0 as it was when the producer attached.
    pub(crate) fn sector0(&self) -> &Sector0 {
        self.handle.sector0()
    }

    /// Returns the position of the next item to be pushed.
    pub fn position(&self) -> Position {
        self.pushed.position
    }

    /// Returns the positions between which a failed [`advance`](Self::advance) may have published
    /// items all the same: the write of the pointer, or the flush behind it, has failed. The range
    /// is empty if nothing behind the last `advance` that succeeded is published, as when the flush
    /// of the items has failed.
    pub fn in_doubt(&self) -> Range<Position> {
        self.published.position..self.exposed
    }

    /// Looks at the ring, acknowledges a suspend or resume, and returns whether the ring is
    /// suspended.
    ///
    /// # Errors
    /// [`Error::Superseded`]; [`Error::Format`] for a damaged pointer; the device's.
    pub fn state(&mut self) -> Result<State> {
        self.handle.attached()?;
        self.handle.device.ensure_role()?;
        self.look()?;
        self.acknowledge()?;
        Ok(State::of(self.consumer.flag))
    }

    /// Reads the ring's state from its sectors.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`] for damaged pointers.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Adds an item behind those pushed before, and returns the position to
    /// [`advance`](Self::advance) to.
    ///
    /// # Errors
    /// [`Error::Retry`] for lack of room, [`Error::Suspended`], [`Error::TooLarge`],
    /// [`Error::Superseded`]; [`FormatError::Exhausted`] at the end of the stream; the device's, if
    /// items had to be written to make room in memory.
    pub fn push<T: Encode + ?Sized>(&mut self, item: &T) -> Result<Position> {
        self.push_batch(&[item])
    }

    /// Pushes items, all or none of them, and returns the position to [`advance`](Self::advance)
    /// to.
    ///
    /// # Errors
    /// As [`push`](Self::push), with the size of all items together.
    pub fn push_batch<T: Encode>(&mut self, items: &[T]) -> Result<Position> {
        self.handle.attached()?;
        if let Some(end) = self.push_at_once(items) {
            return Ok(end);
        }
        let encoded: Vec<_> = items.iter().map(Encode::encode).collect();
        let lengths = lengths_of(&encoded, self.handle.geometry)?;
        self.push_all(&encoded, &lengths)
    }

    /// Pushes as many of the items as there is room for, at least one, and returns how many, with
    /// the position to [`advance`](Self::advance) to.
    ///
    /// ```
    /// # use shared_block_ring::{OpenOptions, Producer, create, make_file};
    /// # let dir = tempfile::tempdir()?;
    /// # let path = dir.path().join("ring");
    /// # make_file(&path, 1 << 20)?;
    /// # create(&OpenOptions::default().open(&path)?, Default::default())?;
    /// # let mut producer = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1")?;
    /// let lines = ["debit 7", "credit 7", "close"];
    /// let (pushed, end) = producer.push_some(&lines)?;
    /// producer.advance(end)?;
    /// let later = &lines[pushed..]; // when the consumer has made room
    /// # assert!(later.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As [`push`](Self::push), if not even the first item fits.
    pub fn push_some<T: Encode>(&mut self, items: &[T]) -> Result<(usize, Position)> {
        let encoded: Vec<_> = items.iter().map(Encode::encode).collect();
        let lengths = lengths_of(&encoded, self.handle.geometry)?;
        self.handle.attached()?;
        let capacity = self.handle.geometry.capacity();
        let count = |consumer| fitting(self.pushed.position, consumer, capacity, &lengths);
        let mut fits = count(self.consumer.position);
        if fits < items.len() {
            self.running()?;
            fits = fitting(self.pushed.position, self.consumer.position, capacity, &lengths);
        }
        // If not even the first fits, its error is the answer.
        let fits = fits.max(1).min(items.len());
        self.push_all(&encoded[..fits], &lengths[..fits]).map(|end| (fits, end))
    }

    /// Stages all of the payloads, after a look at the ring if that is needed.
    fn push_all(&mut self, payloads: &[Cow<'_, [u8]>], lengths: &[u32]) -> Result<Position> {
        let end = self.admit(batch_len(lengths))?;
        if end > self.pushed.position {
            let from = self.stage.end();
            for (payload, length) in payloads.iter().zip(lengths) {
                self.stage.put(payload, *length);
            }
            self.staged(from, payloads.len(), end);
        }
        Ok(end)
    }

    /// Notes that the stage holds `items` items from `from` on, which end at `end`.
    fn staged(&mut self, from: usize, items: usize, end: Position) {
        // A plain ring has no checksum.
        let framed = if self.handle.has_slots() { self.stage.since(from) } else { &[] };
        let tally = self.pushed.tally.extend(items as u64, framed);
        self.pushed = Mark { position: end, tally };
        self.ends.push_back(self.pushed);
    }

    /// Makes sure that `needed` bytes, framing included, can be staged, and returns their end.
    fn admit(&mut self, needed: u64) -> Result<Position> {
        self.handle.attached()?;
        if self.consumer.flag {
            self.running()?;
        }
        let start = self.pushed.position;
        let capacity = self.handle.geometry.capacity();
        let too_large = Error::TooLarge { needed, capacity: capacity.get() };
        if fit(start, self.consumer.position, capacity, needed) != Fit::Now {
            self.running()?;
            match fit(self.pushed.position, self.consumer.position, capacity, needed) {
                Fit::Never => return Err(too_large),
                Fit::Later => return Err(Error::Retry),
                Fit::Now => {}
            }
        }
        let end = self.end_of(needed)?;
        if needed > self.stage.room() {
            self.write_staged()?;
        }
        Ok(end)
    }

    /// Returns the end of `needed` more bytes, framing included.
    fn end_of(&self, needed: u64) -> Result<Position> {
        let start = self.pushed.position;
        let end = start.checked_add(needed.next_multiple_of(4));
        Ok(end.ok_or(FormatError::Exhausted { position: start, needed })?)
    }

    /// Makes durable what was advanced over and, still unpublished, what was pushed beyond that.
    ///
    /// # Errors
    /// As [`advance`](Self::advance).
    pub fn flush(&mut self) -> Result<()> {
        self.handle.attached()?;
        self.write_staged()?;
        self.handle.flush()
    }

    /// Publishes everything before `to`, which is a position that a push returned.
    ///
    /// # Errors
    /// [`Error::Suspended`]: what was pushed stays, and can be advanced over after the resume.
    /// [`Error::InvalidAdvance`] for any other position. [`Error::Superseded`].
    /// [`Error::RoleTaken`] if the role was lost and another handle has it. The device's: after one
    /// of a flush or of the pointer the handle has [failed](Error::Failed), and
    /// [`in_doubt`](Self::in_doubt) tells what may be published.
    pub fn advance(&mut self, to: Position) -> Result<()> {
        self.handle.attached()?;
        if to == self.published.position {
            return Ok(());
        }
        let Ok(index) = self.ends.binary_search_by_key(&to, |end| end.position) else {
            let (from, limit) = (self.published.position, self.pushed.position);
            return Err(Error::InvalidAdvance { to, from, limit });
        };
        let mark = self.ends[index];
        self.write_staged()?;
        if to > self.published.position {
            self.handle.flush()?;
            self.publish(mark, self.acknowledged)?;
        }
        while self.ends.front().is_some_and(|end| end.position <= to) {
            self.ends.pop_front();
        }
        Ok(())
    }
}

/// Returns the payload's length for its header.
fn length_of(len: usize, geometry: Geometry) -> Result<u32> {
    u32::try_from(len).map_err(|_| Error::TooLarge {
        needed: (len as u64).saturating_add(HEADER_BYTES),
        capacity: geometry.capacity().get(),
    })
}

fn lengths_of(payloads: &[Cow<'_, [u8]>], geometry: Geometry) -> Result<Vec<u32>> {
    // `collect` into a result would grow the vector step by step.
    let mut lengths = Vec::with_capacity(payloads.len());
    for payload in payloads {
        lengths.push(length_of(payload.len(), geometry)?);
    }
    Ok(lengths)
}
