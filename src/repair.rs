//! Repair of a damaged ring.
//!
//! Only the three sectors in front of the data area are changed: no item's bytes are touched, and
//! writing the old sectors back undoes everything.

use crate::create::new_uuid;
use crate::device::{BlockDevice, DeviceError};
use crate::error::{Error, Result};
use crate::format::{
    EXTENSION, FLAG_AT, FormatError, Geometry, Identity, PointerSector, Position, SIGNATURE, Side,
    damaged_slots, decode_sector0, encode_sector0, find_slot, reserved, slots_of, u64_at,
    unverified_identity,
};
use crate::rules::plausible;
use crate::window::Window;
use std::io::{IoSlice, IoSliceMut};
use uuid::Uuid;

/// Sectors in front of the data area.
const HEADS: usize = 3;

/// One change of a [`Repair`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Fix {
    /// The sector that changes.
    pub sector: u64,
    /// Description of the damage and of its repair, for people.
    pub what: String,
}

/// A plan for the repair of a ring, with the sectors before and after it.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
/// use shared_block_ring::{OpenOptions, Repair, create};
///
/// let device = OpenOptions::default().open(&path)?;
/// create(&device, Default::default())?;
/// let plan = Repair::plan(&device)?;
/// assert!(plan.fixes.is_empty(), "nothing is wrong with a new ring");
/// plan.write(&device)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[must_use = "a plan changes nothing before it is written"]
#[non_exhaustive]
pub struct Repair {
    /// The changes; none for a ring whose sectors 0 to 2 are sound.
    pub fixes: Vec<Fix>,
    /// Sectors 0 to 2 as they are.
    pub old: Vec<u8>,
    /// Sectors 0 to 2 as they should be.
    new: Vec<u8>,
}

impl Repair {
    /// Finds out what is wrong, and writes nothing.
    ///
    /// # Errors
    /// The device's errors, and [`Error::Format`] for a device that holds no ring, or a ring of
    /// another shape.
    pub fn plan<D: BlockDevice + ?Sized>(device: &D) -> Result<Self> {
        let geometry = device.geometry();
        let mut old = vec![0; HEADS * geometry.sector_size().bytes()];
        device.read(0, &mut [IoSliceMut::new(&mut old)])?;
        let mut heads = Heads { geometry, bytes: old.clone(), fixes: Vec::new() };
        let uuid = heads.repair_identity()?;
        let producer = heads.repair_pointer(Side::Producer, uuid);
        let consumer = heads.repair_pointer(Side::Consumer, uuid);
        let (producer, consumer) = heads.reconcile_positions(producer, consumer);
        heads.reconcile_streams(producer, consumer, uuid);
        heads.cut_at_damage(device, producer, consumer)?;
        Ok(Self { fixes: heads.fixes, old, new: heads.bytes })
    }

    /// Writes the sectors that the plan changes.
    ///
    /// Sector 0 is first, and durable before the others: by its UUID whole slots can be told from
    /// noise, so it must not be lost with them. Whatever a crash leaves of the two pointer sectors,
    /// another repair brings to the same end: the repair of one does not depend on whether the
    /// other is repaired already.
    ///
    /// # Errors
    /// The device's. A later repair takes up what a failed one has left.
    pub fn write<D: BlockDevice + ?Sized>(
        &self,
        device: &D,
    ) -> std::result::Result<(), DeviceError> {
        let size = device.geometry().sector_size().bytes();
        let sectors = self.old.chunks(size).zip(self.new.chunks(size));
        let mut unflushed = false;
        for (index, (old, new)) in (0..).zip(sectors) {
            if old != new {
                device.write(index, &[IoSlice::new(new)])?;
                unflushed = true;
            }
            if index == 0 && unflushed {
                device.flush()?;
                unflushed = false;
            }
        }
        if unflushed { device.flush() } else { Ok(()) }
    }
}

