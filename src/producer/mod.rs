//! The end that pushes.

mod looks;
mod writes;

use crate::device::{AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::format::{Geometry, HEADER_BYTES, PointerSector, Position, Side, framed_len};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::item::Encode;
use crate::rules::{Fit, Mark, batch_len, fit, fitting};
use crate::stage::Stage;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

/// The only producer of a ring.
///
/// [`push`](Self::push) puts an item where nobody sees it, [`advance`](Self::advance) makes everything before a position
/// visible at once: several pushes before one advance are an atomic batch. Nothing here waits; when the ring is full
/// or suspended the answer is [`Error::Retry`] or [`Error::Suspended`].
///
/// What is pushed is gathered in memory and leaves as one write: when it is advanced over, when it is [flushed](Self::flush), or when so much has
/// come together that a larger write would be no better. A batch costs the device that write, one of the pointer, and the
/// [flushes](Durability) between. What the other side says is read again only when there seems to be no room, so a suspend is heard
/// within one lap of the ring, or by [`state`](Self::state); where reading costs no request, with each `advance`.
///
/// [`Error::Superseded`] says that another life of this process has moved the ring, as after the restore of an older snapshot: what was pushed
/// and cannot be accounted for is named, and the producer goes on behind what the ring has.
pub struct Producer<D> {
    handle: Handle<D>,
    /// Where we have attached.
    start: Mark,
    /// Where the consumer may read to.
    published: Mark,
    /// Whether we have acknowledged a suspend.
    acknowledged: bool,
    /// Behind the last item pushed.
    pushed: Mark,
    /// What `push` returned and was not advanced over: the only places to advance to. Another life may have published them.
    ends: VecDeque<Mark>,
    /// What the consumer said when we looked last.
    consumer: PointerSector,
    /// The consumer position that no power loss takes back: what lies `capacity` behind it is ours to overwrite.
    durable_consumer: Position,
    /// What was pushed and not written.
    stage: Stage,
    /// Sector 1, as we have written it.
    sector: AlignedBuf,
    /// Sector 1, as it is to be.
    next: AlignedBuf,
    /// Sectors 1 and 2, as they were read last.
    heads: AlignedBuf,
}

/// Without the buffers that say nothing of the state.
impl<D> fmt::Debug for Producer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("handle", &self.handle)
            .field("published", &self.published)
            .field("acknowledged", &self.acknowledged)
            .field("pushed", &self.pushed)
            .field("ends", &self.ends)
            .field("consumer", &self.consumer)
            .field("durable_consumer", &self.durable_consumer)
            .field("stage", &self.stage)
            .finish_non_exhaustive()
    }
}

