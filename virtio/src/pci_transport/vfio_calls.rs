//! The kernel's calls of VFIO (driver-api/vfio), as far as a driver needs them.
//!
//! Not the crate `vfio-ioctls`: its device looks for itself in sysfs when it is dropped, and panics
//! where it was unplugged.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_TYPE1v2_IOMMU, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_irq_info, vfio_irq_set, vfio_region_info,
};
use vmm_sys_util::eventfd::EventFd;

/// The calls themselves, under the names of `linux/vfio.h`.
mod raw {
    use nix::request_code_none;
    use vfio_bindings::bindings::vfio::{
        VFIO_BASE, VFIO_TYPE, vfio_group_status, vfio_iommu_type1_dma_map, vfio_irq_info,
        vfio_irq_set, vfio_region_info,
    };

    nix::ioctl_write_int_bad!(set_iommu, request_code_none!(VFIO_TYPE, VFIO_BASE + 2));
    nix::ioctl_read_bad!(
        group_get_status,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 3),
        vfio_group_status
    );
    nix::ioctl_write_ptr_bad!(
        group_set_container,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 4),
        i32
    );
    nix::ioctl_write_ptr_bad!(
        group_get_device_fd,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 6),
        libc::c_char
    );
    nix::ioctl_read_bad!(
        device_get_region_info,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 8),
        vfio_region_info
    );
    nix::ioctl_read_bad!(
        device_get_irq_info,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 9),
        vfio_irq_info
    );
    nix::ioctl_write_ptr_bad!(
        device_set_irqs,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 10),
        IrqSet
    );
    nix::ioctl_write_ptr_bad!(
        iommu_map_dma,
        request_code_none!(VFIO_TYPE, VFIO_BASE + 13),
        vfio_iommu_type1_dma_map
    );

    /// With one event behind it.
    #[repr(C)]
    pub struct IrqSet {
        pub head: vfio_irq_set,
        pub event: i32,
    }
}

/// Size of a structure, as its field `argsz` states it.
fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// Whether all devices of a group are left to us.
pub fn is_viable(group: &File) -> io::Result<bool> {
    let mut status =
        vfio_group_status { argsz: size::<vfio_group_status>(), ..vfio_group_status::default() };
    // SAFETY: the call fills the structure, whose size it is told.
    unsafe { raw::group_get_status(group.as_raw_fd(), &raw mut status) }?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts the group's devices into the container's address space, the first ones in it.
pub fn join(group: &File, container: &File) -> io::Result<()> {
    // SAFETY: the call reads a descriptor, which is an open one.
    unsafe { raw::group_set_container(group.as_raw_fd(), &container.as_raw_fd()) }?;
    let kind = i32::try_from(VFIO_TYPE1v2_IOMMU).map_err(io::Error::other)?;
    // SAFETY: the call takes a number.
    unsafe { raw::set_iommu(container.as_raw_fd(), kind) }?;
    Ok(())
}

/// The device of that name, of the group.
pub fn device(group: &File, name: &str) -> io::Result<File> {
    let name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: the call reads a string, which ends with a zero.
    let fd = unsafe { raw::group_get_device_fd(group.as_raw_fd(), name.as_ptr()) }?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// Where in the device's file a region is, and how long.
pub fn region(device: &File, index: u32) -> io::Result<(u64, u64)> {
    let argsz = size::<vfio_region_info>();
    let mut info = vfio_region_info { argsz, index, ..vfio_region_info::default() };
    // SAFETY: the call fills the structure, whose size it is told.
    unsafe { raw::device_get_region_info(device.as_raw_fd(), &raw mut info) }?;
    Ok((info.offset, info.size))
}

/// Has an interrupt written into `event`. `false` if the device has none of this kind.
pub fn interrupt(device: &File, index: u32, event: &EventFd) -> io::Result<bool> {
    let argsz = size::<vfio_irq_info>();
    let mut info = vfio_irq_info { argsz, index, ..vfio_irq_info::default() };
    // SAFETY: the call fills the structure, whose size it is told.
    unsafe { raw::device_get_irq_info(device.as_raw_fd(), &raw mut info) }?;
    if info.count == 0 {
        return Ok(false);
    }
    let head = vfio_irq_set {
        argsz: size::<raw::IrqSet>(),
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        index,
        start: 0,
        count: 1,
        ..vfio_irq_set::default()
    };
    let set = raw::IrqSet { head, event: event.as_raw_fd() };
    // SAFETY: the call reads the structure, whose size it is told, with one event in it.
    unsafe { raw::device_set_irqs(device.as_raw_fd(), &raw const set) }?;
    Ok(true)
}

/// Lets the container's devices reach `bytes` of this process's memory from `host` on, as `device`.
///
/// # Safety
/// The memory stays mapped until its devices have stopped, and is looked at by atomics and raw
/// copies alone.
pub unsafe fn map(container: &File, host: u64, device: u64, bytes: u64) -> io::Result<()> {
    let map = vfio_iommu_type1_dma_map {
        argsz: size::<vfio_iommu_type1_dma_map>(),
        flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: host,
        iova: device,
        size: bytes,
    };
    // SAFETY: the call reads the structure; what it does to memory is the caller's.
    unsafe { raw::iommu_map_dma(container.as_raw_fd(), &raw const map) }?;
    Ok(())
}
