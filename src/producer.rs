//! The end that pushes.

use crate::device::{AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::format::{Geometry, HEADER_BYTES, PointerSector, Position, Side, Tally, put_slot};
use crate::handle::{DebugInfo, Durability, Handle, State};
use crate::history::{History, Memory, superseded};
use crate::item::Encode;
use crate::rules::{Fit, Mark, batch_len, fit, fitting, plausible};
use crate::stage::Stage;
use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};

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

    /// Starts where the ring stands, with nothing pushed.
    fn begin(&mut self) -> Result<()> {
        let handle = &mut self.handle;
        let (consumer, freed) = handle.read_mark(Side::Consumer)?;
        let (producer, published) = handle.read_mark(Side::Producer)?;
        plausible(producer.position, consumer.position, handle.geometry)?;
        self.sector.copy_from_slice(handle.last_read());
        let published = Mark::resumed(
            Mark::new(producer.position, published),
            Mark::new(consumer.position, freed),
        );
        let head = self.stage.restart(published.position);
        read_data(handle, published.position.get(), head)?;
        // What we read may not be durable yet, and we are about to rely on it.
        handle.flush()?;
        (self.start, self.published, self.pushed) = (published, published, published);
        self.ends.clear();
        (self.consumer, self.acknowledged) = (consumer, producer.flag);
        self.durable_consumer = consumer.position;
        Ok(())
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
        let payload = item.encode();
        let length = length_of(&payload, self.handle.geometry)?;
        let end = self.admit(u64::from(length) + HEADER_BYTES)?;
        let tally = self.put(self.pushed.tally, &payload, length);
        self.end_at(end, tally);
        Ok(end)
    }

    /// Pushes items, all or none of them.
    pub fn push_batch<T: Encode>(&mut self, items: &[T]) -> Result<Position> {
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

    fn push_all(&mut self, payloads: &[Cow<'_, [u8]>], lengths: &[u32]) -> Result<Position> {
        let start = self.pushed.position;
        let end = self.admit(batch_len(lengths))?;
        if end > start {
            let mut tally = self.pushed.tally;
            for (payload, length) in payloads.iter().zip(lengths) {
                tally = self.put(tally, payload, *length);
            }
            self.end_at(end, tally);
        }
        Ok(end)
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
        if !self.stage.has_room(needed) {
            self.hand_over()?;
        }
        Ok(end)
    }

    /// Stages one item; what is known of the stream behind it, if this is known in front.
    fn put(&mut self, tally: Tally, payload: &[u8], length: u32) -> Tally {
        let framed = self.stage.put(payload, length);
        // In a plain ring nobody asks for the checksum.
        tally.extend(1, if self.handle.has_slots() { framed } else { &[] })
    }

    fn end_at(&mut self, position: Position, tally: Tally) {
        self.pushed = Mark { position, tally };
        self.ends.push_back(self.pushed);
    }

    /// Makes durable what was pushed, where nobody sees it, whether it is advanced over or not.
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

    /// Gives the device what is staged, unless the ring is known to be suspended, or to be somebody else's.
    fn hand_over(&mut self) -> Result<()> {
        // Whoever serves a disk to virtual machines refuses a pointer whose slots do not continue those that are there, and so another
        // life's. Without slots nobody can tell; and where it costs no request we look ourselves.
        let device = &self.handle.device;
        if self.consumer.flag || !self.handle.has_slots() || device.reads_are_free() {
            self.running()?;
        }
        match self.write_out() {
            Err(e) if e.is_refusal() => {
                Err(self.look().err().filter(Error::is_superseded).unwrap_or(e))
            }
            written => written,
        }
    }

    /// Writes the sectors that staged items touch.
    fn write_out(&mut self) -> Result<()> {
        if self.stage.is_clean() {
            return Ok(());
        }
        let capacity = self.handle.geometry.capacity().get();
        if self.pushed.position.get() > self.durable_consumer.get().saturating_add(capacity) {
            // The space ahead was freed by a consumer pointer that power loss may still take back, and then the bytes
            // we are about to overwrite would count as unconsumed.
            self.handle.flush()?;
            self.durable_consumer = self.consumer.position;
        }
        let (handle, heads) = (&self.handle, &mut self.heads);
        let size = self.sector.len();
        let limit = self.durable_consumer.get().saturating_add(capacity);
        let (first, bytes) = self.stage.sectors(capacity, |last, behind| -> Result<()> {
            if last > limit {
                // Bytes that are unconsumed, or would be after a power loss.
                let oldest = &mut heads[..size];
                read_data(handle, last - size as u64, oldest)?;
                behind.copy_from_slice(&oldest[size - behind.len()..]);
            } else {
                behind.fill(0);
            }
            Ok(())
        })?;
        let mut rest = bytes;
        for extent in handle.geometry.extents(first, bytes.len() as u64) {
            let (now, later) = rest.split_at(usize::try_from(extent.len).unwrap_or(rest.len()));
            if !now.is_empty() {
                handle.device.write(extent.offset / size as u64, &[IoSlice::new(now)])?;
            }
            rest = later;
        }
        // Only now: after a failed write the next one starts from the same sector again.
        self.stage.settle();
        Ok(())
    }

    /// Looks, acknowledges a change, and goes on if the ring is not suspended.
    fn running(&mut self) -> Result<()> {
        self.look()?;
        self.acknowledge()?;
        if self.consumer.flag {
            return Err(Error::Suspended);
        }
        Ok(plausible(self.pushed.position, self.consumer.position, self.handle.geometry)?)
    }

    /// Sees what the consumer says, with a look at our own pointer.
    fn look(&mut self) -> Result<()> {
        let first = Side::Producer.sector();
        self.handle.device.read(first, &mut [IoSliceMut::new(&mut self.heads)])?;
        if self.heads[..self.sector.len()] != self.sector[..] {
            self.reconcile()?;
        }
        self.consumer = PointerSector::decode(Side::Consumer, &self.heads[self.sector.len()..])?;
        Ok(())
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
                self.stage.settle();
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

    fn acknowledge(&mut self) -> Result<()> {
        if self.consumer.flag == self.acknowledged {
            return Ok(());
        }
        self.publish(self.published, self.consumer.flag)
    }

    fn publish(&mut self, mark: Mark, suspended: bool) -> Result<()> {
        if let Err(e) = self.write_pointer(mark, suspended) {
            if !e.is_refusal() {
                return Err(e);
            }
            if self.contested(mark, e)? {
                return Ok(());
            }
            // Once more, now that we know what was there.
            self.write_pointer(mark, suspended)?;
        }
        std::mem::swap(&mut self.sector, &mut self.next);
        (self.published, self.acknowledged) = (mark, suspended);
        Ok(())
    }

    fn write_pointer(&mut self, mark: Mark, suspended: bool) -> Result<()> {
        self.next.copy_from_slice(&self.sector);
        let present = PointerSector::decode(Side::Producer, &self.next)?.position;
        if mark.position > present
            && let Some((uuid, slot)) = self.handle.slot(mark)
        {
            put_slot(uuid, &mut self.next, present, &slot);
        }
        let pointer = PointerSector { position: mark.position, flag: suspended };
        pointer.encode(Side::Producer, Some(self.handle.owner()), &mut self.next);
        self.handle.write_producer(&self.next)
    }

    /// What `error` has come of, which a write of our pointer to `mark` has met: the device, or another life of ours. Whether that has
    /// written what we wanted to; if not, its pointer is where we have left it, and only what is beside it was not.
    fn contested(&mut self, mark: Mark, error: Error) -> Result<bool> {
        let first = Side::Producer.sector();
        let heads = &mut [IoSliceMut::new(&mut self.heads)];
        let read = self.handle.device.read(first, heads);
        let own = &self.heads[..self.sector.len()];
        if read.is_err() || own == &self.next[..] || own == &self.sector[..] {
            return Err(error);
        }
        let acknowledged = self.acknowledged;
        match self.reconcile() {
            Ok(()) if self.acknowledged == acknowledged => {
                self.handle.revive();
                Ok(self.published.position >= mark.position)
            }
            Err(e) if e.is_superseded() => Err(e),
            Ok(()) | Err(_) => Err(error),
        }
    }
}

/// Fills a sector with what the device has of the data at a place in the stream.
fn read_data<D: BlockDevice>(handle: &Handle<D>, at: u64, sector: &mut [u8]) -> Result<()> {
    let size = sector.len() as u64;
    let [extent, _] = handle.geometry.extents(handle.geometry.sector_floor(at), size);
    Ok(handle.device.read(extent.offset / size, &mut [IoSliceMut::new(sector)])?)
}

/// A payload's length, as its header has it.
fn length_of(payload: &[u8], geometry: Geometry) -> Result<u32> {
    u32::try_from(payload.len()).map_err(|_| Error::TooLarge {
        needed: payload.len() as u64 + HEADER_BYTES,
        capacity: geometry.capacity().get(),
    })
}

fn lengths_of(payloads: &[Cow<'_, [u8]>], geometry: Geometry) -> Result<Vec<u32>> {
    payloads.iter().map(|payload| length_of(payload, geometry)).collect()
}