impl<D: BlockDevice> Producer<D> {
    /// Becomes the producer of the ring on `device`. `queue` and `client` go into the text of sector 1.
    /// A pending suspend or resume is acknowledged; a suspended ring gives its handle all the same.
    pub fn attach(device: D, queue: &str, client: &str) -> Result<Self> {
        let handle = Handle::attach(device, Side::Producer, queue, client)?;
        let size = handle.geometry.sector_size().bytes();
        let nowhere = Mark::new(Position::ZERO, None);
        let mut producer = Self {
            start: nowhere,
            published: nowhere,
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

    /// Chooses what `advance` waits for.
    pub fn set_durability(&mut self, durability: Durability) {
        self.handle.durability = durability;
    }

    /// Gives the role back. Every later call answers [`Error::Detached`].
    pub fn detach(&mut self) {
        self.handle.detach();
    }

    /// The device below, for [`Wait`](crate::wait::Wait).
    pub fn device(&self) -> &D {
        &self.handle.device
    }

    /// Where the next item will start.
    pub fn position(&self) -> Position {
        self.pushed.position
    }

    /// Whether the ring is suspended, after acknowledging it.
    pub fn state(&mut self) -> Result<State> {
        self.handle.attached()?;
        self.look()?;
        self.acknowledge()?;
        Ok(State::of(self.consumer.flag))
    }

    /// The sectors' facts, read afresh.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Puts an item behind those pushed before, and returns the position to [`advance`](Self::advance) to.
    pub fn push<T: Encode + ?Sized>(&mut self, item: &T) -> Result<Position> {
        self.push_batch(&[item])
    }

    /// Pushes items, all or none of them.
    pub fn push_batch<T: Encode>(&mut self, items: &[T]) -> Result<Position> {
        self.handle.attached()?;
        if let Some(end) = self.push_at_once(items) {
            return Ok(end);
        }
        let encoded: Vec<_> = items.iter().map(Encode::encode).collect();
        let lengths = lengths_of(&encoded, self.handle.geometry)?;
        self.push_all(&encoded, &lengths)
    }

    /// Pushes as many of the items as there is room for, at least one, and returns how many.
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
        // Where not even one fits, that one's refusal is the answer.
        let fits = fits.max(1).min(items.len());
        self.push_all(&encoded[..fits], &lengths[..fits]).map(|end| (fits, end))
    }

    /// Stages items as they are encoded, as long as nothing has to be looked at or written for it. If they do not all fit so, none of them
    /// is staged.
    fn push_at_once<T: Encode>(&mut self, items: &[T]) -> Option<Position> {
        let capacity = self.handle.geometry.capacity().get();
        let used = self.pushed.position.since(self.consumer.position)?;
        if items.is_empty() || self.consumer.flag {
            return None;
        }
        let room = capacity.checked_sub(used)?.min(self.stage.room());
        let from = self.stage.end();
        let mut bytes = 0;
        for item in items {
            let payload = item.encode();
            let fits = |framed: &u64| bytes + framed <= room;
            let length = u32::try_from(payload.len()).ok();
            let framed = length.map(framed_len).filter(fits);
            let (Some(length), Some(framed)) = (length, framed) else {
                self.stage.forget(from);
                return None;
            };
            self.stage.put(&payload, length);
            bytes += framed;
        }
        let end = self.pushed.position.checked_add(bytes);
        match end {
            Some(end) => self.staged(from, items.len(), end),
            None => self.stage.forget(from),
        }
        end
    }

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

    /// What lies in the stage from `from` on are so many items, pushed together.
    fn staged(&mut self, from: usize, items: usize, end: Position) {
        // In a plain ring nobody asks for the checksum.
        let framed = if self.handle.has_slots() { self.stage.since(from) } else { &[] };
        let tally = self.pushed.tally.extend(items as u64, framed);
        self.pushed = Mark { position: end, tally };
        self.ends.push_back(self.pushed);
    }

    /// Makes sure that so many bytes with framing can be staged, and answers where they will end.
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
        let end = start.checked_add(needed.next_multiple_of(4)).ok_or(too_large)?;
        if needed > self.stage.room() {
            self.hand_over()?;
        }
        Ok(end)
    }

    /// Makes durable what was advanced over, and what was pushed beyond that, where nobody sees it.
    pub fn flush(&mut self) -> Result<()> {
        self.handle.attached()?;
        self.hand_over()?;
        self.handle.flush()
    }

    /// Makes everything before `to` (a position that a push returned) visible to the consumer.
    ///
    /// A suspended ring answers [`Error::Suspended`]: what was pushed stays, and can be advanced after the resume.
    pub fn advance(&mut self, to: Position) -> Result<()> {
        self.handle.attached()?;
        if to == self.published.position {
            return Ok(());
        }
        let Ok(index) = self.ends.binary_search_by_key(&to, |end| end.position) else {
            let (from, limit) = (self.published.position, self.pushed.position);
            return Err(Error::Advance { to, from, limit });
        };
        let mark = self.ends[index];
        self.hand_over()?;
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

/// A payload's length, as its header has it.
fn length_of(payload: &[u8], geometry: Geometry) -> Result<u32> {
    u32::try_from(payload.len()).map_err(|_| Error::TooLarge {
        needed: payload.len() as u64 + HEADER_BYTES,
        capacity: geometry.capacity().get(),
    })
}

fn lengths_of(payloads: &[Cow<'_, [u8]>], geometry: Geometry) -> Result<Vec<u32>> {
    // By `collect` it would grow as it goes.
    let mut lengths = Vec::with_capacity(payloads.len());
    for payload in payloads {
        lengths.push(length_of(payload, geometry)?);
    }
    Ok(lengths)
}
