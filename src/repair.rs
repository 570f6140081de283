//! Bringing back what is whole of a damaged ring.
//!
//! Only the three sectors in front of the data are ever changed: no item's bytes are touched, and writing the old sectors
//! back undoes everything.

use crate::device::{BlockDevice, DeviceError};
use crate::error::{Error, Result};
use crate::format::{
    EXTENSION, FLAG_AT, FormatError, Geometry, Identity, PointerSector, Position, SIGNATURE, Side,
    damaged_slots, decode_sector0, encode_sector0, find_slot, slots_of,
};
use crate::rules::plausible;
use crate::window::Window;
use std::io::{IoSlice, IoSliceMut};
use uuid::Uuid;

/// Sectors in front of the data.
const HEADS: usize = 3;

/// One thing that is to be put right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fix {
    /// The sector that changes.
    pub sector: u64,
    /// What is wrong, and what it becomes.
    pub what: String,
}

/// What a repair would do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repair {
    /// What is to be put right; none in a ring whose heads are sound.
    pub fixes: Vec<Fix>,
    /// Sectors 0 to 2 as they are.
    pub old: Vec<u8>,
    /// Sectors 0 to 2 as they should be.
    new: Vec<u8>,
}

impl Repair {
    /// Finds out what is wrong, and writes nothing. What is no ring, or a ring on a device of another shape, is an error.
    pub fn plan<D: BlockDevice + ?Sized>(device: &D) -> Result<Self> {
        let geometry = device.geometry();
        let mut old = vec![0; HEADS * geometry.sector_size().bytes()];
        device.read(0, &mut [IoSliceMut::new(&mut old)])?;
        let mut heads = Heads { geometry, bytes: old.clone(), fixes: Vec::new() };
        let uuid = heads.repair_identity()?;
        let producer = heads.repair_pointer(Side::Producer, uuid);
        let consumer = heads.repair_pointer(Side::Consumer, uuid);
        let (producer, consumer) = heads.settle_positions(producer, consumer);
        heads.cut_at_damage(device, producer, consumer)?;
        Ok(Self { fixes: heads.fixes, old, new: heads.bytes })
    }

    /// Carries it out. The signature is written last: until then the ring is none, rather than half repaired.
    pub fn write<D: BlockDevice + ?Sized>(
        &self,
        device: &D,
    ) -> std::result::Result<(), DeviceError> {
        let size = device.geometry().sector_size().bytes();
        if self.fixes.is_empty() {
            return Ok(());
        }
        device.write(0, &[IoSlice::new(&vec![0; size])])?;
        device.flush()?;
        device.write(1, &[IoSlice::new(&self.new[size..])])?;
        device.flush()?;
        device.write(0, &[IoSlice::new(&self.new[..size])])?;
        device.flush()
    }
}

/// The sectors while they are put right.
struct Heads {
    geometry: Geometry,
    bytes: Vec<u8>,
    fixes: Vec<Fix>,
}

impl Heads {
    fn sector(&mut self, index: u64) -> &mut [u8] {
        let size = self.geometry.sector_size().bytes();
        let start = usize::try_from(index).unwrap_or(0) * size;
        &mut self.bytes[start..start + size]
    }

    fn fix(&mut self, sector: u64, what: String) {
        self.fixes.push(Fix { sector, what });
    }

