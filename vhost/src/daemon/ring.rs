//! Opening and checking the ring that is to be served.

use crate::daemon::interruptible::Interruptible;
use crate::daemon::service::{Content, Terms};
use crate::daemon::settings::Settings;
use crate::data_path::executor::SERIAL_BYTES;
use crate::data_path::fault::{self, Losses};
use crate::data_path::guard::GuestState;
use crate::data_path::region::Region;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, fchown, unlinkat};
use shared_block_ring::device::{
    BlockDevice, DeviceError, MappedDevice, Operation, RangeLock, holder_of,
};
use shared_block_ring::format::{
    FormatError, Geometry, PointerSector, SectorSize, Side, Tally, decode_sector0,
};
use shared_block_ring::rules::{Mark, plausible};
use shared_block_ring::wait::Limits;
use shared_block_ring::{
    Allocation, CreateOptions, Error, OpenOptions, Position, check, create, make_file_within,
    read_slot,
};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// A sound ring, with the guest's role locked.
pub struct Opened {
    /// The ring's file, open for reading and writing; a block device is opened exclusively.
    pub file: Arc<File>,
    /// The ring's geometry.
    pub geometry: Geometry,
    /// The ring's UUID; `None` for a plain ring.
    pub uuid: Option<Uuid>,
    /// The guest's side.
    pub guest_state: GuestState,
    /// The guest's role, locked on its behalf: no process on the host can take it.
    pub role: RangeLock,
    /// The space that this start has allocated.
    pub space: Option<Allocation>,
    /// The file, if this start has made it.
    pub made: Option<Made>,
}

/// A file that a start has made. Removed when this is dropped, unless it was [kept](Self::keep).
#[derive(Debug)]
pub struct Made {
    /// The folder that the file was made in, whatever its path leads to later; `None` once the file
    /// is kept.
    folder: Option<File>,
    name: OsString,
    inode: (u64, u64),
}

