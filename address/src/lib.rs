//! The address of a ring, as the command line and every language that has the library take it, and
//! the device that it names.
//!
//! | address | ring |
//! |---|---|
//! | `PATH` | in a file, or on a block device of this machine's kernel |
//! | `serial:NAME` | on the disk with that serial number |
//! | `unix:PATH` | of the backend with that consumer socket |
//! | `vhost-user:PATH` | on the disk of the backend with that vhost-user socket |
//! | `pci:0000:00:04.0` | on the PCI disk that was taken from the kernel |
//!
//! A path that begins with one of the prefixes is written with a folder: `./unix:ring`.
//!
//! ```
//! use ring_address::{Address, Options};
//! use shared_block_ring::wait::Limits;
//! use shared_block_ring::{Consumer, Role};
//! use std::time::Duration;
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ring");
//! # shared_block_ring::make_file(&path, 1 << 20)?;
//! # let file = shared_block_ring::OpenOptions::default().open(&path)?;
//! # shared_block_ring::create(&file, Default::default())?;
//! # let text = path.as_os_str();
//!
//! let address = Address::from(text); // "unix:/run/blockring/web.out"
//! let limits = Limits::within(Duration::from_secs(5));
//! let device = address.open(Options::new(Role::Consumer), &limits)?;
//! let consumer = Consumer::attach(device, "logs", "collector")?;
//! # drop(consumer);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs, missing_debug_implementations)]
#![deny(clippy::missing_errors_doc, clippy::missing_panics_doc)]
#![deny(clippy::print_stdout, clippy::print_stderr)]

use shared_block_ring::device::{DeviceError, Operation, find_by_serial, shown};
use shared_block_ring::format::SectorSize;
use shared_block_ring::wait::Limits;
use shared_block_ring::{OpenOptions, Result, RingDevice, Role, UnixDevice};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use virtio_blk_driver::VirtioDevice;
use virtio_blk_driver::pci::ParsePciAddressError;

/// Any device that an address can name.
pub type AnyDevice = Box<dyn RingDevice + Send>;

/// The address of a ring. There are no other kinds: a `match` on all of them stays complete.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// A file, or a block device of this machine's kernel.
    Path(PathBuf),
    /// A disk of this machine's kernel, by its serial number.
    Serial(OsString),
    /// A ring that a backend hands over at this socket.
    Unix(PathBuf),
    /// The disk of the vhost-user backend that listens at this socket; this process drives it.
    VhostUser(PathBuf),
    /// The PCI disk with this address; this process drives it.
    Pci(OsString),
}

const SERIAL: &str = "serial:";
const UNIX: &str = "unix:";
const VHOST_USER: &str = "vhost-user:";
const PCI: &str = "pci:";

impl From<&OsStr> for Address {
    fn from(text: &OsStr) -> Self {
        // What follows a prefix may have any bytes.
        let behind = |prefix: &str| text.as_bytes().strip_prefix(prefix.as_bytes());
        let behind = |prefix| behind(prefix).map(OsStr::from_bytes);
        if let Some(serial) = behind(SERIAL) {
            Self::Serial(serial.to_owned())
        } else if let Some(socket) = behind(UNIX) {
            Self::Unix(socket.into())
        } else if let Some(socket) = behind(VHOST_USER) {
            Self::VhostUser(socket.into())
        } else if let Some(function) = behind(PCI) {
            Self::Pci(function.to_owned())
        } else {
            Self::Path(text.into())
        }
    }
}

impl From<&str> for Address {
    fn from(text: &str) -> Self {
        Self::from(OsStr::new(text))
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::from(path.as_os_str())
    }
}

/// The address, made printable.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shown(&self.to_os_string()))
    }
}

/// How the device of an address is opened.
#[derive(Debug)]
pub struct Options {
    role: Role,
    sector_size: Option<SectorSize>,
    read_only: bool,
    lend_in_place: bool,
    drive_pci: bool,
    stop: Option<OwnedFd>,
}

