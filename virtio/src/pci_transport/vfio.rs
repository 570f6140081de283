//! A function behind an IOMMU, by VFIO.
//!
//! The kernel makes events of its interrupts, and resets it when we are gone, whatever we died of,
//! before our memory is anybody else's. The IOMMU itself is no fence here: a virtio device that
//! does not ask for translation goes past it.

use super::config::{Area, Config};
use super::function::Function;
use super::interrupts::{Interrupts, descriptor, event};
use super::registers::Registers;
use super::vfio_calls;
use crate::memory::DmaMemory;
use crate::pci::{PciAddress, Sysfs};
use crate::{Error, Refusal, Step};
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

/// The function, and the address space that it sees. The kernel takes the descriptors back in any
/// order.
pub struct Vfio {
    device: File,
    _group: File,
    container: File,
    /// The kernel wants it back.
    request: EventFd,
}

impl Vfio {
    /// Takes the function, which `vfio-pci` has.
    pub fn open(sysfs: &Sysfs, address: PciAddress) -> Result<Self, Error> {
        let number = sysfs.iommu_group(address).map_err(Step::Look.failed())?;
        let number = number.ok_or(Refusal::NoGroup)?;
        let container = open("vfio")?;
        let group = open(&number.to_string())?;
        if !vfio_calls::is_viable(&group).map_err(Step::Vfio.failed())? {
            return Err(Refusal::SharedGroup.into());
        }
        let take = || {
            vfio_calls::join(&group, &container)?;
            let device = vfio_calls::device(&group, &address.to_string())?;
            let request = event()?;
            // Without it nobody tells.
            vfio_calls::interrupt(&device, VFIO_PCI_REQ_IRQ_INDEX, &request)?;
            Ok((device, request))
        };
        let (device, request) = take().map_err(Step::Vfio.failed())?;
        Ok(Self { device, _group: group, container, request })
    }

    fn area(&self, region: u32) -> Result<Area, Error> {
        let area = || {
            let (offset, bytes) = vfio_calls::region(&self.device, region)?;
            Ok(Area { file: self.device.try_clone()?, offset, bytes })
        };
        area().map_err(Step::Vfio.failed())
    }
}

fn open(name: &str) -> Result<File, Error> {
    let path = PathBuf::from("/dev/vfio").join(name);
    File::options().read(true).write(true).open(&path).map_err(|e| match e.kind() {
        ErrorKind::ResourceBusy => Refusal::InUse.into(),
        _ => Step::Open(path).failed()(e),
    })
}

impl Function for Vfio {
    fn config(&self) -> Result<Config, Error> {
        self.area(VFIO_PCI_CONFIG_REGION_INDEX).map(Config)
    }

    fn region(&self, bar: u8) -> Result<Area, Error> {
        self.area(bar.into())
    }

    unsafe fn map(&self, memory: &DmaMemory) -> Result<(), Error> {
        let (host, device) = (memory.host_address(0), memory.device_start());
        // The device address is the physical one: a device that does not ask for translation
        // (ACCESS_PLATFORM) is not subject to it, and would miss every other.
        //
        // SAFETY: the caller keeps the memory mapped until the device has stopped, and looks at it
        // by atomics and copies alone.
        let mapped = unsafe { vfio_calls::map(&self.container, host, device, memory.bytes()) };
        mapped.map_err(Step::Start.failed())
    }

    fn interrupts(&self, _: Registers) -> Result<Interrupts, Error> {
        let interrupts = || {
            let event = event()?;
            let there = vfio_calls::interrupt(&self.device, VFIO_PCI_MSIX_IRQ_INDEX, &event)?;
            Ok(if there { Interrupts::Message(event) } else { Interrupts::None })
        };
        interrupts().map_err(Step::Vfio.failed())
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        Some(descriptor(&self.request))
    }
}
