//! Where a ring is.

use super::failure::Failure;
use shared_block_ring::device::{DeviceError, LockRange, RangeLock, find_by_serial, holder};
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::handover::Role;
use shared_block_ring::pci::NotAnAddress;
use shared_block_ring::{
    BlockDevice, Error, FileDevice, OpenOptions, Stop, UnixDevice, VirtioDevice,
};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// The arguments that name a ring.
#[derive(clap::Args)]
pub struct Address {
    /// Path of a file or block device, serial:NAME, unix:PATH of a backend's consumer socket,
    /// vhost-user:PATH of a backend's own socket, or pci:0000:00:04.0 of a disk bound by blockring bind
    address: String,
    /// Bytes in a sector of a file that was not made with 512
    #[arg(long, value_name = "N", value_parser = sector_size)]
    sector_size: Option<SectorSize>,
}

/// Any device that an address can name.
pub type Device = Box<dyn BlockDevice>;

impl Address {
    /// For `role`; a backend hands it over to one producer or consumer at a time.
    pub fn open(&self, role: Role) -> Result<Device, Failure> {
        self.device(role, self.options(), None)
    }

    /// The same, where `stop` ends also the wait for a backend that is gone.
    pub fn open_until(&self, role: Role, stop: &Stop) -> Result<Device, Failure> {
        self.device(role, self.options(), Some(stop))
    }

    pub fn open_read_only(&self) -> Result<Device, Failure> {
        self.device(Role::Control, self.options().read_only(), None)
    }

    fn device(
        &self,
        role: Role,
        options: OpenOptions,
        stop: Option<&Stop>,
    ) -> Result<Device, Failure> {
        if self.socket().is_some() {
            return Ok(Box::new(self.connect(role)?));
        }
        let Some(disk) = driven(Path::new(&self.address)) else {
            return Ok(Box::new(self.open_as(options)?));
        };
        let device = disk.open(self.sector_size)?;
        Ok(Box::new(match stop {
            Some(stop) => {
                let stop = stop.fd().try_clone_to_owned();
                device.stop_on(stop.map_err(Failure::io("cannot duplicate a descriptor"))?)
            }
            None => device,
        }))
    }

    /// Whether a backend serves it, or may do so.
    pub fn is_served(&self) -> bool {
        self.socket().is_some() || driven(Path::new(&self.address)).is_some()
    }

    /// The socket that a backend hands its ring over at, if the address names one.
    pub fn socket(&self) -> Option<&Path> {
        self.address.strip_prefix("unix:").map(Path::new)
    }

    pub fn connect(&self, role: Role) -> Result<UnixDevice, Failure> {
        Ok(UnixDevice::connect(self.socket().unwrap_or(Path::new("")), role)?)
    }

    /// The file or block device itself.
    pub fn open_file(&self) -> Result<FileDevice, Failure> {
        self.open_as(self.options())
    }

    fn open_as(&self, options: OpenOptions) -> Result<FileDevice, Failure> {
        let path = match self.address.strip_prefix("serial:") {
            None => PathBuf::from(&self.address),
            Some(serial) => find_by_serial(serial).map_err(|source| {
                let name = self.address.clone();
                Error::from(DeviceError { name, operation: "open", sector: None, source })
            })?,
        };
        options.open(&path).map_err(|e| match e {
            Error::Device(e) if e.source.kind() == ErrorKind::NotFound && self.path().is_some() => {
                let name = &self.address;
                Failure::Refused(format!("{e} (blockring create --size 8M {name} makes a ring)"))
            }
            Error::Device(_) => e.into(),
            source => Failure::During { what: self.address.clone(), source },
        })
    }

    fn options(&self) -> OpenOptions {
        self.sector_size
            .map_or_else(OpenOptions::default, |size| OpenOptions::default().sector_size(size))
    }

    /// The path, of what is named by its path.
    pub fn path(&self) -> Option<&Path> {
        let other = ["unix:", "serial:", FRONT_END, FUNCTION];
        let other = other.iter().any(|prefix| self.address.starts_with(prefix));
        (!other).then(|| Path::new(&self.address))
    }

    pub fn name(&self) -> &str {
        &self.address
    }
}

/// A backend to be the front end of.
const FRONT_END: &str = "vhost-user:";

/// A PCI device to be the driver of.
const FUNCTION: &str = "pci:";

/// A virtio disk that this process drives itself.
pub enum Driven<'a> {
    /// At the socket of a backend.
    Socket(&'a Path),
    /// A PCI device of this machine.
    Function(&'a str),
}

/// Such a disk, if that is what the address names.
pub fn driven(address: &Path) -> Option<Driven<'_>> {
    let text = address.to_str()?;
    if let Some(function) = text.strip_prefix(FUNCTION) {
        return Some(Driven::Function(function));
    }
    Some(Driven::Socket(Path::new(text.strip_prefix(FRONT_END)?)))
}

impl Driven<'_> {
    /// Takes it.
    pub fn open(self, sector_size: Option<SectorSize>) -> Result<VirtioDevice, Failure> {
        Ok(match self {
            Self::Socket(path) => VirtioDevice::connect(path, sector_size)?,
            Self::Function(text) => {
                let address = text.parse();
                let address = address.map_err(|e: NotAnAddress| Failure::Refused(e.to_string()))?;
                VirtioDevice::open(address, sector_size)?
            }
        })
    }
}

/// Keeps producer and consumer away; refused while one is there.
pub fn both_roles<D: BlockDevice + ?Sized>(device: &D) -> Result<[RangeLock; 2], Failure> {
    let take = |side| {
        let lock = RangeLock::try_acquire(device, LockRange::Role(side)).map_err(Error::from)?;
        lock.ok_or_else(|| Error::Held { role: side, holder: holder(device, side) })
    };
    Ok([take(Side::Producer)?, take(Side::Consumer)?])
}

pub fn sector_size(text: &str) -> Result<SectorSize, String> {
    let bytes = text.parse().map_err(|_| "not a number of bytes".to_owned())?;
    SectorSize::new(bytes).map_err(|e| e.to_string())
}

/// A number of seconds: whole, or with a fraction.
pub fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    std::time::Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}
