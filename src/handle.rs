//! A handle on a ring: what producer, consumer and control have in common.

use crate::device::{
    AlignedBuf, BlockDevice, DeviceError, LockRange, Operation, RangeLock, RingDevice, holder,
};
use crate::error::{Error, Result};
use crate::format::{
    Geometry, PointerSector, Position, Reading, Side, Signed, Slot, SlotSearch, Tally,
    decode_sector0, find_slot, reserved, text_of,
};
use crate::rules::Mark;
use crate::sector0::Sector0;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// The flushes that `advance` makes, and so what a power loss can take back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Durability {
    /// Items are flushed before the pointer that publishes them, and the pointer before `advance`
    /// returns: nothing is taken back.
    #[default]
    Flush,
    /// Items are flushed before the pointer that publishes them, and the pointer by the next flush:
    /// that of the next `advance`, or [`Producer::flush`](crate::Producer::flush). Half of the
    /// flushes. A power loss can take back the last `advance`, and nothing else: the items that are
    /// left are whole and in order, and what a consumer had freed was published.
    Ordered,
    /// Nothing is flushed: safe against the death of any process, not against that of the machine.
    PageCache,
}

/// Whether the producer may push.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The producer may push.
    Running,
    /// The consumer has suspended the ring, and the producer has acknowledged it.
    Suspended,
}

impl State {
    pub(crate) fn of(suspended: bool) -> Self {
        if suspended { Self::Suspended } else { Self::Running }
    }
}

/// The state of a ring as its sectors have it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct DebugInfo {
    /// Bytes in a sector.
    pub sector_size: u32,
    /// Sectors on the device.
    pub total_sectors: u64,
    /// Bytes in the data area.
    pub capacity: u64,
    /// The producer's position: everything before it is published.
    pub producer: Position,
    /// The consumer's position: everything before it is consumed.
    pub consumer: Position,
    /// Bytes that are published and not consumed.
    pub used: u64,
    /// The consumer's flag: whether the producer is to stop.
    pub suspend: bool,
    /// The producer's flag: whether it has stopped.
    pub suspend_ack: bool,
    /// Items published since the ring was created, if the count is known.
    pub producer_items: Option<u64>,
    /// Items consumed since the ring was created, if the count is known.
    pub consumer_items: Option<u64>,
    /// Time of the producer's last `advance`, in nanoseconds since 1970.
    pub producer_time_ns: Option<u64>,
    /// Time of the consumer's last `advance`, in nanoseconds since 1970.
    pub consumer_time_ns: Option<u64>,
    /// The text of sector 1, made printable.
    pub producer_text: String,
    /// The text of sector 2, made printable.
    pub consumer_text: String,
    /// The ring's UUID; `None` for a plain ring.
    pub uuid: Option<String>,
}

impl DebugInfo {
    /// Reads the state of the ring on `device`, which no handle has to be open for. It works beside
    /// a producer and a consumer that move.
    ///
    /// # Errors
    /// The device's, and [`Error::Format`] for a device without a ring or with damaged pointers.
    pub fn read<D: BlockDevice + ?Sized>(device: &D) -> Result<Self> {
        let geometry = device.geometry();
        let mut sector = AlignedBuf::zeroed(geometry.sector_size().bytes());
        device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
        debug_info(device, &decode_sector0(&sector, geometry)?)
    }
}

/// The names of queue and client, for the text of a pointer sector.
pub(crate) type Owner<'a> = (&'a str, &'a str);

/// A handle on a ring.
pub(crate) struct Handle<D> {
    pub device: D,
    pub geometry: Geometry,
    pub durability: Durability,
    queue: String,
    client: String,
    signed: Signed,
    sector0: Sector0,
    attachment: Attachment,
    sector: AlignedBuf,
    /// Whether a flush or the write of a pointer has failed.
    failed: AtomicBool,
}

/// Without device and scratch sector, in one line.
impl<D> fmt::Debug for Handle<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { attachment, durability, failed, .. } = self;
        write!(f, "Handle({attachment:?}, {durability:?}, failed: {failed:?})")
    }
}

/// How a handle is attached to its ring.
#[derive(Debug)]
enum Attachment {
    /// As its only producer or consumer.
    Role(#[expect(dead_code, reason = "held until dropped")] RangeLock),
    /// Beside producer and consumer.
    Beside,
    /// No longer.
    Detached,
}

impl<D: RingDevice> Handle<D> {
    /// Verifies the ring and becomes its only `side`.
    pub fn attach(device: D, side: Side, queue: &str, client: &str) -> Result<Self> {
        let mut handle = Self::open(device, queue, client)?;
        let role = RangeLock::try_acquire(&handle.device, LockRange::Role(side))?
            .ok_or_else(|| Error::RoleTaken { role: side, holder: holder(&handle.device, side) })?;
        handle.attachment = Attachment::Role(role);
        Ok(handle)
    }