    /// The ring's UUID, if it has one, with sector 0 whole.
    fn repair_identity(&mut self) -> Result<Option<Uuid>> {
        let geometry = self.geometry;
        let found = decode_sector0(self.sector(0), geometry);
        let lost = match found {
            Ok(signed) => return Ok(signed.uuid()),
            Err(lost @ (FormatError::NotARing | FormatError::IdentityChecksum { .. })) => lost,
            Err(other) => return Err(other.into()),
        };
        // What the sector still says, as far as anything bears it out: without that, this may be anybody's disk.
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&self.sector(0)[56..72]);
        let created_ns = {
            let mut word = [0; 8];
            word.copy_from_slice(&self.sector(0)[72..80]);
            u64::from_le_bytes(word)
        };
        let uuid = Uuid::from_bytes(uuid);
        let borne_out = [Side::Producer, Side::Consumer]
            .iter()
            .any(|side| slots_of(uuid, self.sector(side.sector())).iter().any(Option::is_some));
        let signed = self.sector(0).starts_with(SIGNATURE);
        let identity = if borne_out {
            Identity { geometry, uuid, created_ns }
        } else if signed {
            Identity { geometry, uuid: Uuid::new_v4(), created_ns }
        } else {
            return Err(lost.into());
        };
        encode_sector0(self.sector(0), Some(&identity));
        let kept = if borne_out { "its UUID is kept" } else { "it gets a new UUID" };
        self.fix(0, format!("{lost}: written anew for this device, {kept}"));
        Ok(Some(identity.uuid))
    }

    /// One side's position, if it can be known, with flag and slots whole.
    fn repair_pointer(&mut self, side: Side, uuid: Option<Uuid>) -> Option<Position> {
        let index = side.sector();
        let sector = self.sector(index);
        let flag = sector[FLAG_AT];
        if !matches!(flag, 1 | 2) {
            sector[FLAG_AT] = 2;
            self.fix(index, format!("{side} sector: flag byte {flag} becomes 2 (not suspended)"));
        }
        let sector = self.sector(index);
        let position = PointerSector::decode(side, sector).ok().map(|pointer| pointer.position);
        let Some(uuid) = uuid else { return position };
        if sector[EXTENSION].iter().all(|&byte| byte == 0) {
            return position;
        }
        if position.is_some_and(|position| find_slot(uuid, side, sector, position).is_ok()) {
            return position;
        }
        let slots = slots_of(uuid, sector);
        let whole = slots.iter().flatten();
        // Of two whole slots one must speak for the position: it is the position that is damaged. Where one is damaged, it was
        // that one which spoke for it.
        let damaged_slot = position.is_some() && damaged_slots(uuid, sector) > 0;
        let latest = whole.map(|slot| slot.position).max();
        let Some(latest) = latest.filter(|_| !damaged_slot) else {
            sector[EXTENSION].fill(0);
            self.fix(index, format!("{side} sector: its slot is damaged, both are cleared"));
            return position;
        };
        let stored = u64_of(sector);
        sector[..8].copy_from_slice(&latest.get().to_le_bytes());
        self.fix(index, format!("{side} position {stored} becomes {latest}, as its slot says"));
        Some(latest)
    }

    /// Positions that do not contradict each other. Where one is lost, what can be delivered again is; it is not lost with it.
    fn settle_positions(
        &mut self,
        producer: Option<Position>,
        consumer: Option<Position>,
    ) -> (Position, Position) {
        let capacity = self.geometry.capacity().get();
        match (producer, consumer) {
            (Some(producer), Some(consumer))
                if plausible(producer, consumer, self.geometry).is_ok() =>
            {
                (producer, consumer)
            }
            (Some(producer), _) => {
                // The first lap's items all start at the beginning; of a later one no item is known to start anywhere.
                let start = if producer.get() <= capacity { Position::ZERO } else { producer };
                self.move_to(Side::Consumer, start);
                (producer, start)
            }
            (None, consumer) => {
                let end = consumer.unwrap_or(Position::ZERO);
                self.move_to(Side::Producer, end);
                if consumer.is_none() {
                    self.move_to(Side::Consumer, end);
                }
                (end, end)
            }
        }
    }

    fn move_to(&mut self, side: Side, position: Position) {
        let sector = self.sector(side.sector());
        let stored = u64_of(sector);
        sector[..8].copy_from_slice(&position.get().to_le_bytes());
        sector[EXTENSION].fill(0);
        let what = format!("{side} position {stored} cannot be right and becomes {position}");
        self.fix(side.sector(), what);
    }

    /// Where an item's length cannot be right, the ring ends.
    fn cut_at_damage<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        producer: Position,
        consumer: Position,
    ) -> Result<()> {
        let mut window = Window::empty();
        let mut at = consumer;
        while at < producer {
            match window.load(device, at, producer) {
                Ok(header) => at = header.next,
                Err(Error::Format(damage)) => {
                    self.fix(
                        Side::Producer.sector(),
                        format!("{damage}: the ring ends there, what lies behind is lost"),
                    );
                    let sector = self.sector(Side::Producer.sector());
                    sector[..8].copy_from_slice(&at.get().to_le_bytes());
                    sector[EXTENSION].fill(0);
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

fn u64_of(sector: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&sector[..8]);
    u64::from_le_bytes(word)
}