impl Options {
    /// Makes the default options for a handle with that role: for reading and writing, with sectors
    /// of 512 bytes in a file, and with copies of what is read.
    pub fn new(role: Role) -> Self {
        let (lend_in_place, drive_pci) = (false, false);
        Self { role, sector_size: None, read_only: false, lend_in_place, drive_pci, stop: None }
    }

    /// Sets the sector size of a ring in a file. A device has its own, and one that differs is an
    /// error.
    #[must_use]
    pub fn sector_size(self, size: SectorSize) -> Self {
        Self { sector_size: Some(size), ..self }
    }

    /// Sets whether a file or block device of the kernel is opened for reading only. A backend
    /// gives a handle without a role nothing else.
    #[must_use]
    pub fn read_only(self, read_only: bool) -> Self {
        Self { read_only, ..self }
    }

    /// Has the waits of a disk that this process drives (`vhost-user:`, `pci:`) end soon when
    /// `stop` is readable: see [`VirtioDevice::stop_on`].
    #[must_use]
    pub fn stop_on(self, stop: OwnedFd) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// Has a ring that a backend hands over (`unix:`) lend its items where they lie, without a
    /// copy.
    ///
    /// # Safety
    /// The caller vouches for what [`UnixDevice::lend_in_place`] lists.
    #[must_use]
    pub unsafe fn lend_in_place(self) -> Self {
        Self { lend_in_place: true, ..self }
    }

    /// Allows `pci:` addresses, which are refused without this.
    ///
    /// # Safety
    /// The caller vouches for what [`VirtioDevice::open`] lists.
    #[must_use]
    pub unsafe fn drive_pci(self) -> Self {
        Self { drive_pci: true, ..self }
    }
}

impl Address {
    /// Returns the address as it is written.
    pub fn to_os_string(&self) -> OsString {
        let (prefix, rest) = match self {
            Self::Path(path) => ("", path.as_os_str()),
            Self::Serial(serial) => (SERIAL, serial.as_os_str()),
            Self::Unix(socket) => (UNIX, socket.as_os_str()),
            Self::VhostUser(socket) => (VHOST_USER, socket.as_os_str()),
            Self::Pci(function) => (PCI, function.as_os_str()),
        };
        let mut text = OsString::from(prefix);
        text.push(rest);
        text
    }

