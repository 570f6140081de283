//! Opening the ring that is to be served, and finding it fit for that.

use crate::config::Config;
use crate::guard::Mine;
use shared_block_ring::device::{BlockDevice, DeviceError, MappedDevice, RangeLock, holder_of};
use shared_block_ring::format::{
    Geometry, PointerSector, SectorSize, Side, decode_sector0, find_slot,
};
use shared_block_ring::rules::{Mark, plausible};
use shared_block_ring::{CreateOptions, Error, OpenOptions, allocate, check, create, make_file};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
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

/// Opens `path`, after making it if there is nothing and a size was given.
pub fn open(config: &Config, path: &Path, guest: Side) -> Result<Opened, Error> {
    let fail = |operation, source| {
        Error::from(DeviceError {
            name: path.display().to_string(),
            operation,
            sector: None,
            source,
        })
    };
    let new = !path.exists();
    if let Some(bytes) = config.size.filter(|_| new) {
        let size = config.sector_size.unwrap_or(SectorSize::DEFAULT);
        Geometry::new(size, bytes / u64::from(size.get()))?;
        make_file(path, bytes).map_err(|e| fail("make", e))?;
    }
    let mut options = OpenOptions::default();
    if let Some(size) = config.sector_size {
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
    if new {
        create(&map()?, CreateOptions::default())?;
    }
    check(map()?)?;
    let (uuid, mine) = guest_side(&map()?, guest)?;
    Ok(Opened { file, geometry, uuid, mine, role })
}

/// What the region says of the guest's side: what a producer or consumer of the library would attach with.
pub fn guest_side(device: &MappedDevice, guest: Side) -> Result<(Option<Uuid>, Mine), Error> {
    let geometry = device.geometry();
    let mut sector = vec![0; geometry.sector_size().bytes()];
    device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
    let uuid = decode_sector0(&sector, geometry)?.uuid();
    let mut read = |side: Side| -> Result<(PointerSector, Mark), Error> {
        device.read(side.sector(), &mut [IoSliceMut::new(&mut sector)])?;
        let pointer = PointerSector::decode(side, &sector)?;
        let slot = match uuid {
            Some(uuid) => find_slot(uuid, side, &sector, pointer.position)?,
            None => None,
        };
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
    Ok((uuid, Mine { pointer, tally: mark.tally }))
}
