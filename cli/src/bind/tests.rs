//! Disks that `bind` refuses to take, on a machine made of files.
#![allow(clippy::unwrap_used)]

use super::held::{driven_by, free};
use super::steps::{State, VIRTIO};
use super::{Change, Machine, address, denial};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use virtio_blk_driver::pci::PciAddress;

const DEVICE: &str = "sys/bus/pci/devices/0000:00:04.0";

/// One with the disk `vda` that has a partition.
struct Scene {
    root: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self { root: tempfile::tempdir().unwrap() };
        for (path, text) in [
            ("dev/vda", ""),
            ("sys/block/vda/dev", "254:0\n"),
            ("sys/block/vda/vda1/dev", "254:1\n"),
            ("sys/block/vda/vda1/partition", "1\n"),
            ("proc/self/mountinfo", "22 1 0:21 / / rw - rootfs rootfs rw\n"),
            ("proc/swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
        ] {
            scene.write(path, text);
        }
        for (name, text) in [
            ("vendor", "0x1af4\n"),
            ("device", "0x1042\n"),
            ("driver_override", "(null)\n"),
            ("config", ""),
            ("virtio0/block/vda/size", "8\n"),
        ] {
            scene.write(&format!("{DEVICE}/{name}"), text);
        }
        symlink(format!("../../drivers/{VIRTIO}"), scene.path(DEVICE).join("driver")).unwrap();
        scene
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// A process with a file open.
    fn opens(&self, file: &Path) {
        self.write("proc/123/comm", "blockring\n");
        fs::create_dir_all(self.path("proc/123/fd")).unwrap();
        symlink(file, self.path("proc/123/fd/5")).unwrap();
    }

    fn machine(&self) -> Machine {
        Machine { sysfs: self.path("sys"), proc: self.path("proc"), dev: self.path("dev") }
    }

    fn change(&self, address: &str) -> Result<Change, String> {
        Change::of(self.machine(), address.parse().unwrap()).map_err(|e| e.to_string())
    }

    /// Asserts that the disk is not given away, for a reason with these words.
    fn assert_held(&self, words: &[&str]) {
        let why = free(&self.machine(), "vda").unwrap().unwrap_err();
        for words in words {
            assert!(why.contains(words), "{why:?} lacks {words:?}");
        }
    }

    fn node(&self, name: &str) -> String {
        self.path("dev").join(name).display().to_string()
    }
}

fn place() -> PciAddress {
    "00:04.0".parse().unwrap()
}

#[test]
fn a_disk_that_nobody_uses_is_free() {
    let scene = Scene::new();
    let change = scene.change("00:04.0").unwrap();
    assert_eq!(change.now, State::of_the_kernel());
    assert_eq!(change.free_disks(&State::for_processes(None)).unwrap().len(), 1);
    assert!(change.free_disks(&State::of_the_kernel()).unwrap().is_empty(), "it loses nothing");
    assert_eq!(driven_by(&scene.machine(), place()).unwrap(), None);
}

#[test]
fn a_mounted_disk_or_partition_is_not_given_away() {
    let scene = Scene::new();
    scene.write(
        "proc/self/mountinfo",
        "22 1 0:21 / / rw - rootfs rootfs rw\n23 22 254:1 / /mnt rw shared:1 - ext4 /dev/root rw\n",
    );
    scene.assert_held(&["mounted at /mnt", &format!("umount {}", scene.node("vda1"))]);
    // As btrfs is shown.
    let line = format!("23 22 0:40 / /mnt rw - btrfs {} rw\n", scene.node("vda"));
    scene.write("proc/self/mountinfo", &line);
    scene.assert_held(&[&format!("umount {}", scene.node("vda"))]);
}

#[test]
fn a_swap_is_not_given_away() {
    let scene = Scene::new();
    let swaps = format!("Filename Type\n{} partition 1 0 -2\n", scene.node("vda1"));
    scene.write("proc/swaps", &swaps);
    scene.assert_held(&[&format!("swapoff {}", scene.node("vda1"))]);
}

#[test]
fn what_something_is_built_upon_is_not_given_away() {
    for (holder, remedy) in [("dm-0", "dmsetup"), ("md0", "mdadm --stop"), ("bcache0", "first")] {
        let scene = Scene::new();
        scene.write(&format!("sys/block/vda/vda1/holders/{holder}/size"), "");
        scene.assert_held(&[&scene.node(holder), &scene.node("vda1"), remedy]);
    }
    let scene = Scene::new();
    scene.write("sys/block/loop3/loop/backing_file", &format!("{}\n", scene.node("vda")));
    scene.assert_held(&[&format!("losetup -d {}", scene.node("loop3"))]);
}

#[test]
fn what_a_process_has_open_is_not_given_away() {
    let scene = Scene::new();
    scene.opens(&scene.path("dev/vda1"));
    scene.assert_held(&["process 123 (blockring)", &scene.node("vda1")]);
}

#[test]
fn what_a_process_drives_is_not_taken_from_it() {
    for way in ["dev/uio2", "dev/vfio/7", "config", "resource4"] {
        let scene = Scene::new();
        let device = scene.path(DEVICE);
        fs::create_dir_all(device.join("uio/uio2")).unwrap();
        symlink("../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
        scene.write(&format!("{DEVICE}/resource4"), "");
        let in_dev = way.starts_with("dev/");
        scene.opens(&if in_dev { scene.path(way) } else { device.join(way) });
        let why = driven_by(&scene.machine(), place()).unwrap().unwrap();
        assert!(why.contains("process 123 (blockring) drives 0000:00:04.0"), "{why}");
        assert!(why.contains(way), "{why}");
    }
    let scene = Scene::new();
    let change = scene.change("00:04.0").unwrap();
    let _other = change.sysfs.claim(place()).unwrap().unwrap();
    let why = change.claim().unwrap_err().to_string();
    assert!(why.contains("another process"), "{why}");
}

#[test]
fn what_is_no_virtio_disk_is_refused_beside_what_there_is() {
    let scene = Scene::new();
    for (id, name) in [("vendor", "0x8086\n"), ("device", "0x29c0\n")] {
        scene.write(&format!("sys/bus/pci/devices/0000:00:00.0/{id}"), name);
    }
    for (address, words) in [("00:09.0", "no PCI device 0000:00:09.0"), ("00:00.0", "8086:29c0")] {
        let Err(why) = scene.change(address) else { panic!("{address} was accepted") };
        assert!(why.contains(words) && why.contains("virtio disks: 0000:00:04.0"), "{why}");
    }
}

#[test]
fn the_address_of_other_commands_is_taken_too() {
    assert_eq!(address("pci:0000:00:04.0"), Ok(place()));
    assert!(address("pci:").unwrap_err().to_string().contains("0000:00:04.0"));
}

#[test]
fn denial_names_the_reason_that_there_is() {
    use std::io::ErrorKind::{NotFound, PermissionDenied, ReadOnlyFilesystem};
    for (kind, is_read_only, is_root, words) in [
        (ReadOnlyFilesystem, true, true, "mounted read-only"),
        (PermissionDenied, true, true, "mounted read-only"),
        (PermissionDenied, true, false, "mounted read-only"),
        (PermissionDenied, false, true, "not even root"),
        (PermissionDenied, false, false, "sudo"),
    ] {
        let why = denial(kind, is_read_only, is_root).unwrap();
        assert!(why.contains(words), "{kind:?}: {why}");
    }
    assert_eq!(denial(NotFound, true, true), None);
}
