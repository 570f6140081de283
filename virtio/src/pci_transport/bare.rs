//! A function without an IOMMU in front of it: its files in sysfs, and physical addresses.
//!
//! The device reaches all of the machine's memory. After a kill of this process nothing keeps it
//! from finishing what was in flight, a held read among that, and our memory may be somebody else's
//! by then: one who uses huge pages too, as they return to the pool they came from. Where
//! `uio_pci_generic` has the function the kernel takes its access to memory away when the process
//! is gone; and whoever drives the device next resets it before it is given anything.

use super::config::{Area, Config};
use super::function::Function;
use super::interrupts::{Interrupts, Line};
use super::registers::Registers;
use crate::memory::DmaMemory;
use crate::pci::{PciAddress, Sysfs};
use crate::{Error, Step};
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The function, which no driver has, or `uio_pci_generic`.
pub struct Bare {
    pub sysfs: Sysfs,
    pub address: PciAddress,
}

impl Function for Bare {
    fn config(&self) -> Result<Config, Error> {
        area(&self.sysfs.config(self.address)).map(Config)
    }

    fn region(&self, bar: u8) -> Result<Area, Error> {
        area(&self.sysfs.resource(self.address, bar))
    }

    /// Does nothing: without an IOMMU the function reaches all memory.
    unsafe fn map(&self, _: &DmaMemory) -> Result<(), Error> {
        Ok(())
    }

    fn interrupts(&self, isr: Registers) -> Result<Interrupts, Error> {
        let uio = self.sysfs.uio(self.address).map_err(Step::Look.failed())?;
        let Some(name) = uio else { return Ok(Interrupts::None) };
        let uio = open(&Path::new("/dev").join(name), libc::O_NONBLOCK)?;
        let line = Line::new(uio, isr, self.config()?).map_err(Step::Wait.failed())?;
        Ok(Interrupts::Line(line))
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn area(path: &Path) -> Result<Area, Error> {
    let file = open(path, 0)?;
    let bytes = file.metadata().map_err(Step::Open(path.to_owned()).failed())?.len();
    Ok(Area { file, offset: 0, bytes })
}

fn open(path: &Path, flags: i32) -> Result<File, Error> {
    let file = File::options().read(true).write(true).custom_flags(flags).open(path);
    file.map_err(Step::Open(path.to_owned()).failed())
}