    /// Verifies the ring, and takes no role.
    pub fn open(device: D, queue: &str, client: &str) -> Result<Self> {
        let geometry = device.geometry();
        let sector0 = Sector0::read(&device)?;
        Ok(Self {
            signed: decode_sector0(sector0.bytes(), geometry)?,
            sector0,
            device,
            geometry,
            durability: Durability::default(),
            queue: queue.to_owned(),
            client: client.to_owned(),
            attachment: Attachment::Beside,
            sector: AlignedBuf::zeroed(geometry.sector_size().bytes()),
            failed: AtomicBool::new(false),
        })
    }

    /// Asks whether the device is still there, and holds the ring that was opened: see
    /// [`Sector0::check_presence`].
    pub fn check_presence(&self) -> Result<()> {
        Ok(self.sector0.check_presence(&self.device)?)
    }

    /// Sector 0, decoded.
    pub fn signed(&self) -> &Signed {
        &self.signed
    }

    /// Sector 0 as it was when the ring was opened.
    pub fn sector0(&self) -> &Sector0 {
        &self.sector0
    }

    pub fn detach(&mut self) {
        self.attachment = Attachment::Detached;
        self.device.release_role();
    }

    /// Refuses a handle that is detached or has failed.
    pub fn attached(&self) -> Result<()> {
        match self.attachment {
            Attachment::Detached => Err(Error::Detached),
            _ if self.failed.load(Ordering::Relaxed) => Err(Error::Failed),
            Attachment::Role(_) | Attachment::Beside => Ok(()),
        }
    }

    /// Forgets a failed write: another instance had moved the pointer, and the device is sound.
    pub fn revive(&self) {
        self.failed.store(false, Ordering::Relaxed);
    }

    pub fn set_client(&mut self, client: &str) {
        client.clone_into(&mut self.client);
    }

    pub fn owner(&self) -> Owner<'_> {
        (&self.queue, &self.client)
    }

    pub fn read_pointer(&mut self, side: Side) -> Result<PointerSector> {
        self.device.read(side.sector(), &mut [IoSliceMut::new(&mut self.sector)])?;
        Ok(PointerSector::decode(side, &self.sector)?)
    }

    /// Reads one side's pointer, and the tally of its slot.
    pub fn read_mark(&mut self, side: Side) -> Result<(PointerSector, Option<Tally>)> {
        let (pointer, slot) = read_slot(&self.device, &self.signed, side, &mut self.sector)?;
        Ok((pointer, slot.map(|slot| slot.tally)))
    }

    /// Reads one side's pointer and its slot in the steady state, without the sector's text: see
    /// [`RingDevice::read_pointer`].
    pub fn read_mark_only(&mut self, side: Side) -> Result<(PointerSector, Option<Slot>)> {
        let device = &self.device;
        let read = |sector: &mut [u8]| device.read_pointer(side, sector);
        search_slot(&self.signed, side, &mut self.sector, read)
    }

    /// Returns the tally of the slot for `position` in a pointer sector that is not written
    /// meanwhile.
    pub fn claim(&self, side: Side, sector: &[u8], position: Position) -> Option<Tally> {
        let slot = find_slot(self.signed.uuid()?, side, sector, position).ok()?;
        slot.map(|slot| slot.tally)
    }

    /// Returns the pointer sector that was read last.
    pub fn last_read(&self) -> &[u8] {
        &self.sector
    }

