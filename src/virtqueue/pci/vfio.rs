//! A function behind an IOMMU, by VFIO.
//!
//! The kernel makes events of its interrupts, and resets it when we are gone, whatever we died of, before our memory is anybody else's. The
//! IOMMU itself is no fence here: a virtio device that does not ask for translation goes past it.

use super::config::{Area, Config};
use super::function::Function;
use super::in_use;
use super::interrupts::{Interrupts, descriptor, event};
use super::registers::Registers;
use super::vfio_calls;
use crate::pci::{PciAddress, Sysfs};
use crate::virtqueue::DmaMemory;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::BorrowedFd;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};
use vmm_sys_util::eventfd::EventFd;

/// The function, and the address space that it sees.
pub struct Vfio {
    device: File,
    _group: File,
    container: File,
    /// The kernel wants it back.
    request: EventFd,
}

impl Vfio {
    /// Takes the function, which `vfio-pci` has.
    pub fn open(sysfs: &Sysfs, address: PciAddress) -> io::Result<Self> {
        let number = sysfs.iommu_group(address)?;
        let number = number.ok_or_else(|| io::Error::other("it is in no IOMMU group"))?;
        let container = open("vfio")?;
        let group = open(&number.to_string())?;
        if !vfio_calls::is_viable(&group)? {
            let words = "other devices of its IOMMU group are the kernel's: they have to be bound to vfio-pci too";
            return Err(io::Error::new(ErrorKind::ResourceBusy, words));
        }
        vfio_calls::join(&group, &container)?;
        let device = vfio_calls::device(&group, &address.to_string())?;
        let request = event()?;
        // Without it nobody tells.
        vfio_calls::interrupt(&device, VFIO_PCI_REQ_IRQ_INDEX, &request)?;
        Ok(Self { device, _group: group, container, request })
    }

    fn area(&self, region: u32) -> io::Result<Area> {
        let (offset, bytes) = vfio_calls::region(&self.device, region)?;
        Ok(Area { file: self.device.try_clone()?, offset, bytes })
    }
}

fn open(name: &str) -> io::Result<File> {
    let path = format!("/dev/vfio/{name}");
    File::options().read(true).write(true).open(&path).map_err(|e| match e.kind() {
        ErrorKind::ResourceBusy => in_use(),
        kind => io::Error::new(kind, format!("{path}: {e}")),
    })
}

impl Function for Vfio {
    fn config(&self) -> io::Result<Config> {
        self.area(VFIO_PCI_CONFIG_REGION_INDEX).map(Config)
    }

    fn region(&self, bar: u8) -> io::Result<Area> {
        self.area(bar.into())
    }

    fn map(&self, memory: &DmaMemory) -> io::Result<()> {
        let (host, device) = (memory.host_address(0), memory.device_address(0));
        // The device address is the physical one: a device that does not ask for translation (ACCESS_PLATFORM) is not subject to
        // it, and would miss every other.
        //
        // SAFETY: the memory is looked at by atomics and copies alone, as any that is shared with another process. It is ours until the
        // driver drops it, which is after the device was reset and this container is gone.
        unsafe { vfio_calls::map(&self.container, host, device, memory.bytes()) }
    }

    fn interrupts(&self, _: Registers) -> io::Result<Interrupts> {
        let event = event()?;
        let there = vfio_calls::interrupt(&self.device, VFIO_PCI_MSIX_IRQ_INDEX, &event)?;
        Ok(if there { Interrupts::Message(event) } else { Interrupts::None })
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        Some(descriptor(&self.request))
    }
}