impl Made {
    fn new(path: &Path, file: &File) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")))?;
        let (name, about) = (path.file_name().unwrap_or_default().to_owned(), file.metadata()?);
        Ok(Self { folder: Some(folder), name, inode: (about.dev(), about.ino()) })
    }

    /// Keeps the file.
    pub fn keep(mut self) {
        self.folder = None;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let Some(folder) = &self.folder else { return };
        let found = fstatat(folder, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        if found.is_ok_and(|about| (about.st_dev, about.st_ino) == self.inode) {
            // Nothing was served from it.
            let _ = unlinkat(folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Opened {
    /// Returns the disk's default serial number, from the ring's UUID, so that no two rings of a
    /// guest share one. A plain ring, or a disk without a guard, whose contents are the guest's
    /// matter, has one from its file or device.
    pub fn serial(&self) -> io::Result<[u8; SERIAL_BYTES]> {
        let text = if let Some(uuid) = self.uuid {
            format!("ring-{}", &uuid.simple().to_string()[..15])
        } else {
            let about = self.file.metadata()?;
            let (place, number) = if about.file_type().is_block_device() {
                (0, about.rdev())
            } else {
                (about.dev(), about.ino())
            };
            // The bits of both numbers that differ between files of a machine: 15 digits hold 60
            // bits.
            format!("file-{:015x}", (number ^ place.rotate_left(40)) & (u64::MAX >> 4))
        };
        let mut serial = [0; SERIAL_BYTES];
        serial[..text.len()].copy_from_slice(text.as_bytes());
        Ok(serial)
    }

    /// Returns the lock of the guest's role, and what is served.
    pub fn split(self, region: Region) -> (RangeLock, Content) {
        let Self { file, geometry, uuid, guest_state, role, .. } = self;
        (role, Content { file, region, geometry, uuid, guest_state })
    }

    /// Keeps the space that the start has allocated, and the file that it has made.
    pub fn keep(&mut self) {
        if let Some(space) = self.space.take() {
            space.keep();
        }
        if let Some(made) = self.made.take() {
            made.keep();
        }
    }
}

/// Opens the ring. Makes its file first if there is none and a size was given.
///
/// # Errors
///
/// The ring cannot be opened, is not sound, or its guest's role is held. An error for which
/// [`is_interrupted`] holds says that `limits` have ended the allocation of the file or the check
/// of a full ring. On every error the space that was allocated and the file that was made are given
/// back.
pub fn open(settings: &Settings, limits: &Limits<'_>) -> Result<Opened, Error> {
    let (path, guest) = (settings.ring.as_path(), settings.guest);
    let fail = |operation, source: io::Error| {
        Error::from(DeviceError::new(path.display().to_string(), operation, source))
    };
    let new = !path.exists();
    let mut new_file = None;
    let (file, geometry, block) = match settings.size.filter(|_| new) {
        Some(bytes) => {
            let size = settings.sector_size.unwrap_or(SectorSize::DEFAULT);
            let geometry = Geometry::new(size, bytes / u64::from(size.get()))?;
            let made = make_file_within(path, bytes, limits);
            let made = made.map_err(|e| fail(Operation::Create, e))?;
            new_file = Some(Made::new(path, &made).map_err(|e| fail(Operation::Open, e))?);
            let file = reopen_made(path, &made).map_err(|e| fail(Operation::Open, e))?;
            if let Some(identity) = settings.identity {
                fchown(&file, Some(identity.uid), Some(identity.gid))
                    .map_err(|e| fail(Operation::ChangeOwner, e.into()))?;
            }
            (file, geometry, false)
        }
        None => existing(settings)?,
    };
    let role = RangeLock::try_role(file.as_fd(), geometry, guest);
    let role = role.and_then(|role| role.map_or(Ok(None), RangeLock::and_beneath));
    let role = role.map_err(|e| fail(Operation::Lock, e))?.ok_or_else(|| Error::RoleTaken {
        role: guest,
        holder: holder_of(file.as_fd(), geometry, guest),
    })?;
    // A hole that the disk has no room for would be a SIGBUS.
    let space = (!block).then(|| Allocation::within(&file, geometry.total_bytes(), limits));
    let space = space.transpose().map_err(|e| fail(Operation::Allocate, e))?;
    let file = Arc::new(file);
    let map = || -> Result<MappedDevice, Error> {
        Ok(MappedDevice::new(Arc::clone(&file), &path.display().to_string(), geometry)?)
    };
    if !settings.guarded {
        // The contents of an unguarded disk are not looked at.
        let (uuid, guest_state) = unknown();
        return Ok(Opened { file, geometry, uuid, guest_state, role, space, made: new_file });
    }
    if settings.size.is_some() && new {
        create(&map()?, CreateOptions::default())?;
    }
    match check(Interruptible::new(map()?, limits)) {
        // Nobody has verified the guest's checksum of the stream yet: a false one, or damage to
        // published items, is for the consumer to find and to skip. Pointers and framing are sound,
        // so it is served.
        Err(Error::Format(e @ (FormatError::Span { .. } | FormatError::Streams { .. }))) => {
            log::warn!("{}: {e}", path.display());
        }
        checked => drop(checked?),
    }
    let (uuid, guest_state) = guest_side(&map()?, guest)?;
    Ok(Opened { file, geometry, uuid, guest_state, role, space, made: new_file })
}

/// Takes over a ring's `file`, which another process has opened and checked for these terms, and on
/// which it has locked the guest's role.
///
/// # Errors
///
/// The file cannot be mapped, or holds no sound ring.
pub fn adopt(file: File, geometry: Geometry, terms: &Terms) -> Result<Content, Error> {
    let name = terms.path.display().to_string();
    let fail =
        |source: io::Error| Error::from(DeviceError::new(name.clone(), Operation::Map, source));
    fault::catch().map_err(fail)?;
    let losses = Losses::new().map_err(fail)?;
    let file = Arc::new(file);
    let region = Region::new(Arc::clone(&file), &name, geometry, &losses)?;
    let (uuid, guest_state) =
        if terms.guarded { guest_side(region.device(), terms.guest)? } else { unknown() };
    Ok(Content { file, region, geometry, uuid, guest_state })
}

/// Whether the limits of [`open`] have ended it.
pub fn is_interrupted(error: &Error) -> bool {
    matches!(error, Error::Device(device) if device.source.kind() == io::ErrorKind::Interrupted)
}

/// Warns where the ring has another size than `--size` says, which is for a new file alone.
fn warn_of_size(settings: &Settings, found: Geometry) {
    let sector = u64::from(found.sector_size().get());
    if let Some(bytes) = settings.size.filter(|bytes| bytes - bytes % sector != found.total_bytes())
    {
        log::warn!(
            "{}: is there already, and has {} bytes: --size {bytes} does not change that",
            settings.ring.display(),
            found.total_bytes()
        );
    }
}

/// Opens the file that was just made at `path` by its name. Another file, which the folder's owner
/// has put there since, is neither given away nor made a ring.
fn reopen_made(path: &Path, made: &File) -> io::Result<File> {
    let file = File::options().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    let (made, found) = (made.metadata()?, file.metadata()?);
    if (made.dev(), made.ino()) == (found.dev(), found.ino()) {
        Ok(file)
    } else {
        Err(io::Error::other("it was replaced right after it was made"))
    }
}

/// Opens an existing ring. Returns its file, its geometry, and whether it is a block device.
fn existing(settings: &Settings) -> Result<(File, Geometry, bool), Error> {
    let path = settings.ring.as_path();
    let fail = |source: io::Error| {
        let name = path.display().to_string();
        Error::from(DeviceError::new(name, Operation::Open, source))
    };
    let mut options = OpenOptions::default();
    if let Some(size) = settings.sector_size {
        options = options.sector_size(size);
    }
    // The library opens it first: it checks that this can be a ring's device.
    let geometry = options.open(path)?.geometry();
    warn_of_size(settings, geometry);
    let block = std::fs::metadata(path).map_err(fail)?.file_type().is_block_device();
    // A block device that is mounted, or served by another backend, answers EBUSY.
    let exclusive = if block { libc::O_EXCL } else { 0 };
    let file =
        File::options().read(true).write(true).custom_flags(exclusive).open(path).map_err(fail)?;
    Ok((file, geometry, block))
}

/// Returns the guest's side of a disk that need not hold a ring.
pub fn unknown() -> (Option<Uuid>, GuestState) {
    let pointer = PointerSector { position: Position::ZERO, flag: false };
    (None, GuestState { pointer, tally: Tally::from_here(Position::ZERO) })
}

/// Reads the guest's side from a device: the state that the library's producer or consumer would
/// attach with.
///
/// The host's side may change its pointer meanwhile: it keeps its mapping when a backend dies.
///
/// # Errors
///
/// The sectors cannot be read, or are no sound ring's.
pub fn guest_side<D: BlockDevice>(
    device: &D,
    guest: Side,
) -> Result<(Option<Uuid>, GuestState), Error> {
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
    Ok((signed.uuid(), GuestState { pointer, tally: mark.tally }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use ring_simulation::{Access, hooked};
    use shared_block_ring::format::SLOTS_AT;
    use shared_block_ring::{Consumer, Producer};
    use std::cell::Cell;

    #[test]
    fn backend_starts_while_a_consumer_writes_its_pointer() {
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
        // The first reading of sector 2 meets a consumer that is halfway through its slot.
        let met = Cell::new(false);
        let device = hooked(map(), move |device: &MappedDevice, access| {
            access.carry_out(device)?;
            match access {
                Access::Read { first: 2, bufs } if !met.replace(true) => {
                    bufs[0][SLOTS_AT[0] + 8] ^= 1;
                }
                _ => {}
            }
            Ok(())
        });
        let (_, guest) = guest_side(&device, Side::Consumer).unwrap();
        assert_eq!((guest.pointer.position, guest.tally.items), (end, 1));
    }
}
