//! Making a ring.

use crate::device::{AlignedBuf, BlockDevice, DeviceError};
use crate::error::Result;
use crate::format::{Identity, PointerSector, SIGNATURE, Side, encode_sector0};
use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, fallocate};
use nix::unistd::linkat;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How to make a ring.
#[derive(Debug, Clone, Copy, Default)]
pub struct CreateOptions {
    /// Without identity, byte for byte as the OCaml library does it.
    pub plain: bool,
}

/// What [`create`] found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// An empty ring is there now.
    New,
    /// A ring was there already and is untouched.
    Existed,
}

/// Makes an empty ring, unless one is there already.
///
/// The signature is written last: a crash in between leaves a device that is not a ring, never half of one.
pub fn create<D: BlockDevice + ?Sized>(device: &D, options: CreateOptions) -> Result<Created> {
    let geometry = device.geometry();
    let mut sector = AlignedBuf::zeroed(geometry.sector_size().bytes());
    device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
    if sector.starts_with(SIGNATURE) {
        // Whoever wrote it may have died before it was durable.
        device.flush()?;
        return Ok(Created::Existed);
    }
    for side in [Side::Producer, Side::Consumer] {
        sector.fill(0);
        PointerSector::START.encode(side, None, &mut sector);
        device.write(side.sector(), &[IoSlice::new(&sector)])?;
    }
    device.flush()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let identity = Identity {
        geometry,
        uuid: Uuid::new_v4(),
        // Nanoseconds since 1970 fit 64 bits until the year 2554.
        created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
    };
    encode_sector0(&mut sector, (!options.plain).then_some(&identity));
    device.write(0, &[IoSlice::new(&sector)])?;
    device.flush()?;
    Ok(Created::New)
}

/// Sectors looked at in one go.
const SCAN_SECTORS: u64 = 2048;

/// A larger device is looked at where file systems, partition tables and volume managers keep their marks: its first and last MiB.
const WHOLE_SCAN: u64 = 1 << 30;

/// The first byte of a device that is not zero. What a [`create`] leaves that was cut off before its end counts as zeros: it
/// can be begun again.
pub fn first_used<D: BlockDevice + ?Sized>(
    device: &D,
) -> std::result::Result<Option<u64>, DeviceError> {
    let geometry = device.geometry();
    let whole = geometry.total_bytes() <= WHOLE_SCAN;
    let last = geometry.sectors().saturating_sub(SCAN_SECTORS);
    let size = geometry.sector_size().bytes();
    let mut at = 0;
    while at < geometry.sectors() {
        let sectors = SCAN_SECTORS.min(geometry.sectors() - at);
        let mut chunk = AlignedBuf::zeroed(usize::try_from(sectors).unwrap_or(0) * size);
        device.read(at, &mut [IoSliceMut::new(&mut chunk)])?;
        if at == 0 {
            overlook_pointers(&mut chunk, size);
        }
        if let Some(byte) = chunk.iter().position(|&byte| byte != 0) {
            return Ok(Some(at * size as u64 + byte as u64));
        }
        at += sectors;
        if !whole && at < last {
            at = last;
        }
    }
    Ok(None)
}

/// Blanks the pointer sectors of an empty ring that has no signature yet.
fn overlook_pointers(start: &mut [u8], size: usize) {
    let mut expected = vec![0; size];
    for (side, index) in [(Side::Producer, 1), (Side::Consumer, 2)] {
        expected.fill(0);
        PointerSector::START.encode(side, None, &mut expected);
        let sector = &mut start[index * size..][..size];
        if *sector == *expected {
            sector.fill(0);
        }
    }
}

/// Makes a new file of `bytes` zero bytes for a ring, for this user only. Whoever finds the file finds all of it, and it is
/// there after a power loss.
///
/// All of it is allocated: a full disk must show now, not as an item that cannot be stored later (in a mapping, that would be
/// a SIGBUS).
pub fn make_file(path: &Path, bytes: u64) -> io::Result<()> {
    // It gets its name last: a death before that leaves nothing.
    let unnamed =
        File::options().write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder(path));
    let Ok(file) = unnamed else { return make_file_in_place(path, bytes) };
    allocate(&file, bytes)?;
    file.sync_all()?;
    let here = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(AT_FDCWD, here.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?;
    sync_name(path)
}

/// Where the file system has no files without a name.
fn make_file_in_place(path: &Path, bytes: u64) -> io::Result<()> {
    let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let made = allocate(&file, bytes).and_then(|()| file.sync_all()).and_then(|()| sync_name(path));
    made.inspect_err(|_| {
        // Ours, and of no use to anybody.
        drop(std::fs::remove_file(path));
    })
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the name of a new file durable: syncing the file itself does not promise that.
pub fn sync_name(path: &Path) -> io::Result<()> {
    File::open(folder(path))?.sync_all()
}

/// Allocates the first `bytes` of a file, and keeps what is in them.
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    let len = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    Ok(fallocate(file, FallocateFlags::empty(), 0, len)?)
}

/// Reads a number of bytes: `65536`, `512K`, `8M` or `1G`, the letters for powers of 1024.
pub fn parse_size(text: &str) -> std::result::Result<u64, String> {
    let (digits, unit) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 1 << 10),
        Some(b'M') => (&text[..text.len() - 1], 1 << 20),
        Some(b'G') => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    bytes
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(|| "not a size such as 65536, 512K, 8M or 1G".to_owned())
}
