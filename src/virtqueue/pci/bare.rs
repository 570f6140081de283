//! A function without an IOMMU in front of it: its files in sysfs, and physical addresses.
//!
//! The device reaches all of the machine's memory. After a kill of this process nothing keeps it from finishing what was in flight, a held
//! read among that, and our memory may be somebody else's by then: one who uses huge pages too, as they return to the pool they came
//! from. Where `uio_pci_generic` has the function the kernel takes its access to memory away when the process is gone; and
//! whoever drives the device next resets it before it is given anything.

use super::config::{Area, Config};
use super::function::Function;
use super::interrupts::{Interrupts, Line};
use super::registers::Registers;
use crate::pci::{PciAddress, Sysfs};
use crate::virtqueue::DmaMemory;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The function's files.
pub struct Bare {
    sysfs: Sysfs,
    address: PciAddress,
    /// Locked, so that there is one of us.
    config: Flock<File>,
    uio: Option<PathBuf>,
}

impl Bare {
    /// Takes the function, which no driver has, or `uio_pci_generic`.
    pub fn open(sysfs: &Sysfs, address: PciAddress) -> io::Result<Self> {
        let config = open(&sysfs.config(address), 0)?;
        let config =
            Flock::lock(config, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
                if errno == Errno::EWOULDBLOCK { in_use() } else { errno.into() }
            })?;
        let uio = uio(&sysfs.device(address))?;
        Ok(Self { sysfs: sysfs.clone(), address, config, uio })
    }
}

impl Function for Bare {
    fn config(&self) -> io::Result<Config> {
        let bytes = self.config.metadata()?.len();
        Ok(Config(Area { file: self.config.try_clone()?, offset: 0, bytes }))
    }

    fn region(&self, bar: u8) -> io::Result<Area> {
        let file = open(&self.sysfs.resource(self.address, bar), 0)?;
        let bytes = file.metadata()?.len();
        Ok(Area { file, offset: 0, bytes })
    }

    /// It reaches everything.
    fn map(&self, _: &DmaMemory) -> io::Result<()> {
        Ok(())
    }

    fn interrupts(&self, isr: Registers) -> io::Result<Interrupts> {
        let Some(uio) = &self.uio else { return Ok(Interrupts::None) };
        let uio = open(uio, libc::O_NONBLOCK)?;
        Ok(Interrupts::Line(Line::new(uio, isr, self.config()?)?))
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Another process has the function.
pub fn in_use() -> io::Error {
    io::Error::new(ErrorKind::ResourceBusy, "another process drives the device")
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    File::options().read(true).write(true).custom_flags(flags).open(path).map_err(|e| {
        let words = match e.kind() {
            ErrorKind::PermissionDenied => "that is for root",
            _ => "the device does not have it",
        };
        io::Error::new(e.kind(), format!("{}: {e} ({words})", path.display()))
    })
}

/// The file that tells of the function's interrupts, where `uio_pci_generic` has made one.
fn uio(device: &Path) -> io::Result<Option<PathBuf>> {
    let mut names = match fs::read_dir(device.join("uio")) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        names => names?,
    };
    let name = names.next().transpose()?.map(|entry| entry.file_name());
    Ok(name.map(|name| Path::new("/dev").join(name)))
}
