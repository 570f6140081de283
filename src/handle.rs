//! What producer and consumer have in common: being attached to a ring.

use crate::device::{AlignedBuf, BlockDevice, DeviceError, LockRange, RangeLock, holder};
use crate::error::{Error, Result};
use crate::format::{
    FormatError, Geometry, PointerSector, Position, Side, Signed, Slot, Tally, decode_sector0,
    find_slot, text_of,
};
use crate::rules::Mark;
use serde::Serialize;
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Readings of a pointer sector, with the same bytes, before it is given up: a reader can meet a write halfway.
const SAME_READINGS: u32 = 3;

/// Readings in all: more than a writer can disturb by chance.
const READINGS: u32 = 1000;

/// Whether an operation waits until the device says that it is safe from power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Data is flushed before the pointer that exposes it, the pointer before `advance` returns.
    #[default]
    Flush,
    /// Data is flushed before the pointer that exposes it, and the pointer by whatever is flushed next: the next `advance`, or
    /// [`Producer::flush`](crate::Producer::flush). Half of the flushes. A power cut can take back the last `advance`, and nothing else: what is
    /// there is whole and in order, and what a consumer had freed was there.
    Ordered,
    /// Nothing is flushed. Safe against the death of any process, not against that of the machine.
    PageCache,
}

/// Whether the producer may push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It may.
    Running,
    /// The consumer asked it to stop, and it has acknowledged.
    Suspended,
}

impl State {
    pub(crate) fn of(suspended: bool) -> Self {
        if suspended { Self::Suspended } else { Self::Running }
    }
}

/// The facts of a ring as its sectors have them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DebugInfo {
    /// Bytes in a sector.
    pub sector_size: u32,
    /// Sectors on the device.
    pub total_sectors: u64,
    /// Bytes in the data area.
    pub capacity: u64,
    /// Everything before it is published.
    pub producer: Position,
    /// Everything before it is consumed.
    pub consumer: Position,
    /// Bytes published and not yet consumed.
    pub used: u64,
    /// The consumer wants the producer to stop.
    pub suspend: bool,
    /// The producer has heard it.
    pub suspend_ack: bool,
    /// Items published since the ring was created, as far as that is known.
    pub producer_items: Option<u64>,
    /// Items consumed since the ring was created, as far as that is known.
    pub consumer_items: Option<u64>,
    /// Time of the last `advance` of the producer, nanoseconds since 1970.
    pub producer_time_ns: Option<u64>,
    /// Time of the last `advance` of the consumer, nanoseconds since 1970.
    pub consumer_time_ns: Option<u64>,
    /// The text of sector 1, made printable.
    pub producer_text: String,
    /// The text of sector 2, made printable.
    pub consumer_text: String,
    /// The ring's identity; absent in a plain ring.
    pub uuid: Option<String>,
}

/// An attached end of a ring.
pub(crate) struct Handle<D> {
    pub device: D,
    pub geometry: Geometry,
    pub durability: Durability,
    queue: String,
    client: String,
    signed: Signed,
    attachment: Attachment,
    sector: AlignedBuf,
    /// A flush or a pointer's write has failed.
    failed: AtomicBool,
}

/// Without device and scratch sector, in one line.
impl<D> fmt::Debug for Handle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attachment, durability, failed, .. } = self;
        write!(f, "Handle({attachment:?}, {durability:?}, failed: {failed:?})")
    }
}

#[derive(Debug)]
enum Attachment {
    /// As the ring's only producer or consumer.
    Role(#[expect(dead_code, reason = "held until dropped")] RangeLock),
    /// Beside them.
    Guest,
    /// No longer.
    Detached,
}

impl<D: BlockDevice> Handle<D> {
    /// Verifies the ring and becomes its only `side`.
    pub fn attach(device: D, side: Side, queue: &str, client: &str) -> Result<Self> {
        let mut handle = Self::open(device, queue, client)?;
        let role = RangeLock::try_acquire(&handle.device, LockRange::Role(side))?
            .ok_or_else(|| Error::Held { role: side, holder: holder(&handle.device, side) })?;
        handle.attachment = Attachment::Role(role);
        Ok(handle)
    }