    /// Returns the ring's UUID and the slot for `mark`; `None` in a plain ring.
    pub fn slot(&self, mark: Mark) -> Option<(Uuid, Slot)> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Nanoseconds since 1970 fit 64 bits until the year 2554.
        let time_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let slot = Slot { position: mark.position, tally: mark.tally, time_ns };
        Some((self.signed.uuid()?, slot))
    }

    /// Returns the bytes of a pointer sector that must be zero in this ring.
    pub fn reserved(&self) -> [Range<usize>; 2] {
        reserved(self.signed.uuid())
    }

    /// Returns whether pointers have slots in this ring.
    pub fn has_slots(&self) -> bool {
        self.signed.uuid().is_some()
    }

    /// Reads whether the producer has acknowledged a suspend.
    pub fn acknowledged(&mut self) -> Result<State> {
        self.attached()?;
        Ok(State::of(self.read_pointer(Side::Producer)?.flag))
    }

    /// Sets the flag of sector 2 to `suspend`, by `change`, and flushes: [`Error::Retry`] while the
    /// producer has not acknowledged the previous change.
    pub fn set_suspend(
        &mut self,
        suspend: bool,
        change: impl Fn(Owner<'_>, &mut PointerSector, &mut [u8]),
    ) -> Result<()> {
        self.attached()?;
        self.device.ensure_role()?;
        let acknowledged = self.read_pointer(Side::Producer)?.flag;
        let current = self.read_pointer(Side::Consumer)?.flag;
        if acknowledged != current {
            return Err(Error::Retry);
        }
        if current != suspend {
            let edit = |handle: &Self| {
                handle.edit_consumer(|pointer, sector| change(handle.owner(), pointer, sector))
            };
            edit(self)?;
            // A backend that has just started ignores the flag of a guest that has read nothing
            // from it: such a write can be a repeated, older one. After this reading it takes the
            // flag.
            if self.read_pointer(Side::Consumer)?.flag != suspend {
                edit(self)?;
            }
        }
        // Also if there was nothing to change: the process that did it may have died before it was
        // durable.
        self.flush()
    }

    /// Changes sector 2, and keeps what another process changed meanwhile. It is not flushed.
    pub fn edit_consumer(&self, change: impl Fn(&mut PointerSector, &mut [u8])) -> Result<()> {
        let mut verdict = Ok(());
        let edited = self.device.edit_pointer(Side::Consumer, &mut |sector| {
            verdict = PointerSector::decode(Side::Consumer, sector)
                .map(|mut pointer| change(&mut pointer, sector));
        });
        self.fail_on_error(edited)?;
        Ok(verdict?)
    }

    /// Writes the producer's pointer sector.
    pub fn write_producer(&self, sector: &[u8]) -> Result<()> {
        self.fail_on_error(self.device.write(Side::Producer.sector(), &[IoSlice::new(sector)]))?;
        self.flush_pointer()
    }

    /// Flushes a pointer that was written, if the durability asks for it.
    pub fn flush_pointer(&self) -> Result<()> {
        if self.durability == Durability::Ordered { Ok(()) } else { self.flush() }
    }

    /// Has the handle accept nothing more after an error: what was written is in doubt. Where the
    /// lock for it was not to be had, nothing was written.
    fn fail_on_error(&self, result: std::result::Result<(), DeviceError>) -> Result<()> {
        if let Err(error) = &result
            && error.operation != Operation::Lock
        {
            self.failed.store(true, Ordering::Relaxed);
        }
        Ok(result?)
    }

    /// Flushes the device, if the durability asks for it.
    pub fn flush(&self) -> Result<()> {
        match self.durability {
            Durability::Flush | Durability::Ordered => self.fail_on_error(self.device.flush()),
            Durability::PageCache => Ok(()),
        }
    }

    /// Reads the ring's state from its sectors.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.attached()?;
        debug_info(&self.device, &self.signed)
    }
}

/// Reads a pointer sector into `sector` while its writer may be changing it. Returns the pointer
/// and the slot for its position, if the sector has slots.
///
/// # Errors
/// The device's, and [`Error::Format`] for a damaged pointer.
pub fn read_slot<D: BlockDevice + ?Sized>(
    device: &D,
    signed: &Signed,
    side: Side,
    sector: &mut [u8],
) -> Result<(PointerSector, Option<Slot>)> {
    let first = side.sector();
    search_slot(signed, side, sector, |sector| device.read(first, &mut [IoSliceMut::new(sector)]))
}

/// Searches the slot as [`read_slot`] does, by `read`.
fn search_slot(
    signed: &Signed,
    side: Side,
    sector: &mut [u8],
    read: impl Fn(&mut [u8]) -> std::result::Result<(), DeviceError>,
) -> Result<(PointerSector, Option<Slot>)> {
    let mut previous = Vec::new();
    let mut search = signed.uuid().map(|uuid| SlotSearch::new(uuid, side, &mut previous));
    loop {
        read(sector)?;
        let pointer = PointerSector::decode(side, sector)?;
        let Some(search) = &mut search else { return Ok((pointer, None)) };
        if let Reading::Final(slot) = search.observe(sector, pointer.position)? {
            return Ok((pointer, slot));
        }
    }
}

fn debug_info<D: BlockDevice + ?Sized>(device: &D, signed: &Signed) -> Result<DebugInfo> {
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
        // A power loss can leave the consumer ahead: the ring is empty until the producer attaches.
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
