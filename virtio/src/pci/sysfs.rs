//! PCI devices as the kernel shows them in sysfs.

use super::PciAddress;
use ring_os::entry_names;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// A PCI device's vendor and device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ids {
    /// Number of the vendor.
    pub vendor: u16,
    /// Number of the device, by its vendor.
    pub device: u16,
}

impl Ids {
    /// Returns whether the device is a virtio block device, modern or transitional (virtio 1.3,
    /// 4.1.2 and 5.2.1).
    pub fn is_virtio_blk(self) -> bool {
        const VIRTIO: u16 = 0x1af4;
        const MODERN: u16 = 0x1042;
        const TRANSITIONAL: u16 = 0x1001;
        self.vendor == VIRTIO && matches!(self.device, MODERN | TRANSITIONAL)
    }
}

/// The tree below `/sys`.
///
/// ```
/// use virtio_blk_driver::pci::Sysfs;
///
/// let sysfs = Sysfs::default();
/// for address in sysfs.virtio_blk()? {
///     match sysfs.driver(address)? {
///         Some(driver) => println!("{address} is driven by {driver}"),
///         None => println!("{address} is free"),
///     }
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    /// Makes the tree of this machine.
    fn default() -> Self {
        Self::at("/sys")
    }
}

impl Sysfs {
    /// Makes the tree at another folder, for tests.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the tree's own folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the device's folder.
    pub fn device(&self, address: PciAddress) -> PathBuf {
        self.root.join(format!("bus/pci/devices/{address}"))
    }

    /// Returns whether there is such a device.
    pub fn exists(&self, address: PciAddress) -> bool {
        self.device(address).exists()
    }

    /// Returns the addresses of all virtio block devices.
    ///
    /// # Errors
    /// The operating system's.
    pub fn virtio_blk(&self) -> io::Result<Vec<PciAddress>> {
        let mut found: Vec<PciAddress> = entry_names(self.root.join("bus/pci/devices"))?
            .iter()
            .flat_map(|name| name.parse())
            .collect();
        // A device can go away meanwhile.
        found.retain(|&address| self.vendor_device(address).is_ok_and(Ids::is_virtio_blk));
        found.sort();
        Ok(found)
    }

    /// Returns the vendor and the device number.
    ///
    /// # Errors
    /// The operating system's.
    pub fn vendor_device(&self, address: PciAddress) -> io::Result<Ids> {
        let id = |name| {
            let number = self.number(address, name)?;
            u16::try_from(number).map_err(io::Error::other)
        };
        Ok(Ids { vendor: id("vendor")?, device: id("device")? })
    }

    /// Returns base class, subclass and programming interface, a byte each: 0x010000 is a disk
    /// controller of no kind of its own.
    ///
    /// # Errors
    /// The operating system's.
    pub fn class(&self, address: PciAddress) -> io::Result<u32> {
        self.number(address, "class")
    }

    /// Returns the name of the driver that has the device.
    ///
    /// # Errors
    /// The operating system's.
    pub fn driver(&self, address: PciAddress) -> io::Result<Option<String>> {
        self.link(address, "driver")
    }

    /// Returns the IOMMU group that the device is in, where there is an IOMMU.
    ///
    /// # Errors
    /// The operating system's.
    pub fn iommu_group(&self, address: PciAddress) -> io::Result<Option<u32>> {
        let group = self.link(address, "iommu_group")?;
        group.map(|group| group.parse().map_err(io::Error::other)).transpose()
    }

    /// Returns the only driver that the device may be given to, if one is set.
    ///
    /// # Errors
    /// The operating system's.
    pub fn driver_override(&self, address: PciAddress) -> io::Result<Option<String>> {
        let text = fs::read_to_string(self.device(address).join("driver_override"))?;
        // The kernel's word for none.
        Ok(Some(text.trim()).filter(|text| !matches!(*text, "" | "(null)")).map(str::to_owned))
    }

    /// Returns whether the kernel has such a driver for PCI devices, built in or loaded.
    pub fn has_driver(&self, name: &str) -> bool {
        self.root.join("bus/pci/drivers").join(name).exists()
    }

    /// Returns the file to map for a base address register, where that is memory.
    pub fn resource(&self, address: PciAddress, bar: u8) -> PathBuf {
        self.device(address).join(format!("resource{bar}"))
    }

    /// Returns the file with the configuration space.
    pub fn config(&self, address: PciAddress) -> PathBuf {
        self.device(address).join("config")
    }

