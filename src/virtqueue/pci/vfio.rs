//! A function behind an IOMMU, by VFIO: it reaches our memory and nothing else.
//!
//! What is mapped for it ends with the process: the kernel resets the function and takes the mapping back before the memory is anybody
//! else's, whatever the process died of.

use super::config::{Area, Config};
use super::function::Function;
use super::in_use;
use super::interrupts::{Interrupts, descriptor, event};
use super::registers::Registers;
use crate::pci::{PciAddress, Sysfs};
use crate::virtqueue::DmaMemory;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError};
use vmm_sys_util::eventfd::EventFd;

/// The function, and the address space that it sees.
pub struct Vfio {
    device: VfioDevice,
    container: Arc<VfioContainer>,
    /// The kernel wants it back.
    request: EventFd,
}

impl Vfio {
    /// Takes the function, which `vfio-pci` has.
    pub fn open(sysfs: &Sysfs, address: PciAddress) -> io::Result<Self> {
        let container = Arc::new(VfioContainer::new(None).map_err(explain)?);
        let path = sysfs.device(address);
        let device = VfioDevice::new(&path, container.clone(), true).map_err(explain)?;
        let request = event()?;
        if device.get_irq_info(VFIO_PCI_REQ_IRQ_INDEX).is_some_and(|irq| irq.count > 0) {
            device.enable_irq(VFIO_PCI_REQ_IRQ_INDEX, vec![&request]).map_err(explain)?;
        }
        Ok(Self { device, container, request })
    }

    fn area(&self, region: u32) -> io::Result<Area> {
        // SAFETY: the descriptor is the device's, which lives as long as the borrow.
        let device = unsafe { BorrowedFd::borrow_raw(self.device.as_raw_fd()) };
        let (offset, bytes) =
            (self.device.get_region_offset(region), self.device.get_region_size(region));
        Ok(Area { file: File::from(device.try_clone_to_owned()?), offset, bytes })
    }
}

impl Function for Vfio {
    fn config(&self) -> io::Result<Config> {
        self.area(VFIO_PCI_CONFIG_REGION_INDEX).map(Config)
    }

    fn region(&self, bar: u8) -> io::Result<Area> {
        self.area(bar.into())
    }

    fn map(&self, memory: &DmaMemory) -> io::Result<()> {
        let at = memory.host_address(0) as *mut u8;
        let bytes = usize::try_from(memory.bytes()).map_err(io::Error::other)?;
        // The device address is the physical one: a device that does not ask for translation (ACCESS_PLATFORM) is not subject to
        // it, and would miss every other.
        //
        // SAFETY: the memory is looked at by atomics and copies alone, as any that is shared with another process. It is ours until the
        // driver drops it, which is after the device was reset and this container is gone.
        unsafe { self.container.vfio_dma_map(memory.device_address(0), bytes, at) }.map_err(explain)
    }

    fn interrupts(&self, _: Registers) -> io::Result<Interrupts> {
        if self.device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).is_none_or(|irq| irq.count == 0) {
            return Ok(Interrupts::None);
        }
        let event = event()?;
        self.device.enable_msix(vec![&event]).map_err(explain)?;
        Ok(Interrupts::Message(event))
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        Some(descriptor(&self.request))
    }
}

fn explain(error: VfioError) -> io::Error {
    match error {
        VfioError::OpenGroup(e, _) if e.kind() == ErrorKind::ResourceBusy => in_use(),
        VfioError::OpenGroup(e, group) => {
            let remedy = match e.kind() {
                ErrorKind::PermissionDenied => " (whoever may open that may drive the device)",
                _ => "",
            };
            io::Error::new(e.kind(), format!("/dev/vfio/{group}: {e}{remedy}"))
        }
        VfioError::GroupViable => io::Error::new(
            ErrorKind::ResourceBusy,
            "other devices of its IOMMU group are the kernel's: they have to be bound to vfio-pci too",
        ),
        VfioError::OpenContainer(e) => io::Error::new(e.kind(), format!("/dev/vfio/vfio: {e}")),
        other => io::Error::other(other),
    }
}