    /// Verifies the ring, and takes no role.
    pub fn open(device: D, queue: &str, client: &str) -> Result<Self> {
        let geometry = device.geometry();
        let mut sector = AlignedBuf::zeroed(geometry.sector_size().bytes());
        device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
        Ok(Self {
            signed: decode_sector0(&sector, geometry)?,
            device,
            geometry,
            durability: Durability::default(),
            queue: queue.to_owned(),
            client: client.to_owned(),
            attachment: Attachment::Guest,
            sector,
            failed: AtomicBool::new(false),
        })
    }

    pub fn detach(&mut self) {
        self.attachment = Attachment::Detached;
        self.device.detached();
    }

    pub fn attached(&self) -> Result<()> {
        match self.attachment {
            Attachment::Detached => Err(Error::Detached),
            _ if self.failed.load(Ordering::Relaxed) => Err(Error::Failed),
            Attachment::Role(_) | Attachment::Guest => Ok(()),
        }
    }

    /// What has failed was no failure of the device: the ring has moved, and what is in doubt is somebody else's.
    pub fn revive(&self) {
        self.failed.store(false, Ordering::Relaxed);
    }

    pub fn owner(&self) -> (&str, &str) {
        (&self.queue, &self.client)
    }

    pub fn read_pointer(&mut self, side: Side) -> Result<PointerSector> {
        self.device.read(side.sector(), &mut [IoSliceMut::new(&mut self.sector)])?;
        Ok(PointerSector::decode(side, &self.sector)?)
    }

    /// The pointer, and what its slot says of the stream before it.
    pub fn read_mark(&mut self, side: Side) -> Result<(PointerSector, Option<Tally>)> {
        let (pointer, slot) = read_slot(&self.device, &self.signed, side, &mut self.sector)?;
        Ok((pointer, slot.map(|slot| slot.tally)))
    }

    /// The same in the steady state, without the sector's text: see [`BlockDevice::read_head`].
    pub fn glean_mark(&mut self, side: Side) -> Result<(PointerSector, Option<Tally>)> {
        let device = &self.device;
        let read = |sector: &mut [u8]| device.read_head(side, sector);
        let (pointer, slot) = readings(&self.signed, side, &mut self.sector, read)?;
        Ok((pointer, slot.map(|slot| slot.tally)))
    }

    /// What the slot for `position` says in a pointer sector that nobody writes meanwhile.
    pub fn claim(&self, side: Side, sector: &[u8], position: Position) -> Option<Tally> {
        let slot = find_slot(self.signed.uuid()?, side, sector, position).ok()?;
        slot.map(|slot| slot.tally)
    }

    /// The pointer sector as it was read last.
    pub fn last_read(&self) -> &[u8] {
        &self.sector
    }

    /// What goes into the slot for `mark`; nothing in a plain ring.
    pub fn slot(&self, mark: Mark) -> Option<(Uuid, Slot)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Nanoseconds since 1970 fit 64 bits until the year 2554.
        let time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let slot = Slot { position: mark.position, tally: mark.tally, time_ns };
        Some((self.signed.uuid()?, slot))
    }

    /// Whether pointers have slots in this ring.
    pub fn has_slots(&self) -> bool {
        self.signed.uuid().is_some()
    }

    /// Whether the producer has acknowledged a suspend.
    pub fn acknowledged(&mut self) -> Result<State> {
        self.attached()?;
        Ok(State::of(self.read_pointer(Side::Producer)?.flag))
    }

    /// Whether `suspend` remains to be written (else it is durable): [`Error::Retry`] while the previous change is not acknowledged.
    pub fn change_wanted(&mut self, suspend: bool) -> Result<bool> {
        self.attached()?;
        let acknowledged = self.read_pointer(Side::Producer)?.flag;
        let current = self.read_pointer(Side::Consumer)?.flag;
        if acknowledged != current {
            return Err(Error::Retry);
        }
        if current == suspend {
            // Whoever set it so may have died before it was durable.
            self.flush()?;
        }
        Ok(current != suspend)
    }

    /// Changes sector 2, keeping what another process changed meanwhile. It is not flushed.
    pub fn edit_consumer(&self, change: impl Fn(&mut PointerSector, &mut [u8])) -> Result<()> {
        let mut verdict = Ok(());
        let edited = self.device.edit_pointer(Side::Consumer, &mut |sector| {
            verdict = PointerSector::decode(Side::Consumer, sector)
                .map(|mut pointer| change(&mut pointer, sector));
        });
        self.vital(edited)?;
        Ok(verdict?)
    }

