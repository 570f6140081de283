//! What producer and consumer have in common: being attached to a ring.

use crate::device::{AlignedBuf, BlockDevice, LockRange, RangeLock, holder};
use crate::error::{Error, Result};
use crate::format::{Geometry, PointerSector, Position, Side, Signed, decode_sector0, text_of};
use serde::Serialize;
use std::io::IoSliceMut;

/// Whether an operation waits until the device says that it is safe from power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// Data is flushed before the pointer that exposes it, the pointer before `advance` returns.
    #[default]
    Flush,
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
}

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
        })
    }

    pub fn detach(&mut self) {
        self.attachment = Attachment::Detached;
        self.device.detached();
    }

    pub fn attached(&self) -> Result<()> {
        match self.attachment {
            Attachment::Detached => Err(Error::Detached),
            Attachment::Role(_) | Attachment::Guest => Ok(()),
        }
    }

    pub fn owner(&self) -> (&str, &str) {
        (&self.queue, &self.client)
    }

    pub fn read_pointer(&mut self, side: Side) -> Result<PointerSector> {
        self.device.read(side.sector(), &mut [IoSliceMut::new(&mut self.sector)])?;
        Ok(PointerSector::decode(side, &self.sector)?)
    }

    /// Whether the producer has acknowledged a suspend.
    pub fn acknowledged(&mut self) -> Result<State> {
        self.attached()?;
        Ok(State::of(self.read_pointer(Side::Producer)?.flag))
    }

    /// Whether `suspend` remains to be written: [`Error::Retry`] while the previous change is not acknowledged.
    pub fn change_wanted(&mut self, suspend: bool) -> Result<bool> {
        self.attached()?;
        let acknowledged = self.read_pointer(Side::Producer)?.flag;
        let current = self.read_pointer(Side::Consumer)?.flag;
        if acknowledged == current { Ok(current != suspend) } else { Err(Error::Retry) }
    }

    /// Changes sector 2, keeping what another process changed meanwhile.
    pub fn edit_consumer(&self, change: impl Fn(&mut PointerSector, &mut [u8])) -> Result<()> {
        let mut verdict = Ok(());
        self.device.edit_pointer(Side::Consumer, &mut |sector| {
            verdict = PointerSector::decode(Side::Consumer, sector)
                .map(|mut pointer| change(&mut pointer, sector));
        })?;
        verdict?;
        self.flush()
    }

    pub fn flush(&self) -> Result<()> {
        match self.durability {
            Durability::Flush => Ok(self.device.flush()?),
            Durability::PageCache => Ok(()),
        }
    }

    /// The sectors' facts, read afresh.
    pub fn debug_info(&self) -> Result<DebugInfo> {
        self.attached()?;
        debug_info(&self.device, &self.signed)
    }
}

fn debug_info<D: BlockDevice>(device: &D, signed: &Signed) -> Result<DebugInfo> {
    let geometry = device.geometry();
    let size = geometry.sector_size().bytes();
    let mut sectors = AlignedBuf::zeroed(2 * size);
    device.read(Side::Producer.sector(), &mut [IoSliceMut::new(&mut sectors)])?;
    let (first, second) = sectors.split_at(size);
    let producer = PointerSector::decode(Side::Producer, first)?;
    let consumer = PointerSector::decode(Side::Consumer, second)?;
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
        producer_text: text_of(first),
        consumer_text: text_of(second),
        uuid: signed.uuid().map(|uuid| uuid.to_string()),
    })
}
