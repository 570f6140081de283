//! A virtio block device of this machine, over PCI (virtio 1.3, 4.1): mostly in a guest, whose disk
//! is driven by a process rather than by the kernel.
//!
//! The device reads and writes the memory that it was told of, until it is reset: the driver does
//! that before it gives the memory back, and before the device is given anything. What is left
//! after a kill depends on the way to the device: [`bare`] and [`vfio`].

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

pub use self::caps::CapabilityError;

use self::bare::Bare;
use self::caps::Capabilities;
use self::common::Common;
use self::config::Config;
use self::function::Function;
use self::interrupts::Interrupts;
use self::registers::Registers;
use self::vfio::Vfio;
use crate::disk::{self, WANTED};
use crate::memory::DmaMemory;
use crate::pci::{Claim, PciAddress, Sysfs};
use crate::queue::Layout;
use crate::transport::{Link, Seal};
use crate::{Disk, Error, Refusal, Step, Transport};
use ring_os::{Limits, wait_readable};
use std::fmt;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// The one queue that is used.
const QUEUE: u16 = 0;

/// A virtio block device of this machine, which no other process drives.
///
/// Only an `unsafe` block can take one:
///
/// ```compile_fail,E0133
/// # use virtio_blk_driver::Pci;
/// let disk = Pci::open("0000:00:04.0".parse().unwrap());
/// ```
pub struct Pci {
    disk: Disk,
    caps: Capabilities,
    common: Common,
    notify: Registers,
    /// Offset in `notify` at which the queue is notified.
    notify_at: u32,
    interrupts: Interrupts,
    config: Config,
    /// Whether the device was stopped, or does not stop.
    ended: bool,
    function: Box<dyn Function>,
    /// Dropped last, as fields are in their order: the next process is told that the device is in
    /// use until the function is given up. Nothing else depends on the order: `drop` has stopped
    /// the device by then.
    _claim: Claim,
}

impl Pci {
    /// Takes the device at `address`, which the kernel's driver must not have. The device is reset,
    /// and has no access to memory before a [`BlockDriver`](super::BlockDriver) is made over it.
    ///
    /// # Errors
    /// A [`Refusal`], or the operating system's error.
    ///
    /// # Safety
    /// The device goes by physical addresses, behind an IOMMU too: nothing but the device itself
    /// keeps it to the memory that it is told of. The caller vouches for what this process cannot
    /// see, until the driver is dropped:
    /// - The device is a virtio device that keeps to the standard. It touches only memory that its
    ///   queue describes, and none from the acknowledgement of a reset on. A virtual machine's
    ///   devices are as trusted as the virtual machine itself.
    /// - Nobody else tells the device where to write. Another process that uses this function is
    ///   kept away by a lock, and so is the kernel's driver; a program that writes to the device's
    ///   registers past both is not.
    /// - The kernel leaves huge pages in use where they are. It moves them when memory is taken out
    ///   of the machine (hot-unplug, a balloon of whole blocks) or put together for gigantic pages
    ///   while the device is driven without VFIO, which pins them.
    pub unsafe fn open(address: PciAddress) -> Result<Self, Error> {
        // SAFETY: the caller's.
        unsafe { Self::take(Sysfs::default(), address) }
    }

    /// Takes the device that `sysfs` shows at `address`.
    ///
    /// # Safety
    /// The same as for [`open`](Self::open).
    unsafe fn take(sysfs: Sysfs, address: PciAddress) -> Result<Self, Error> {
        if !sysfs.exists(address) {
            return Err(Refusal::NotThere.into());
        }
        let ids = sysfs.vendor_device(address).map_err(Step::Look.failed())?;
        if !ids.is_virtio_blk() {
            return Err(Refusal::NotVirtioBlk { vendor: ids.vendor, device: ids.device }.into());
        }
        let claim = sysfs.claim(address).map_err(|e| match e.kind() {
            ErrorKind::PermissionDenied => Refusal::NotRoot.into(),
            _ => Step::Open(sysfs.config(address)).failed()(e),
        })?;
        let claim = claim.ok_or(Refusal::InUse)?;
        let driver = sysfs.driver(address).map_err(Step::Look.failed())?;
        let function: Box<dyn Function> = match driver.as_deref() {
            Some("vfio-pci") => Box::new(Vfio::open(&sysfs, address)?),
            None | Some("uio_pci_generic") => Box::new(Bare { sysfs, address }),
            Some(driver) => return Err(Refusal::KernelDriver(driver.to_owned()).into()),
        };
        Self::over(function, claim)
    }

    fn over(function: Box<dyn Function>, claim: Claim) -> Result<Self, Error> {
        let config = function.config()?;
        let caps = Capabilities::parse(&config.read()?).map_err(Refusal::from)?;
        let registers = |place: caps::Place| Registers::map(function.region(place.bar)?, place);
        let (common, notify) = (Common::new(registers(caps.common)?), registers(caps.notify)?);
        config.disable_device()?;
        // A driver before this one may have left it with memory that is another process's by now.
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
            ended: false,
            function,
            _claim: claim,
        })
    }
}

impl Transport for Pci {
    fn disk(&self) -> Disk {
        self.disk
    }
    fn into_link(self, _: Seal) -> Box<dyn Link> {
        Box::new(self)
    }
}

impl Link for Pci {
    fn allocate(&self, bytes: u64) -> Result<DmaMemory, Error> {
        physical::allocate(bytes)
    }

    /// The device is hardware to this process, and answers at once or not at all.
    unsafe fn start(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        _: &Limits<'_>,
    ) -> Result<(), Error> {
        let line = matches!(self.interrupts, Interrupts::Line(_));
        // SAFETY: the caller keeps the memory until `stop` has returned `Ok`.
        unsafe { self.function.map(memory) }?;
        self.config.enable_device(line)?;
        let ranges = layout.ranges(memory);
        let vector = self.interrupts.vector();
        // SAFETY: as above.
        let queue = unsafe { self.common.start(QUEUE, layout.size, ranges, vector) }?;
        self.notify_at = self.caps.notify_at(queue).map_err(Refusal::from)?;
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Error> {
        self.ended = true;
        let reset = self.common.reset();
        // It starts nothing new without access to memory. What is in flight, a reset alone ends:
        // without one the memory counts as in use.
        let _ = self.config.disable_device();
        reset
    }

    fn notify(&self) -> Result<(), Error> {
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

    fn present(&self) -> Result<(), Error> {
        let Some(gone) = self.function.gone() else { return self.common.present() };
        let wanted_back = wait_readable(&[gone], Some(Duration::ZERO));
        match wanted_back.map_err(Step::Wait.failed())? {
            Some(_) => Err(Error::Gone),
            None => self.common.present(),
        }
    }
}

impl Drop for Pci {
    /// Resets a device that no [`BlockDriver`](super::BlockDriver) has stopped, which was told of
    /// no memory then.
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.stop();
        }
    }
}

impl fmt::Debug for Pci {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (disk, caps) = (self.disk, self.caps);
        f.debug_struct("Pci").field("disk", &disk).field("caps", &caps).finish_non_exhaustive()
    }
}

/// Reads the start of the disk's configuration, as far as the device has it.
fn read(device: &Registers) -> disk::Config {
    let mut config: disk::Config = [0; _];
    let there = device.length() / 4 * 4;
    for (at, bytes) in (0..there).step_by(4).zip(config.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&device.read::<u32>(at).to_le_bytes());
    }
    config
}