    /// Returns the name (`uio0`) of the node in `/dev` that `uio_pci_generic` has made for the
    /// device.
    ///
    /// # Errors
    /// The operating system's.
    pub fn uio(&self, address: PciAddress) -> io::Result<Option<String>> {
        Ok(entry_names(self.device(address).join("uio"))?.pop())
    }

    /// Returns the names (`vda`) of the disks that the kernel's virtio driver has made of the
    /// device.
    ///
    /// # Errors
    /// The operating system's.
    pub fn disks(&self, address: PciAddress) -> io::Result<Vec<String>> {
        let mut disks = Vec::new();
        for name in entry_names(self.device(address))? {
            if name.starts_with("virtio") {
                disks.extend(entry_names(self.device(address).join(name).join("block"))?);
            }
        }
        disks.sort();
        Ok(disks)
    }

    fn number(&self, address: PciAddress, name: &str) -> io::Result<u32> {
        let text = fs::read_to_string(self.device(address).join(name))?;
        let digits = text.trim().trim_start_matches("0x");
        u32::from_str_radix(digits, 16).map_err(io::Error::other)
    }

    /// The last part of what a link names.
    fn link(&self, address: PciAddress, name: &str) -> io::Result<Option<String>> {
        match fs::read_link(self.device(address).join(name)) {
            Ok(target) => Ok(target.file_name().map(|name| name.to_string_lossy().into_owned())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Sysfs, PciAddress) {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(root.path());
        let address = "00:04.0".parse().unwrap();
        fs::create_dir_all(sysfs.device(address)).unwrap();
        (root, sysfs, address)
    }

    #[test]
    fn a_disk_of_the_kernel_s() {
        let (root, sysfs, address) = tree();
        let device = sysfs.device(address);
        for (name, text) in [
            ("vendor", "0x1af4\n"),
            ("device", "0x1042\n"),
            ("class", "0x010000\n"),
            ("driver_override", "(null)\n"),
        ] {
            fs::write(device.join(name), text).unwrap();
        }
        fs::create_dir_all(device.join("virtio1/block/vda/vda1")).unwrap();
        symlink("../../../bus/pci/drivers/virtio-pci", device.join("driver")).unwrap();
        symlink("../../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
        fs::create_dir_all(root.path().join("bus/pci/drivers/virtio-pci")).unwrap();

        assert!(sysfs.exists(address));
        let ids = sysfs.vendor_device(address).unwrap();
        assert_eq!(ids, Ids { vendor: 0x1af4, device: 0x1042 });
        assert!(ids.is_virtio_blk());
        assert_eq!(sysfs.virtio_blk().unwrap(), [address]);
        assert_eq!(sysfs.class(address).unwrap(), 0x01_0000);
        assert_eq!(sysfs.driver(address).unwrap().as_deref(), Some("virtio-pci"));
        assert_eq!(sysfs.driver_override(address).unwrap(), None);
        assert_eq!(sysfs.iommu_group(address).unwrap(), Some(7));
        assert_eq!(sysfs.disks(address).unwrap(), ["vda"]);
        assert!(sysfs.has_driver("virtio-pci") && !sysfs.has_driver("vfio-pci"));
        assert!(sysfs.resource(address, 4).ends_with("0000:00:04.0/resource4"));
        assert!(sysfs.config(address).ends_with("0000:00:04.0/config"));
    }

    #[test]
    fn a_device_that_nobody_drives_and_one_that_is_not_there() {
        let (_root, sysfs, address) = tree();
        fs::write(sysfs.device(address).join("driver_override"), "vfio-pci\n").unwrap();
        assert_eq!(sysfs.driver(address).unwrap(), None);
        assert_eq!(sysfs.driver_override(address).unwrap().as_deref(), Some("vfio-pci"));
        assert_eq!(sysfs.iommu_group(address).unwrap(), None);
        assert_eq!(sysfs.disks(address).unwrap(), [""; 0]);
        assert_eq!(sysfs.uio(address).unwrap(), None);
        fs::create_dir_all(sysfs.device(address).join("uio/uio0")).unwrap();
        assert_eq!(sysfs.uio(address).unwrap().as_deref(), Some("uio0"));
        assert!(!sysfs.exists("00:05.0".parse().unwrap()));
    }

    #[test]
    fn other_devices_of_virtio_are_no_disks() {
        for (vendor, device) in [(0x1af4, 0x1041), (0x1af4, 0x1000), (0x8086, 0x1042)] {
            assert!(!Ids { vendor, device }.is_virtio_blk());
        }
    }
}
