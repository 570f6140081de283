//! The users of a device that would lose it: file systems, volumes, processes.

use super::Machine;
use nix::errno::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use virtio_blk_driver::pci::{PciAddress, Sysfs};

/// A disk that is open exclusively: nothing else can mount it, claim it or build on it.
#[derive(Debug)]
pub struct Free {
    _exclusive: File,
}

/// Opens a disk that is not in use. The inner error names the user of the disk, and the remedy.
pub fn free(machine: &Machine, disk: &str) -> io::Result<Result<Free, String>> {
    let node = machine.node(disk);
    // First, so that what the checks below see cannot change. The kernel refuses it while the disk
    // or a partition is mounted, a swap or part of a volume, also where this process cannot see
    // that, as with mounts in other namespaces.
    let exclusive =
        File::options().read(true).custom_flags(libc::O_EXCL | libc::O_NONBLOCK).open(&node);
    let busy =
        exclusive.as_ref().is_err_and(|e| e.raw_os_error() == Some(Errno::EBUSY as libc::c_int));
    let exclusive = if busy { None } else { Some(exclusive?) };
    if let Some(why) = machine.user_of_disk(disk)? {
        return Ok(Err(why));
    }
    Ok(exclusive.map(|file| Free { _exclusive: file }).ok_or_else(|| {
        format!(
            "{} is in use by something that cannot be seen from here, a mount in another namespace perhaps (end it first)",
            node.display()
        )
    }))
}

/// Returns the process that drives the device without the kernel, as far as `/proc` shows it.
pub fn driven_by(machine: &Machine, address: PciAddress) -> io::Result<Option<String>> {
    let sysfs = Sysfs::at(&machine.sysfs);
    let mut ways = vec![sysfs.config(address)];
    ways.extend((0..6).map(|bar| sysfs.resource(address, bar)));
    // `/proc` shows the paths with all links resolved.
    let mut ways: Vec<_> = ways.iter().filter_map(|path| path.canonicalize().ok()).collect();
    ways.extend(sysfs.uio(address)?.map(|uio| machine.node(&uio)));
    ways.extend(
        sysfs.iommu_group(address)?.map(|group| machine.dev.join("vfio").join(group.to_string())),
    );
    let user = machine.process_with(&ways)?;
    Ok(user.map(|(process, way)| {
        format!("{process} drives {address} through {} (end it first)", way.display())
    }))
}
