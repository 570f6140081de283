//! The search for a disk by the serial number that its hypervisor gave it, without udev.

use super::shown;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Returns the device node of the disk whose serial number is `serial`, according to sysfs.
///
/// # Errors
/// [`NotFound`](ErrorKind::NotFound) names the serial numbers that there are,
/// [`InvalidInput`](ErrorKind::InvalidInput) several disks with that one; the operating system's.
pub fn find_by_serial(serial: &str) -> io::Result<PathBuf> {
    find_in(Path::new("/sys/block"), Path::new("/dev"), serial)
}

/// A disk with a serial number, as sysfs shows it.
struct Disk {
    name: String,
    serial: String,
    /// Major and minor number, as in `254:0`.
    number: String,
}

fn find_in(sysfs: &Path, dev: &Path, serial: &str) -> io::Result<PathBuf> {
    if serial.is_empty() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "the serial number is empty"));
    }
    let disks = disks(sysfs)?;
    let mut found = disks.iter().filter(|disk| disk.serial == serial);
    let Some(disk) = found.next() else {
        let seen: Vec<_> = disks
            .iter()
            .map(|Disk { name, serial, .. }| format!("{} ({name})", shown(serial)))
            .collect();
        let seen = if seen.is_empty() { "no disk has one".to_owned() } else { seen.join(", ") };
        let text = format!("no disk has that serial number; there are: {seen}");
        return Err(io::Error::new(ErrorKind::NotFound, text));
    };
    let others: Vec<_> = found.map(|other| node(dev, other).display().to_string()).collect();
    if !others.is_empty() {
        return Err(ambiguous(&node(dev, disk), &others));
    }
    let node = node(dev, disk);
    is_node_of(&node, disk).map(|()| node)
}

fn ambiguous(first: &Path, others: &[String]) -> io::Error {
    let text = format!(
        "several disks have that serial number: {}, {} (name one by its path, or give them serial numbers of their own: \
         --serial of vhost-device-blockring, serial= of QEMU's own disks)",
        first.display(),
        others.join(", ")
    );
    io::Error::new(ErrorKind::InvalidInput, text)
}

/// Refuses a link of udev's that is named by a virtio disk's serial number alone while several
/// disks have that: it leads to the one that came last.
pub(super) fn refuse_ambiguous_link(path: &Path) -> io::Result<()> {
    let Ok(serial) = path.strip_prefix("/dev/disk/by-id") else { return Ok(()) };
    let Some(serial) = serial.to_str().and_then(|name| name.strip_prefix("virtio-")) else {
        return Ok(());
    };
    // Without sysfs no other disk is known.
    let disks = disks(Path::new("/sys/block")).unwrap_or_default();
    let mut nodes =
        disks.iter().filter(|disk| disk.serial == serial).map(|disk| node(Path::new("/dev"), disk));
    let (Some(first), others) =
        (nodes.next(), nodes.map(|node| node.display().to_string()).collect::<Vec<_>>())
    else {
        return Ok(());
    };
    if others.is_empty() { Ok(()) } else { Err(ambiguous(&first, &others)) }
}

fn disks(sysfs: &Path) -> io::Result<Vec<Disk>> {
    let entries = fs::read_dir(sysfs).map_err(|e| {
        let text = format!(
            "disks are found in {}: {e} (mount -t sysfs sysfs /sys, or name the disk by its path)",
            sysfs.display()
        );
        io::Error::new(e.kind(), text)
    })?;
    let mut disks = Vec::new();
    for entry in entries.flatten() {
        let read = |file: &str| {
            let bytes = fs::read(entry.path().join(file)).ok()?;
            Some(OsStr::from_bytes(bytes.trim_ascii()).to_string_lossy().into_owned())
        };
        // One of several paths to an NVMe disk has no node of its own.
        if read("hidden").is_some_and(|hidden| hidden == "1") {
            continue;
        }
        // virtio-blk has the file at the disk, NVMe and SCSI below its device.
        let serial = ["serial", "device/serial"].iter().find_map(|file| read(file));
        let Some(serial) = serial.filter(|serial| !serial.is_empty()) else { continue };
        let name = entry.file_name().to_string_lossy().into_owned();
        disks.push(Disk { name, serial, number: read("dev").unwrap_or_default() });
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

fn node(dev: &Path, disk: &Disk) -> PathBuf {
    // The kernel writes a slash in a device's name as an exclamation mark in sysfs.
    dev.join(disk.name.replace('!', "/"))
}

/// Refuses a node that is another device's, as an old `/dev` in a container can hold.
fn is_node_of(node: &Path, disk: &Disk) -> io::Result<()> {
    use nix::sys::stat::{major, minor};
    let found = fs::metadata(node).map_err(|e| {
        io::Error::new(
            e.kind(),
            format!("the disk is {}, and there is no such node: {e}", node.display()),
        )
    })?;
    let number = format!("{}:{}", major(found.rdev()), minor(found.rdev()));
    if found.file_type().is_block_device() && number == disk.number {
        return Ok(());
    }
    let text = format!(
        "the disk is {} with the number {}, and that node is something else",
        node.display(),
        disk.number
    );
    Err(io::Error::new(ErrorKind::InvalidInput, text))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Makes a sysfs with these disks: name, the file that has the serial number, the serial
    /// number.
    fn machine(disks: &[(&str, &str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (disk, file, serial) in disks {
            let path = root.path().join(disk).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, serial).unwrap();
        }
        root
    }

    fn find(sysfs: &tempfile::TempDir, serial: &str) -> String {
        find_in(sysfs.path(), Path::new("/nonexistent"), serial).unwrap_err().to_string()
    }

    #[test]
    fn disk_is_found_by_its_serial_and_a_missing_one_is_named_beside_what_there_is() {
        let sysfs = machine(&[("vda", "serial", "root"), ("nvme0n1", "device/serial", "ring ")]);
        assert!(find(&sysfs, "ring").contains("the disk is /nonexistent/nvme0n1"));
        let error = find(&sysfs, "other");
        assert!(error.contains("root (vda)"), "{error}");
        assert!(find(&sysfs, "").contains("empty"));
        let none = find_in(Path::new("/nonexistent"), Path::new("/dev"), "ring").unwrap_err();
        assert!(none.to_string().contains("mount -t sysfs"), "{none}");
    }

    #[test]
    fn two_disks_with_one_serial_are_refused_by_name() {
        let sysfs = machine(&[
            ("vdb", "serial", "ring"),
            ("vda", "serial", "root"),
            ("cciss!c0d0", "device/serial", "ring"),
        ]);
        let error = find(&sysfs, "ring");
        for words in ["/nonexistent/vdb", "/nonexistent/cciss/c0d0", "--serial"] {
            assert!(error.contains(words), "{error:?} lacks {words}");
        }
        assert!(!error.contains("vda"), "{error}");
    }

    #[test]
    fn second_path_to_one_disk_is_no_second_disk() {
        let sysfs = machine(&[
            ("nvme0n1", "device/serial", "ring"),
            ("nvme0c0n1", "device/serial", "ring"),
            ("nvme0c0n1", "hidden", "1"),
        ]);
        assert!(find(&sysfs, "ring").contains("the disk is /nonexistent/nvme0n1"));
    }

    #[test]
    fn node_of_another_device_is_refused() {
        let sysfs = machine(&[("null", "serial", "ring"), ("null", "dev", "254:0")]);
        let error = find_in(sysfs.path(), Path::new("/dev"), "ring").unwrap_err().to_string();
        assert!(error.contains("something else"), "{error}");
    }
}
