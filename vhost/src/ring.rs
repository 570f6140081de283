//! Opening the ring that is to be served, and finding it fit for that.

use crate::config::Config;
use shared_block_ring::device::{BlockDevice, DeviceError, MappedDevice, RangeLock, holder_of};
use shared_block_ring::format::{Geometry, PointerSector, SectorSize, Side};
use shared_block_ring::rules::plausible;
use shared_block_ring::{CreateOptions, Error, OpenOptions, allocate, check, create, make_file};
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A sound ring, and the guest's role in it.
pub struct Opened {
    /// Open for reading and writing; for a block device, exclusively.
    pub file: File,
    /// The ring's shape.
    pub geometry: Geometry,
    /// The guest's pointer.
    pub mine: PointerSector,
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
    let mine = guest_pointer(&map()?, guest)?;
    Ok(Opened { file, geometry, mine, role })
}

fn guest_pointer(device: &MappedDevice, guest: Side) -> Result<PointerSector, Error> {
    let read = |side: Side| -> Result<PointerSector, Error> {
        let mut sector = vec![0; device.geometry().sector_size().bytes()];
        device.read(side.sector(), &mut [IoSliceMut::new(&mut sector)])?;
        Ok(PointerSector::decode(side, &sector)?)
    };
    let (producer, consumer) = (read(Side::Producer)?, read(Side::Consumer)?);
    plausible(producer.position, consumer.position, device.geometry())?;
    Ok(match guest {
        // After a power loss that kept only the consumer's pointer, the producer starts at it.
        Side::Producer => {
            PointerSector { position: producer.position.max(consumer.position), ..producer }
        }
        Side::Consumer => consumer,
    })
}
