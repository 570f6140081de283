//! A virtio block device of this machine, over PCI (virtio 1.3, 4.1): mostly in a guest, whose disk is driven by a process rather than by the
//! kernel.
//!
//! The device reads and writes the memory that it was told of, until it is reset: that is done before the memory is given back, and before
//! it is given anything by us. What is left after a kill depends on the way to it: [`bare`] and [`vfio`].

mod bare;
mod caps;
mod common;
mod config;
mod function;
mod interrupts;
mod physical;
mod registers;
#[cfg(test)]
mod tests;
mod vfio;
mod vfio_calls;

use self::bare::Bare;
use self::caps::Capabilities;
use self::common::Common;
use self::config::{Config, only_root};
use self::function::Function;
use self::interrupts::Interrupts;
use self::registers::Registers;
use self::vfio::Vfio;
use super::disk::{self, WANTED};
use super::{Disk, DmaMemory, Layout, Transport};
use crate::pci::{Claim, PciAddress, Sysfs};
use crate::wait::wait_readable;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The one queue that is used.
const QUEUE: u16 = 0;

/// The device, which nobody else drives.
pub struct Pci {
    disk: Disk,
    caps: Capabilities,
    common: Common,
    notify: Registers,
    /// Where in that the queue is notified.
    notify_at: u32,
    interrupts: Interrupts,
    config: Config,
    // Last: they are given up when nothing is in use.
    function: Box<dyn Function>,
    _claim: Claim,
}

impl Pci {
    /// Takes the device at `address`, which the kernel's driver must not have. The queue does not run before [`start`](Transport::start).
    pub fn open(address: PciAddress) -> io::Result<Self> {
        Self::take(Sysfs::default(), address)
    }

    fn take(sysfs: Sysfs, address: PciAddress) -> io::Result<Self> {
        if !sysfs.exists(address) {
            return Err(io::Error::new(ErrorKind::NotFound, "there is no such PCI device"));
        }
        let ids = sysfs.vendor_device(address)?;
        if !ids.is_virtio_blk() {
            let words = format!("{:04x}:{:04x} is no virtio block device", ids.vendor, ids.device);
            return Err(io::Error::new(ErrorKind::Unsupported, words));
        }
        let claim = sysfs.claim(address).map_err(|e| match e.kind() {
            ErrorKind::PermissionDenied => only_root(),
            _ => e,
        })?;
        let claim = claim.ok_or_else(in_use)?;
        let function: Box<dyn Function> = match sysfs.driver(address)?.as_deref() {
            Some("vfio-pci") => Box::new(Vfio::open(&sysfs, address)?),
            None | Some("uio_pci_generic") => Box::new(Bare { sysfs, address }),
            Some(driver) => {
                let words = format!(
                    "the kernel's driver {driver} has it (blockring bind {address} takes it from there)"
                );
                return Err(io::Error::new(ErrorKind::ResourceBusy, words));
            }
        };
        Self::over(function, claim)
    }

    fn over(function: Box<dyn Function>, claim: Claim) -> io::Result<Self> {
        let config = function.config()?;
        let caps = Capabilities::parse(&config.read()?)
            .map_err(|e| io::Error::new(ErrorKind::Unsupported, e))?;
        let registers = |place: caps::Place| Registers::map(function.region(place.bar)?, place);
        let (common, notify) = (Common::new(registers(caps.common)?), registers(caps.notify)?);
        config.disable_device()?;
        // Whoever had it before may have left it with memory that is not his any more.
        common.reset()?;
        let interrupts = function.interrupts(registers(caps.isr)?)?;
        let features = common.negotiate(WANTED).inspect_err(|_| drop(common.reset()))?;
        let device = registers(caps.device)?;
        let disk = Disk::new(features, &common.steadily(|| read(&device))?)?;
        Ok(Self {
            disk,
            caps,
            common,
            notify,
            notify_at: 0,
            interrupts,
            config,
            function,
            _claim: claim,
        })
    }

    fn stop(&self) {
        // If it does not reset, it is at least kept from memory.
        let _ = self.common.reset();
        let _ = self.config.disable_device();
    }
}

impl Transport for Pci {
    fn disk(&self) -> Disk {
        self.disk
    }

    fn allocate(&self, bytes: u64) -> io::Result<DmaMemory> {
        physical::allocate(bytes)
    }

    fn start(&mut self, memory: &DmaMemory, layout: Layout) -> io::Result<()> {
        let line = matches!(self.interrupts, Interrupts::Line(_));
        self.function.map(memory)?;
        self.config.enable_device(line)?;
        // The memory may be gone before we are.
        let started = self
            .common
            .start(QUEUE, memory, layout, self.interrupts.vector())
            .and_then(|queue| self.caps.notify_at(queue).map_err(io::Error::other));
        self.notify_at = started.inspect_err(|_| self.stop())?;
        Ok(())
    }

    fn notify(&self) -> io::Result<()> {
        self.notify.write(self.notify_at, QUEUE);
        Ok(())
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        self.interrupts.fd()
    }

    fn acknowledge(&self) {
        self.interrupts.acknowledge();
    }

    fn pass_on(&self) {
        self.interrupts.pass_on();
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        self.function.gone()
    }

    fn present(&self) -> io::Result<()> {
        match self.function.gone() {
            Some(gone) if wait_readable(&[gone], Some(Duration::ZERO))?.is_some() => {
                Err(common::gone())
            }
            _ => self.common.present(),
        }
    }
}

impl Drop for Pci {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Another process has the device.
fn in_use() -> io::Error {
    io::Error::new(ErrorKind::ResourceBusy, "another process drives the device")
}

/// The start of the disk's configuration, as far as the device has it.
fn read(device: &Registers) -> disk::Config {
    let mut config: disk::Config = [0; _];
    let there = device.length() / 4 * 4;
    for (at, bytes) in (0..there).step_by(4).zip(config.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&device.read::<u32>(at).to_le_bytes());
    }
    config
}