    /// Writes the producer's pointer sector.
    pub fn write_producer(&self, sector: &[u8]) -> Result<()> {
        self.vital(self.device.write(Side::Producer.sector(), &[IoSlice::new(sector)]))?;
        self.flush_pointer()
    }

    /// After a pointer was written.
    pub fn flush_pointer(&self) -> Result<()> {
        if self.durability == Durability::Ordered { Ok(()) } else { self.flush() }
    }

    /// Without it, nothing may be acknowledged any more.
    fn vital(&self, result: std::result::Result<(), DeviceError>) -> Result<()> {
        Ok(result.inspect_err(|_| self.failed.store(true, Ordering::Relaxed))?)
    }

    pub fn flush(&self) -> Result<()> {
        match self.durability {
            Durability::Flush | Durability::Ordered => self.vital(self.device.flush()),
            Durability::PageCache => Ok(()),
        }
    }

    /// The sectors' facts, read afresh.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.attached()?;
        debug_info(&self.device, &self.signed)
    }
}

/// Reads a pointer sector beside whoever writes it, until a slot speaks for the position, or none can. `sector` is one to read into.
pub fn read_slot<D: BlockDevice + ?Sized>(
    device: &D,
    signed: &Signed,
    side: Side,
    sector: &mut [u8],
) -> Result<(PointerSector, Option<Slot>)> {
    let first = side.sector();
    readings(signed, side, sector, |sector| device.read(first, &mut [IoSliceMut::new(sector)]))
}

/// The readings of [`read_slot`], each by `read`.
fn readings(
    signed: &Signed,
    side: Side,
    sector: &mut [u8],
    read: impl Fn(&mut [u8]) -> std::result::Result<(), DeviceError>,
) -> Result<(PointerSector, Option<Slot>)> {
    let mut before = Vec::new();
    let mut same = 0;
    for _ in 0..READINGS {
        read(sector)?;
        let pointer = PointerSector::decode(side, sector)?;
        let Some(uuid) = signed.uuid() else { return Ok((pointer, None)) };
        let again = before == sector;
        match find_slot(uuid, side, sector, pointer.position) {
            Ok(Some(slot)) => return Ok((pointer, Some(slot))),
            // At the very start there is nothing to say. Elsewhere one reading does not show that there is no slot: the writer can
            // be two positions further on by now, and this position's slot absent while the next one is written over it.
            Ok(None) if again || pointer.position == Position::ZERO => return Ok((pointer, None)),
            Err(e) if same == SAME_READINGS => return Err(e.into()),
            Ok(None) | Err(_) => same = if again { same + 1 } else { 0 },
        }
        before = sector.to_vec();
    }
    let position = PointerSector::decode(side, sector)?.position;
    Err(FormatError::Slots { side, position }.into())
}

fn debug_info<D: BlockDevice>(device: &D, signed: &Signed) -> Result<DebugInfo> {
    let geometry = device.geometry();
    let size = geometry.sector_size().bytes();
    let (mut first, mut second) = (AlignedBuf::zeroed(size), AlignedBuf::zeroed(size));
    let (producer, published) = read_slot(device, signed, Side::Producer, &mut first)?;
    let (consumer, freed) = read_slot(device, signed, Side::Consumer, &mut second)?;
    let items = |slot: Option<Slot>| {
        slot.filter(|slot| !slot.tally.since_base).map(|slot| slot.tally.items)
    };
    Ok(DebugInfo {
        sector_size: geometry.sector_size().get(),
        total_sectors: geometry.sectors(),
        capacity: geometry.capacity().get(),
        producer: producer.position,
        consumer: consumer.position,
        // A consumer ahead is what power loss can leave: empty until the producer attaches.
        used: producer.position.since(consumer.position).unwrap_or(0),
        suspend: consumer.flag,
        suspend_ack: producer.flag,
        producer_items: items(published),
        consumer_items: items(freed),
        producer_time_ns: published.map(|slot| slot.time_ns),
        consumer_time_ns: freed.map(|slot| slot.time_ns),
        producer_text: text_of(&first),
        consumer_text: text_of(&second),
        uuid: signed.uuid().map(|uuid| uuid.to_string()),
    })
}
