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
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The function, which no driver has, or `uio_pci_generic`.
pub struct Bare {
    pub sysfs: Sysfs,
    pub address: PciAddress,
}

impl Function for Bare {
    fn config(&self) -> io::Result<Config> {
        area(&self.sysfs.config(self.address)).map(Config)
    }

    fn region(&self, bar: u8) -> io::Result<Area> {
        area(&self.sysfs.resource(self.address, bar))
    }

    /// It reaches everything.
    fn map(&self, _: &DmaMemory) -> io::Result<()> {
        Ok(())
    }

    fn interrupts(&self, isr: Registers) -> io::Result<Interrupts> {
        let Some(name) = self.sysfs.uio(self.address)? else { return Ok(Interrupts::None) };
        let uio = open(&Path::new("/dev").join(name), libc::O_NONBLOCK)?;
        Ok(Interrupts::Line(Line::new(uio, isr, self.config()?)?))
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn area(path: &Path) -> io::Result<Area> {
    let file = open(path, 0)?;
    let bytes = file.metadata()?.len();
    Ok(Area { file, offset: 0, bytes })
}

fn open(path: &Path, flags: i32) -> io::Result<File> {
    let file = File::options().read(true).write(true).custom_flags(flags).open(path);
    file.map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
}
