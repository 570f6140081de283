//! The end that pushes.

use crate::device::{AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::format::{Geometry, HEADER_BYTES, PointerSector, Position, Side, Tally, put_slot};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::history::{History, Memory, superseded};
use crate::item::Encode;
use crate::rules::{Fit, Mark, batch_len, fit, fitting, plausible};
use std::collections::VecDeque;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};

/// The only producer of a ring.
///
/// [`push`](Self::push) writes an item where nobody sees it, [`advance`](Self::advance) makes everything before a position
/// visible at once: several pushes before one advance are an atomic batch. Nothing here waits; when the ring is full
/// or suspended the answer is [`Error::Retry`] or [`Error::Suspended`].
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
    /// The consumer position that no power loss takes back: what lies `capacity` behind it is ours to overwrite.
    durable_consumer: Position,
    /// The sector that `pushed` lies in: what precedes it there must be written again with the next item.
    head: AlignedBuf,
    /// Reused for every write.
    frame: AlignedBuf,
    /// Sector 1, as we have written it.
    sector: AlignedBuf,
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
            .field("durable_consumer", &self.durable_consumer)
            .field("head", &self.head)
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
            durable_consumer: Position::ZERO,
            head: AlignedBuf::zeroed(size),
            frame: AlignedBuf::zeroed(0),
            sector: AlignedBuf::zeroed(size),
            heads: AlignedBuf::zeroed(2 * size),
            handle,
        };
        let suspend = producer.begin()?;
        producer.acknowledge(suspend)?;
        Ok(producer)
    }

    /// Starts where the ring stands, with nothing pushed. Whether its consumer wants us to stop.
    fn begin(&mut self) -> Result<bool> {
        let handle = &mut self.handle;
        let (consumer, freed) = handle.read_mark(Side::Consumer)?;
        let (producer, published) = handle.read_mark(Side::Producer)?;
        plausible(producer.position, consumer.position, handle.geometry)?;
        self.sector.copy_from_slice(handle.last_read());
        let published = Mark::resumed(
            Mark::new(producer.position, published),
            Mark::new(consumer.position, freed),
        );
        let size = self.head.len() as u64;
        let at = handle.geometry.sector_floor(published.position.get());
        let [extent, _] = handle.geometry.extents(at, size);
        handle.device.read(extent.offset / size, &mut [IoSliceMut::new(&mut self.head)])?;
        // What we read may not be durable yet, and we are about to rely on it.
        handle.flush()?;
        (self.start, self.published, self.pushed) = (published, published, published);
        self.ends.clear();
        (self.acknowledged, self.durable_consumer) = (producer.flag, consumer.position);
        Ok(consumer.flag)
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
        let consumer = self.look()?;
        self.acknowledge(consumer.flag)?;
        Ok(State::of(consumer.flag))
    }

    /// The sectors' facts, read afresh.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.handle.debug_info()
    }

    /// Writes an item behind those pushed before, and returns the position to [`advance`](Self::advance) to.
    pub fn push<T: Encode + ?Sized>(&mut self, item: &T) -> Result<Position> {
        let payload = item.encode();
        self.push_all(&Payloads::new(vec![&payload], self.handle.geometry)?)
    }

    /// Writes items in one go, all or none of them.
    pub fn push_batch<T: Encode>(&mut self, items: &[T]) -> Result<Position> {
        let encoded: Vec<_> = items.iter().map(Encode::encode).collect();
        let payloads = encoded.iter().map(AsRef::as_ref).collect();
        self.push_all(&Payloads::new(payloads, self.handle.geometry)?)
    }

    /// Writes as many of the items as there is room for, at least one, in one go, and returns how many.
    pub fn push_some<T: Encode>(&mut self, items: &[T]) -> Result<(usize, Position)> {
        let encoded: Vec<_> = items.iter().map(Encode::encode).collect();
        let payloads = encoded.iter().map(AsRef::as_ref).collect();
        let mut payloads = Payloads::new(payloads, self.handle.geometry)?;
        let consumer = self.running()?;
        let capacity = self.handle.geometry.capacity();
        let count = fitting(self.pushed.position, consumer, capacity, &payloads.lengths);
        // Where not even one fits, that one's refusal is the answer.
        payloads.truncate(count.max(1));
        self.push_behind(consumer, &payloads).map(|end| (count, end))
    }

    fn push_all(&mut self, payloads: &Payloads<'_>) -> Result<Position> {
        let consumer = self.running()?;
        self.push_behind(consumer, payloads)
    }

    fn push_behind(&mut self, consumer: Position, payloads: &Payloads<'_>) -> Result<Position> {
        let capacity = self.handle.geometry.capacity();
        let needed = batch_len(&payloads.lengths);
        let too_large = Error::TooLarge { needed, capacity: capacity.get() };
        match fit(self.pushed.position, consumer, capacity, needed) {
            Fit::Never => return Err(too_large),
            Fit::Later => return Err(Error::Retry),
            Fit::Now => {}
        }
        let start = self.pushed.position;
        let end = start.checked_add(needed.next_multiple_of(4)).ok_or(too_large)?;
        if end == start {
            return Ok(end);
        }
        if end.get() > self.durable_consumer.get().saturating_add(capacity.get()) {
            // The space ahead was freed by a consumer pointer that power loss may still take back, and then the bytes
            // we are about to overwrite would count as unconsumed.
            self.handle.flush()?;
            self.durable_consumer = consumer;
        }
        let tally = match self.write(payloads, end) {
            Ok(tally) => tally,
            Err(e) if e.is_refusal() => {
                return Err(self.look().err().filter(Error::is_superseded).unwrap_or(e));
            }
            Err(e) => return Err(e),
        };
        self.pushed = Mark { position: end, tally };
        self.ends.push_back(self.pushed);
        Ok(end)
    }

    /// Frames `payloads` from `pushed` to `end` and writes the sectors they touch. What is known of the stream then.
    fn write(&mut self, payloads: &Payloads<'_>, end: Position) -> Result<Tally> {
        let geometry = self.handle.geometry;
        let (size, capacity) = (geometry.sector_size().bytes(), geometry.capacity().get());
        let first = geometry.sector_floor(self.pushed.position.get());
        let last = geometry.sector_ceil(end.get());
        // Both spans are at most one sector longer than the batch, which lies in memory already.
        let in_frame = |position: u64| usize::try_from(position - first).unwrap_or(usize::MAX);
        self.frame.resize(in_frame(last));
        let start = in_frame(self.pushed.position.get());
        let mut at = start;
        self.frame[..at].copy_from_slice(&self.head[..at]);
        for (payload, length) in payloads.bytes.iter().zip(&payloads.lengths) {
            let body = at + 4;
            self.frame[at..body].copy_from_slice(&length.to_le_bytes());
            self.frame[body..body + payload.len()].copy_from_slice(payload);
            at = (body + payload.len()).next_multiple_of(4);
            self.frame[body + payload.len()..at].fill(0);
        }
        // In a plain ring nobody asks for the checksum.
        let summed = if self.handle.has_slots() { &self.frame[start..at] } else { &[] };
        let tally = self.pushed.tally.extend(payloads.bytes.len() as u64, summed);
        let new_head = if last - first > capacity {
            // The batch ends in the sector it starts in, one lap on: its end goes in front, where the head was consumed.
            let lap = in_frame(first + capacity);
            self.frame.copy_within(lap..at, 0);
            self.frame.resize(lap);
            0
        } else {
            self.frame[at..].fill(0);
            let tail = in_frame(last) - size;
            if last > self.durable_consumer.get().saturating_add(capacity) {
                // Behind the batch, its last sector holds bytes that are unconsumed, or would be after a power loss.
                let [extent, _] = geometry.extents(last - size as u64, size as u64);
                let mut oldest = AlignedBuf::zeroed(size);
                self.handle
                    .device
                    .read(extent.offset / size as u64, &mut [IoSliceMut::new(&mut oldest)])?;
                self.frame[at..].copy_from_slice(&oldest[at - tail..]);
            }
            tail
        };
        let mut rest = &self.frame[..];
        for extent in geometry.extents(first, self.frame.len() as u64) {
            let (now, later) = rest.split_at(usize::try_from(extent.len).unwrap_or(rest.len()));
            if !now.is_empty() {
                self.handle.device.write(extent.offset / size as u64, &[IoSlice::new(now)])?;
            }
            rest = later;
        }
        // Only now: after a failed write the next push starts from the same head again.
        self.head.copy_from_slice(&self.frame[new_head..new_head + size]);
        Ok(tally)
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
        self.running()?;
        if to > self.published.position {
            self.handle.flush()?;
            self.publish(mark, self.acknowledged)?;
        }
        while self.ends.front().is_some_and(|end| end.position <= to) {
            self.ends.pop_front();
        }
        Ok(())
    }

    /// The consumer's position, if the ring is not suspended; acknowledges a change.
    fn running(&mut self) -> Result<Position> {
        self.handle.attached()?;
        let consumer = self.look()?;
        self.acknowledge(consumer.flag)?;
        if consumer.flag {
            return Err(Error::Suspended);
        }
        plausible(self.pushed.position, consumer.position, self.handle.geometry)?;
        Ok(consumer.position)
    }

    /// What the consumer says, with a look at our own pointer.
    fn look(&mut self) -> Result<PointerSector> {
        let first = Side::Producer.sector();
        self.handle.device.read(first, &mut [IoSliceMut::new(&mut self.heads)])?;
        if self.heads[..self.sector.len()] != self.sector[..] {
            self.reconcile()?;
        }
        Ok(PointerSector::decode(Side::Consumer, &self.heads[self.sector.len()..])?)
    }

    /// Deals with a pointer sector that is not as we have written it.
    fn reconcile(&mut self) -> Result<()> {
        let own = &self.heads[..self.sector.len()];
        let remembered = PointerSector::decode(Side::Producer, &self.sector)?.position;
        let claim = |sector: &[u8], position| self.handle.claim(Side::Producer, sector, position);
        let ring = PointerSector::decode(Side::Producer, own)?;
        let memory = Memory {
            start: self.start,
            sector: (remembered, claim(&self.sector, remembered)),
            published: self.published,
            ends: &self.ends,
        };
        match memory.compare(ring.position, claim(own, ring.position)) {
            // Another text, or an acknowledgement.
            History::Ours => {}
            History::Ahead => {
                // Whoever has published it may have died before it was durable.
                self.handle.flush()?;
                self.published = self.pushed;
            }
            History::Parted(from) => {
                let to = self.pushed;
                self.handle.revive();
                self.begin()?;
                return Err(superseded(Side::Producer, ring.position, from, to));
            }
        }
        let size = self.sector.len();
        self.sector.copy_from_slice(&self.heads[..size]);
        self.acknowledged = ring.flag;
        Ok(())
    }

    fn acknowledge(&mut self, suspend: bool) -> Result<()> {
        if suspend == self.acknowledged {
            return Ok(());
        }
        self.publish(self.published, suspend)
    }

    fn publish(&mut self, mark: Mark, suspended: bool) -> Result<()> {
        let mut sector = AlignedBuf::zeroed(self.sector.len());
        sector.copy_from_slice(&self.sector);
        let present = PointerSector::decode(Side::Producer, &sector)?.position;
        if mark.position > present
            && let Some((uuid, slot)) = self.handle.slot(mark)
        {
            put_slot(uuid, &mut sector, present, &slot);
        }
        let pointer = PointerSector { position: mark.position, flag: suspended };
        pointer.encode(Side::Producer, Some(self.handle.owner()), &mut sector);
        match self.handle.write_producer(&sector) {
            Err(e) if e.is_refusal() => return self.contested(&sector, mark, e),
            written => written?,
        }
        (self.sector, self.published, self.acknowledged) = (sector, mark, suspended);
        Ok(())
    }

    /// What `error` has come of, which a write of our pointer to `mark` has met: the device, or another life of ours.
    fn contested(&mut self, sector: &[u8], mark: Mark, error: Error) -> Result<()> {
        let first = Side::Producer.sector();
        let heads = &mut [IoSliceMut::new(&mut self.heads)];
        let read = self.handle.device.read(first, heads);
        let own = &self.heads[..sector.len()];
        if read.is_err() || own == sector || own == &self.sector[..] {
            return Err(error);
        }
        match self.reconcile() {
            Ok(()) if self.published.position >= mark.position => {
                self.handle.revive();
                Ok(())
            }
            Err(e) if e.is_superseded() => Err(e),
            Ok(()) | Err(_) => Err(error),
        }
    }
}

/// What is to be pushed in one go.
struct Payloads<'a> {
    bytes: Vec<&'a [u8]>,
    /// Of each, as its header has it.
    lengths: Vec<u32>,
}

impl<'a> Payloads<'a> {
    fn new(bytes: Vec<&'a [u8]>, geometry: Geometry) -> Result<Self> {
        let length = |payload: &&[u8]| {
            u32::try_from(payload.len()).map_err(|_| Error::TooLarge {
                needed: payload.len() as u64 + HEADER_BYTES,
                capacity: geometry.capacity().get(),
            })
        };
        let lengths = bytes.iter().map(length).collect::<Result<_>>()?;
        Ok(Self { bytes, lengths })
    }

    fn truncate(&mut self, count: usize) {
        self.bytes.truncate(count);
        self.lengths.truncate(count);
    }
}
