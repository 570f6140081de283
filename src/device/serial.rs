//! Finding a disk by the serial number that its hypervisor gave it, without udev.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The device node of the disk whose serial number is `serial`, by what sysfs says.
pub fn find_by_serial(serial: &str) -> io::Result<PathBuf> {
    find_in(Path::new("/sys/block"), serial).map(|name| Path::new("/dev").join(name))
}

fn find_in(sysfs: &Path, serial: &str) -> io::Result<String> {
    let mut seen = Vec::new();
    for entry in fs::read_dir(sysfs)?.flatten() {
        // virtio-blk has it on the disk, NVMe and SCSI below its device.
        let found = ["serial", "device/serial"]
            .iter()
            .find_map(|file| fs::read_to_string(entry.path().join(file)).ok());
        let Some(found) = found.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
        else {
            continue;
        };
        let name = entry.file_name().to_string_lossy().into_owned();
        if found == serial {
            return Ok(name);
        }
        seen.push(format!("{found} ({name})"));
    }
    let seen = if seen.is_empty() { "no disk has one".to_owned() } else { seen.join(", ") };
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!("no disk has that serial number; there are: {seen}"),
    ))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_disk_is_found_by_its_serial_and_a_missing_one_is_named_beside_what_there_is() {
        let sysfs = tempfile::tempdir().unwrap();
        for (disk, file, serial) in
            [("vda", "serial", "root"), ("nvme0n1", "device/serial", "ring ")]
        {
            let path = sysfs.path().join(disk).join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, serial).unwrap();
        }
        assert_eq!(find_in(sysfs.path(), "ring").unwrap(), "nvme0n1");
        let error = find_in(sysfs.path(), "other").unwrap_err().to_string();
        assert!(error.contains("root (vda)"), "{error}");
    }
}
