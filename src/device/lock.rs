//! Advisory locks that die with their owner: one producer and one consumer per ring on a host.

use super::{AlignedBuf, BlockDevice, DeviceError};
use crate::format::{Geometry, Side};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

/// How long a process that was killed may take to be gone, once nothing keeps it.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// Which byte of the device a lock is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockRange {
    /// Being the producer or the consumer, for as long as it is attached: the first byte of its pointer sector.
    Role(Side),
    /// Re-reading and writing a pointer sector: the byte behind.
    Edit(Side),
}

impl LockRange {
    fn byte(self, sector_size: u32) -> i64 {
        let (side, within) = match self {
            Self::Role(side) => (side, 0),
            Self::Edit(side) => (side, 1),
        };
        // Sector 2 of at most 65,536 bytes: far within an i64.
        (side.sector() * u64::from(sector_size)).cast_signed() + within
    }
}

/// A held lock. It ends when this is dropped, or with the process.
#[derive(Debug)]
pub struct RangeLock<F: AsFd = OwnedFd> {
    file: Option<F>,
    byte: i64,
}

impl<'a> RangeLock<BorrowedFd<'a>> {
    /// Waits for the lock, which is not to outlive the device.
    pub fn acquire<D: BlockDevice + ?Sized>(
        device: &'a D,
        range: LockRange,
    ) -> Result<Self, DeviceError> {
        let byte = range.byte(device.geometry().sector_size().get());
        let Some(file) = device.lock_file() else { return Ok(Self { file: None, byte }) };
        // A request that waits never answers "busy".
        Self::hold(file, byte, true)
            .and_then(|lock| lock.ok_or_else(|| io::ErrorKind::WouldBlock.into()))
            .map_err(|e| failed(device, e))
    }
}

impl RangeLock {
    /// `None` when another open file description has it.
    ///
    /// A process that was killed is not gone, with its locks, before a read of its that is held is answered. Any other request brings
    /// that about: so where reads may be held the sector in front is read until the lock is free, or it is clear that its holder lives.
    pub fn try_acquire<D: BlockDevice + ?Sized>(
        device: &D,
        range: LockRange,
    ) -> Result<Option<Self>, DeviceError> {
        let byte = range.byte(device.geometry().sector_size().get());
        let Some(file) = device.lock_file() else { return Ok(Some(Self { file: None, byte })) };
        let attempt = || Self::hold_duplicate(file, byte).map_err(|e| failed(device, e));
        let mut lock = attempt()?;
        if lock.is_none() && device.held_reads().is_some() {
            let clear = Instant::now() + LAST_BREATH;
            let mut sector = AlignedBuf::zeroed(device.geometry().sector_size().bytes());
            while lock.is_none() && Instant::now() < clear {
                device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
                lock = attempt()?;
            }
        }
        Ok(lock)
    }

    /// Takes a role on the open file description of a ring's `file`; `None` when another one has it.
    pub fn try_role(
        file: BorrowedFd<'_>,
        geometry: Geometry,
        side: Side,
    ) -> io::Result<Option<Self>> {
        Self::hold_duplicate(file, LockRange::Role(side).byte(geometry.sector_size().get()))
    }

    /// Leaves the lock to the open file description, and so to whoever gets a descriptor of it.
    pub fn leave(mut self) {
        self.file = None;
    }

    fn hold_duplicate(file: BorrowedFd<'_>, byte: i64) -> io::Result<Option<Self>> {
        // A duplicate shares the open file description, which is what owns the lock.
        Self::hold(file.try_clone_to_owned()?, byte, false)
    }
}

impl<F: AsFd> RangeLock<F> {
    fn hold(file: F, byte: i64, wait: bool) -> io::Result<Option<Self>> {
        loop {
            let lock = flock(byte, libc::F_WRLCK);
            let request =
                if wait { FcntlArg::F_OFD_SETLKW(&lock) } else { FcntlArg::F_OFD_SETLK(&lock) };
            match fcntl(file.as_fd(), request) {
                Ok(_) => return Ok(Some(Self { file: Some(file), byte })),
                Err(Errno::EAGAIN | Errno::EACCES) if !wait => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl<F: AsFd> Drop for RangeLock<F> {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // Unlocking a byte we hold cannot fail; if it did, closing the description would end the lock all the same.
            let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&flock(self.byte, libc::F_UNLCK)));
        }
    }
}

/// Gives back a role's lock that somebody else took on this open file description.
pub(super) fn release(file: BorrowedFd<'_>, geometry: Geometry, side: Side) {
    let byte = LockRange::Role(side).byte(geometry.sector_size().get());
    // Cannot fail on a byte that is ours, and does nothing on one that is not.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&flock(byte, libc::F_UNLCK)));
}

/// The process that holds `side` of the ring on `device`, as far as `/proc/*/fdinfo` lets this user see.
pub fn holder<D: BlockDevice + ?Sized>(device: &D, side: Side) -> Option<i32> {
    holder_of(device.lock_file()?, device.geometry(), side)
}

/// The same for a ring of that shape in `file`.
pub fn holder_of(file: BorrowedFd<'_>, geometry: Geometry, side: Side) -> Option<i32> {
    let byte = LockRange::Role(side).byte(geometry.sector_size().get());
    let inode = inode_of(file)?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let infos = fs::read_dir(entry.path().join("fdinfo")).ok()?;
        infos
            .flatten()
            .filter_map(|info| fs::read_to_string(info.path()).ok())
            .any(|info| info.lines().any(|line| locks(line, inode, byte)))
            .then_some(pid)
    })
}

/// Whether a line of fdinfo is a lock on that byte: `lock: 1: OFDLCK ADVISORY  WRITE -1 08:02:1234 512 512`.
fn locks(line: &str, inode: u64, byte: i64) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    matches!(words[..], ["lock:", _, "OFDLCK", _, "WRITE", _, place, start, end]
        if place.rsplit(':').next() == Some(inode.to_string().as_str())
            && start == byte.to_string() && end == start)
}

fn inode_of(file: BorrowedFd<'_>) -> Option<u64> {
    fs::metadata(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).ok().map(|meta| meta.ino())
}

fn flock(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        // The constants are small, the field is a short.
        l_type: i16::try_from(kind).unwrap_or_default(),
        l_whence: 0,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

fn failed<D: BlockDevice + ?Sized>(device: &D, source: io::Error) -> DeviceError {
    DeviceError { name: device.name().to_owned(), operation: "lock", sector: None, source }
}