    /// Returns the path of the file, node or socket, if the address has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Path(path) | Self::Unix(path) | Self::VhostUser(path) => Some(path),
            Self::Serial(_) | Self::Pci(_) => None,
        }
    }

    /// Returns whether this process drives the disk by itself, without the kernel: no other process
    /// can use it meanwhile.
    pub fn is_driven(&self) -> bool {
        matches!(self, Self::VhostUser(_) | Self::Pci(_))
    }

    /// Returns the path of the file or of the disk's node, if the kernel has one: a disk is looked
    /// for by its serial number.
    ///
    /// # Errors
    /// There is no such disk, or more than one.
    pub fn find(&self) -> Result<Option<PathBuf>> {
        match self {
            Self::Path(path) => Ok(Some(path.clone())),
            // A serial number that is not text is that of no disk.
            Self::Serial(serial) => match find_by_serial(&serial.to_string_lossy()) {
                Ok(node) => Ok(Some(node)),
                Err(e) => Err(self.error(e)),
            },
            Self::Unix(_) | Self::VhostUser(_) | Self::Pci(_) => Ok(None),
        }
    }

    /// Opens the device. `limits` bound the wait for a backend's answer.
    ///
    /// # Errors
    /// [`Error::Device`](shared_block_ring::Error::Device) if the file, disk or backend is not
    /// there or does not answer, or for a `pci:` address without [`Options::drive_pci`];
    /// [`Error::RoleTaken`](shared_block_ring::Error::RoleTaken) if the backend has a client with
    /// the role; [`Error::Format`](shared_block_ring::Error::Format) for a device of a shape that
    /// cannot hold a ring.
    pub fn open(&self, options: Options, limits: &Limits<'_>) -> Result<AnyDevice> {
        let sector_size = options.sector_size;
        let disk = match self {
            Self::Path(path) => return Ok(Box::new(options.kernel().open(path)?)),
            Self::Serial(_) => {
                let node = self.find()?.unwrap_or_default();
                return Ok(Box::new(options.kernel().open(node)?));
            }
            Self::Unix(socket) => {
                let device = UnixDevice::connect_within(socket, options.role, limits)?;
                if !options.lend_in_place {
                    return Ok(Box::new(device));
                }
                // SAFETY: whoever called `Options::lend_in_place` vouches for it.
                return Ok(Box::new(unsafe { device.lend_in_place() }));
            }
            Self::VhostUser(socket) => VirtioDevice::connect_within(socket, sector_size, limits)?,
            Self::Pci(_) if !options.drive_pci => {
                let text = "a PCI disk is not driven from here: it takes the caller's word that the device keeps to the standard";
                return Err(self.error(io::Error::new(ErrorKind::PermissionDenied, text)));
            }
            Self::Pci(function) => {
                let address = function.to_string_lossy().parse();
                let invalid = |e: ParsePciAddressError| {
                    io::Error::new(ErrorKind::InvalidInput, e.to_string())
                };
                let address = address.map_err(|e| self.error(invalid(e)))?;
                // SAFETY: whoever called `Options::drive_pci` vouches for it.
                unsafe { VirtioDevice::open(address, sector_size) }?
            }
        };
        Ok(Box::new(match options.stop {
            Some(stop) => disk.stop_on(stop),
            None => disk,
        }))
    }

    fn error(&self, source: io::Error) -> shared_block_ring::Error {
        DeviceError::new(self.to_string(), Operation::Open, source).into()
    }
}

impl Options {
    /// Returns the options for a file or a block device of the kernel.
    fn kernel(&self) -> OpenOptions {
        let options = OpenOptions::new().read_only(self.read_only);
        match self.sector_size {
            Some(size) => options.sector_size(size),
            None => options,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::Error;
    use std::time::Duration;

    #[test]
    fn address_is_written_as_it_was_read() {
        let kinds = [
            ("/dev/vdb", Address::Path("/dev/vdb".into())),
            ("./unix:ring", Address::Path("./unix:ring".into())),
            ("serial:logs", Address::Serial("logs".into())),
            ("unix:/run/ring.out", Address::Unix("/run/ring.out".into())),
            ("vhost-user:/run/ring", Address::VhostUser("/run/ring".into())),
            ("pci:0000:00:04.0", Address::Pci("0000:00:04.0".into())),
        ];
        for (text, address) in kinds {
            assert_eq!(Address::from(text), address);
            assert_eq!(address.to_os_string(), text);
            assert_eq!(address.to_string(), text);
        }
    }

    #[test]
    fn address_keeps_bytes_that_are_not_text() {
        let text = OsStr::from_bytes(b"unix:/run/\xff");
        let address = Address::from(text);
        assert_eq!(address, Address::Unix(OsStr::from_bytes(b"/run/\xff").into()));
        assert_eq!(address.to_os_string(), text);
    }

    #[test]
    fn pci_disk_is_refused_without_the_callers_word() {
        let limits = Limits::within(Duration::from_secs(1));
        let opened = Address::from("pci:0000:00:04.0").open(Options::new(Role::Producer), &limits);
        let Err(Error::Device(error)) = opened else { unreachable!("it was opened") };
        assert_eq!(error.source.kind(), ErrorKind::PermissionDenied);
        assert_eq!(error.name, "pci:0000:00:04.0");
    }

    #[test]
    fn serial_number_that_no_disk_has_is_named() {
        let limits = Limits::within(Duration::from_secs(1));
        let opened = Address::from("serial:no-such").open(Options::new(Role::Control), &limits);
        let error = opened.map(drop).unwrap_err().to_string();
        assert!(error.contains("serial:no-such"), "{error}");
    }
}
