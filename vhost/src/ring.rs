//! Opening the ring that is to be served, and finding it fit for that.

use crate::guard::Mine;
use crate::settings::Settings;
use nix::unistd::fchown;
use shared_block_ring::device::{BlockDevice, DeviceError, MappedDevice, RangeLock, holder_of};
use shared_block_ring::format::{
    FormatError, Geometry, PointerSector, SectorSize, Side, Tally, decode_sector0,
};
use shared_block_ring::rules::{Mark, plausible};
use shared_block_ring::{
    CreateOptions, Error, OpenOptions, Position, allocate, check, create, make_file, read_slot,
};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use uuid::Uuid;

/// A sound ring, and the guest's role in it.
pub struct Opened {
    /// Open for reading and writing; for a block device, exclusively.
    pub file: File,
    /// The ring's shape.
    pub geometry: Geometry,
    /// The ring's identity; none in a plain ring.
    pub uuid: Option<Uuid>,
    /// The guest's pointer.
    pub mine: Mine,
    /// Held on the guest's behalf: nobody on the host can take its role.
    pub role: RangeLock,
}

/// Opens the ring, after making its file if there is nothing and a size was given.
pub fn open(settings: &Settings) -> Result<Opened, Error> {
    let (path, guest) = (settings.ring.as_path(), settings.guest);
    let fail = |operation, source| {
        Error::from(DeviceError {
            name: path.display().to_string(),
            operation,
            sector: None,
            source,
        })
    };
    let new = !path.exists();
    if let Some(bytes) = settings.size.filter(|_| new) {
        let size = settings.sector_size.unwrap_or(SectorSize::DEFAULT);
        Geometry::new(size, bytes / u64::from(size.get()))?;
        make_file(path, bytes).map_err(|e| fail("make", e))?;
    }
    let mut options = OpenOptions::default();
    if let Some(size) = settings.sector_size {
        options = options.sector_size(size);
    }
    // By the library's eyes first: it knows what a ring's device looks like.
    let geometry = options.open(path)?.geometry();
    let block = std::fs::metadata(path).map_err(|e| fail("open", e))?.file_type().is_block_device();
    // A block device that is mounted, or served by another backend, answers EBUSY.
    let exclusive = if block { libc::O_EXCL } else { 0 };
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(exclusive)
        .open(path)
        .map_err(|e| fail("open", e))?;
    if new && let Some(identity) = settings.identity {
        fchown(&file, Some(identity.uid), Some(identity.gid))
            .map_err(|e| fail("give away", e.into()))?;
    }
    let role = RangeLock::try_role(file.as_fd(), geometry, guest).map_err(|e| fail("lock", e))?;
    let role = role.ok_or_else(|| Error::Held {
        role: guest,
        holder: holder_of(file.as_fd(), geometry, guest),
    })?;
    if !block {
        // A hole that the disk has no room for would be a SIGBUS.
        allocate(&file, geometry.total_bytes()).map_err(|e| fail("allocate", e))?;
    }
    let map = || -> Result<MappedDevice, Error> {
        let file = file.try_clone().map_err(|e| fail("map", e))?;
        Ok(MappedDevice::new(file, &path.display().to_string(), geometry)?)
    };
    if !settings.guarded {
        // Whatever it holds, or will hold, is between the guest and those on the host.
        let (uuid, mine) = unknown();
        return Ok(Opened { file, geometry, uuid, mine, role });
    }
    if new {
        create(&map()?, CreateOptions::default())?;
    }
    match check(map()?) {
        // The stream's checksum is the guest's word, which nobody has verified yet: its lie, or damage to what it has published, is for
        // the consumer to find and to skip, and no reason to have no backend. Pointers and framing are sound.
        Err(Error::Format(e @ FormatError::Span { .. })) => log::warn!("{}: {e}", path.display()),
        checked => drop(checked?),
    }
    let (uuid, mine) = guest_side(&map()?, guest)?;
    Ok(Opened { file, geometry, uuid, mine, role })
}

/// The guest's side of what may not even be a ring.
pub fn unknown() -> (Option<Uuid>, Mine) {
    let pointer = PointerSector { position: Position::ZERO, flag: false };
    (None, Mine { pointer, tally: Tally::from_here(Position::ZERO) })
}

/// What the region says of the guest's side: what a producer or consumer of the library would attach with.
///
/// The host's side may be at work meanwhile: it keeps its mapping when a backend dies.
pub fn guest_side<D: BlockDevice>(device: &D, guest: Side) -> Result<(Option<Uuid>, Mine), Error> {
    let geometry = device.geometry();
    let mut sector = vec![0; geometry.sector_size().bytes()];
    device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
    let signed = decode_sector0(&sector, geometry)?;
    let mut read = |side: Side| -> Result<(PointerSector, Mark), Error> {
        let (pointer, slot) = read_slot(device, &signed, side, &mut sector)?;
        Ok((pointer, Mark::new(pointer.position, slot.map(|slot| slot.tally))))
    };
    let (producer, published) = read(Side::Producer)?;
    let (consumer, freed) = read(Side::Consumer)?;
    plausible(producer.position, consumer.position, geometry)?;
    let (flag, mark) = match guest {
        Side::Producer => (producer.flag, Mark::resumed(published, freed)),
        Side::Consumer => (consumer.flag, freed),
    };
    let pointer = PointerSector { position: mark.position, flag };
    Ok((signed.uuid(), Mine { pointer, tally: mark.tally }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::format::SLOTS_AT;
    use shared_block_ring::{Consumer, Producer};
    use std::cell::Cell;
    use std::io::IoSlice;
    use std::os::fd::BorrowedFd;

    /// The first reading of sector 2 meets a consumer that is halfway through its slot.
    struct Halfway(MappedDevice, Cell<bool>);

    impl BlockDevice for Halfway {
        fn name(&self) -> &str {
            self.0.name()
        }

        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }

        fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
            self.0.read(first, bufs)?;
            if first == Side::Consumer.sector() && !self.1.replace(true) {
                bufs[0][SLOTS_AT[0] + 8] ^= 1;
            }
            Ok(())
        }

        fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
            self.0.write(first, bufs)
        }

        fn flush(&self) -> Result<(), DeviceError> {
            self.0.flush()
        }

        fn lock_file(&self) -> Option<BorrowedFd<'_>> {
            None
        }
    }

    #[test]
    fn a_consumer_at_work_does_not_keep_a_backend_from_starting() {
        let geometry = Geometry::new(SectorSize::DEFAULT, 32).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(geometry.total_bytes()).unwrap();
        let map = || MappedDevice::new(file.try_clone().unwrap(), "ring", geometry).unwrap();
        create(&map(), CreateOptions::default()).unwrap();
        let mut producer = Producer::attach(map(), "queue", "test").unwrap();
        let end = producer.push("item").unwrap();
        producer.advance(end).unwrap();
        let mut consumer = Consumer::attach(map(), "queue", "test").unwrap();
        consumer.pop(consumer.position()).unwrap();
        consumer.advance(end).unwrap();
        let (_, mine) = guest_side(&Halfway(map(), Cell::new(false)), Side::Consumer).unwrap();
        assert_eq!((mine.pointer.position, mine.tally.items), (end, 1));
    }
}