/// The sectors while they are repaired.
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

    /// Repairs sector 0, and returns the ring's UUID, if it has one.
    fn repair_identity(&mut self) -> Result<Option<Uuid>> {
        let geometry = self.geometry;
        let found = decode_sector0(self.sector(0), geometry);
        let lost = match found {
            Ok(signed) => return Ok(signed.uuid()),
            Err(lost @ (FormatError::NotARing | FormatError::IdentityChecksum { .. })) => lost,
            Err(other) => return Err(other.into()),
        };
        // The UUID is kept only if a slot confirms it. Without any sign of a ring this may be a
        // disk that holds something else.
        let Identity { uuid, created_ns, .. } = unverified_identity(self.sector(0), geometry);
        let confirmed = [Side::Producer, Side::Consumer]
            .iter()
            .any(|side| slots_of(uuid, self.sector(side.sector())).iter().any(Option::is_some));
        let signed = self.sector(0).starts_with(SIGNATURE);
        let identity = if confirmed {
            Identity { geometry, uuid, created_ns }
        } else if signed {
            Identity { geometry, uuid: new_uuid(), created_ns }
        } else {
            return Err(lost.into());
        };
        encode_sector0(self.sector(0), Some(&identity));
        let kept = if confirmed { "its UUID is kept" } else { "it gets a new UUID" };
        self.fix(0, format!("{lost}: it is written again for this device, {kept}"));
        Ok(Some(identity.uuid))
    }

    /// Repairs flag and slots of one side, and returns its position, if it can be known.
    fn repair_pointer(&mut self, side: Side, uuid: Option<Uuid>) -> Option<Position> {
        let index = side.sector();
        let sector = self.sector(index);
        let flag = sector[FLAG_AT];
        if sector.iter().all(|&byte| byte == 0) {
            sector[FLAG_AT] = 2;
            self.fix(index, format!("{side} sector is blank: its position is lost"));
            return None;
        }
        if !matches!(flag, 1 | 2) {
            sector[FLAG_AT] = 2;
            self.fix(index, format!("{side} sector: flag byte {flag} becomes 2 (not suspended)"));
        }
        let sector = self.sector(index);
        let mut dirty = false;
        for range in reserved(uuid) {
            dirty |= sector[range.clone()].iter().any(|&byte| byte != 0);
            sector[range].fill(0);
        }
        if dirty {
            self.fix(index, format!("{side} sector: reserved bytes become zero"));
        }
        let sector = self.sector(index);
        let position = PointerSector::decode(side, sector)
            .ok()
            .map(|pointer| pointer.position)
            .filter(|&position| position <= Position::END);
        let Some(uuid) = uuid else { return position };
        if sector[EXTENSION].iter().all(|&byte| byte == 0) {
            return position;
        }
        if position.is_some_and(|position| find_slot(uuid, side, sector, position).is_ok()) {
            return position;
        }
        let slots = slots_of(uuid, sector);
        let whole = slots.iter().flatten();
        // One of two whole slots must be for the position: if none is, the position is damaged. If
        // a slot is damaged, it was the one for the position.
        let damaged_slot = position.is_some() && damaged_slots(uuid, sector) > 0;
        let latest = whole.map(|slot| slot.position).filter(|&at| at <= Position::END).max();
        let Some(latest) = latest.filter(|_| !damaged_slot) else {
            sector[EXTENSION].fill(0);
            self.fix(index, format!("{side} sector: its slot is damaged, both are cleared"));
            return position;
        };
        let stored = u64_at(sector, 0);
        sector[..8].copy_from_slice(&latest.get().to_le_bytes());
        self.fix(index, format!("{side} position {stored} becomes {latest}, as its slot says"));
        Some(latest)
    }

    /// Resolves positions that contradict each other. If one is lost, the items that are known to
    /// be whole are delivered again rather than lost.
    fn reconcile_positions(
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
                // The items of the first lap begin at position 0; in a later lap no position is
                // known at which an item begins.
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

    /// Resolves slots of both sides for one position that contradict each other: the producer's
    /// stays, since the next items continue it.
    fn reconcile_streams(&mut self, producer: Position, consumer: Position, uuid: Option<Uuid>) {
        let Some(uuid) = uuid.filter(|_| producer == consumer) else { return };
        let mut tally = |side: Side| {
            let slot = find_slot(uuid, side, self.sector(side.sector()), producer);
            slot.ok().flatten().map(|slot| slot.tally)
        };
        let (Some(published), Some(freed)) = (tally(Side::Producer), tally(Side::Consumer)) else {
            return;
        };
        if published.base == freed.base && published.crc != freed.crc {
            let index = Side::Consumer.sector();
            self.sector(index)[EXTENSION].fill(0);
            let what = "consumer sector: its slots contradict the producer's and are cleared";
            self.fix(index, what.to_owned());
        }
    }

    /// Moves one side to `position`, and clears its slots.
    fn move_to(&mut self, side: Side, position: Position) {
        let sector = self.sector(side.sector());
        let stored = u64_at(sector, 0);
        sector[..8].copy_from_slice(&position.get().to_le_bytes());
        sector[EXTENSION].fill(0);
        let what = format!("{side} position {stored} cannot be right and becomes {position}");
        self.fix(side.sector(), what);
    }

    /// Ends the ring at the first item whose length cannot be right.
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
                        format!("{damage}: the ring ends there, and the items behind are lost"),
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
