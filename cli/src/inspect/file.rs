//! The file of a picture: whole, or as it was before.

use super::super::address::Address;
use super::super::failure::{Failure, Outcome};
use shared_block_ring::RingDevice;
use shared_block_ring::device::shown;
use std::fs::{File, Permissions};
use std::io::{ErrorKind, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Refuses a path that a picture must not replace: that of the ring, or of anything but a file.
pub fn refuse<D: RingDevice>(path: &Path, address: &Address, device: &D) -> Outcome {
    let about = match std::fs::metadata(path) {
        Ok(about) => about,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Failure::io(shown(path))(e)),
    };
    if !about.is_file() {
        let text = format!("{}: it is no file, and is not replaced", shown(path));
        return Err(Failure::Refused(text));
    }
    let file = File::open(path).map_err(Failure::io(shown(path)))?;
    address.refuse_ring(device, file.as_fd(), "the file of the picture")
}

/// Writes a file in one step: readers see the old file, or the whole new one.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Outcome {
    let fail = || Failure::io(format!("cannot write {}", shown(path)));
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".picture-")
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(folder)
        .map_err(fail())?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(fail())?;
    file.persist(path).map_err(|e| fail()(e.error))?;
    Ok(())
}
