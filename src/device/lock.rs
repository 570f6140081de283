//! Advisory locks that end with their owner: one producer and one consumer per ring on a host.

use super::users::Machine;
use super::{AlignedBuf, DeviceError, Operation, RingDevice};
use crate::format::{Geometry, Side};
use crate::wait::Pauses;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::fstat;
use std::fs::{self, File};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest time that a killed process takes to end once nothing keeps it.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// The longest time that another process may take for an edit of a pointer sector: one read and one
/// write, on a slow disk, too.
pub const EDIT_PATIENCE: Duration = Duration::from_secs(5);

/// The byte of the device that a lock is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LockRange {
    /// The role of producer or consumer, held while it is attached: the first byte of its pointer
    /// sector.
    Role(Side),
    /// An edit (read and write) of a pointer sector: the second byte.
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

/// A lock that is held. It ends when this is dropped, or with the process.
///
/// ```
/// use shared_block_ring::device::{LockRange, RangeLock};
/// use shared_block_ring::format::Side;
/// use shared_block_ring::{Error, OpenOptions, Producer};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
/// # shared_block_ring::create(&OpenOptions::default().open(&path)?, Default::default())?;
///
/// let device = OpenOptions::default().open(&path)?;
/// let lock = RangeLock::try_acquire(&device, LockRange::Role(Side::Producer))?;
/// assert!(lock.is_some(), "the ring has no producer, and gets none before the lock is dropped");
/// let other = Producer::attach(OpenOptions::default().open(&path)?, "logs", "web-1");
/// assert!(matches!(other, Err(Error::RoleTaken { .. })));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "a lock that is dropped is given up"]
pub struct RangeLock<F: AsFd = OwnedFd> {
    file: Option<F>,
    byte: i64,
    /// Dropped after the lock.
    holder: Option<Holder>,
    /// The file beneath a loop device, with the same lock.
    beneath: Option<File>,
}

/// The roles that handles of this process hold. The kernel grants a lock again to the open file
/// description that has it: two handles on one shared device would both be the producer.
static HOLDERS: Mutex<Vec<Place>> = Mutex::new(Vec::new());

/// A device's descriptor, the device and inode number of its file, and a byte of it.
type Place = (RawFd, u64, u64, i64);

/// An entry of [`HOLDERS`].
#[derive(Debug)]
struct Holder(Place);

impl Holder {
    /// Adds an entry; `None` when there is one for the same byte of the same open device.
    fn new(file: BorrowedFd<'_>, byte: i64) -> io::Result<Option<Self>> {
        let about = fstat(file)?;
        let place = (file.as_raw_fd(), about.st_dev, about.st_ino, byte);
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        if holders.contains(&place) {
            return Ok(None);
        }
        holders.push(place);
        Ok(Some(Self(place)))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut holders = HOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        holders.retain(|place| *place != self.0);
    }
}

impl<'a> RangeLock<BorrowedFd<'a>> {
    /// Waits for the lock, at most [`EDIT_PATIENCE`].
    ///
    /// # Errors
    /// [`TimedOut`](io::ErrorKind::TimedOut) if another process keeps it longer: the message names
    /// that process, if this one may see it.
    pub fn acquire<D: RingDevice + ?Sized>(
        device: &'a D,
        range: LockRange,
    ) -> Result<Self, DeviceError> {
        let byte = range.byte(device.geometry().sector_size().get());
        let Some(file) = device.lock_file() else { return Ok(Self::none(byte)) };
        let (begun, mut pauses) = (Instant::now(), Pauses::default());
        loop {
            if let Some(lock) = Self::hold(file, byte).map_err(|e| failed(device, e))? {
                return Ok(lock);
            }
            if begun.elapsed() >= EDIT_PATIENCE {
                return Err(failed(device, kept(holder_at(file, byte))));
            }
            // Not F_OFD_SETLKW, which would wait for a stopped process for ever.
            std::thread::sleep(pauses.next_pause());
        }
    }
}

impl<'a> RangeLock<BorrowedFd<'a>> {
    /// Takes the lock without waiting, for a thread that serves others; `None` when another process
    /// has it.
    ///
    /// # Errors
    /// The operating system's.
    #[doc(hidden)] // for the region of `vhost-device-blockring`
    pub fn acquire_now<D: RingDevice + ?Sized>(
        device: &'a D,
        range: LockRange,
    ) -> Result<Option<Self>, DeviceError> {
        let byte = range.byte(device.geometry().sector_size().get());
        let Some(file) = device.lock_file() else { return Ok(Some(Self::none(byte))) };
        Self::hold(file, byte).map_err(|e| failed(device, e))
    }
}

impl RangeLock {
    /// Takes the lock without waiting; `None` when another open file description has it.
    ///
    /// A process that was killed ends, and with it its locks, only when its held read is answered,
    /// which any other request brings about. So on a device with held reads sector 0 is read until
    /// the lock is free, or its holder has proved to be alive.
    ///
    /// # Errors
    /// The operating system's, and [`Unsupported`](io::ErrorKind::Unsupported) on a file system
    /// without such locks.
    pub fn try_acquire<D: RingDevice + ?Sized>(
        device: &D,
        range: LockRange,
    ) -> Result<Option<Self>, DeviceError> {
        let byte = range.byte(device.geometry().sector_size().get());
        let Some(file) = device.lock_file() else { return Ok(Some(Self::none(byte))) };
        let Some(holder) = Holder::new(file, byte).map_err(|e| failed(device, e))? else {
            return Ok(None);
        };
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
        let Some(lock) = lock else { return Ok(None) };
        lock.held_by(holder).and_beneath().map_err(|e| failed(device, e))
    }

    /// Takes the same lock on the file that a loop device shows, against processes that open the
    /// file; `None` when one of them has it.
    ///
    /// A file that cannot be seen, opened or locked from here is left out.
    ///
    /// # Errors
    /// The operating system's.
    #[doc(hidden)] // for `vhost-device-blockring`, which opens the ring's file itself
    pub fn and_beneath(mut self) -> io::Result<Option<Self>> {
        let Some(device) = &self.file else { return Ok(Some(self)) };
        let Some((file, offset)) = Machine::default().beneath(fstat(device)?) else {
            return Ok(Some(self));
        };
        match RangeLock::hold(file, self.byte + offset) {
            // It ends with the file's description, which is this lock's alone.
            Ok(Some(mut lock)) => self.beneath = lock.file.take(),
            Ok(None) => return Ok(None),
            Err(_) => {}
        }
        Ok(Some(self))
    }

    /// Takes a role on the open file description of a ring's `file`; `None` when another one has
    /// it.
    ///
    /// # Errors
    /// The operating system's.
    #[doc(hidden)] // for `vhost-device-blockring`, which takes locks on behalf of a client
    pub fn try_role(
        file: BorrowedFd<'_>,
        geometry: Geometry,
        side: Side,
    ) -> io::Result<Option<Self>> {
        Self::hold_duplicate(file, LockRange::Role(side).byte(geometry.sector_size().get()))
    }

    fn held_by(mut self, holder: Holder) -> Self {
        self.holder = Some(holder);
        self
    }

    /// Leaves the lock to the open file description, and so to every process that gets a descriptor
    /// of it.
    #[doc(hidden)] // as `try_role`
    pub fn leave(mut self) {
        self.file = None;
    }

    fn hold_duplicate(file: BorrowedFd<'_>, byte: i64) -> io::Result<Option<Self>> {
        // A duplicate shares the open file description, which is what owns the lock.
        Self::hold(file.try_clone_to_owned()?, byte)
    }
}

impl<F: AsFd> RangeLock<F> {
    /// Makes the lock of a device that no other handle can open.
    fn none(byte: i64) -> Self {
        Self { file: None, byte, holder: None, beneath: None }
    }

    fn hold(file: F, byte: i64) -> io::Result<Option<Self>> {
        loop {
            let lock = flock(byte, libc::F_WRLCK);
            match fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&lock)) {
                Ok(_) => {
                    return Ok(Some(Self { file: Some(file), byte, holder: None, beneath: None }));
                }
                Err(Errno::EAGAIN | Errno::EACCES) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl<F: AsFd> Drop for RangeLock<F> {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // Unlocking a byte that is locked cannot fail; if it did, closing the description would
            // end the lock all the same.
            let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&flock(self.byte, libc::F_UNLCK)));
        }
    }
}

/// Gives back a role's lock that another process took on this open file description.
pub(super) fn release(file: BorrowedFd<'_>, geometry: Geometry, side: Side) {
    let byte = LockRange::Role(side).byte(geometry.sector_size().get());
    // It cannot fail on a byte that is locked, and does nothing on any other.
    let _ = fcntl(file, FcntlArg::F_OFD_SETLK(&flock(byte, libc::F_UNLCK)));
}

/// Returns the process that has the role `side` of the ring on `device`, as far as `/proc/*/fdinfo`
/// lets this user see.
pub fn holder<D: RingDevice + ?Sized>(device: &D, side: Side) -> Option<i32> {
    holder_of(device.lock_file()?, device.geometry(), side)
}

/// Returns the same for a ring of that shape in `file`.
pub fn holder_of(file: BorrowedFd<'_>, geometry: Geometry, side: Side) -> Option<i32> {
    holder_at(file, LockRange::Role(side).byte(geometry.sector_size().get()))
}

/// Returns whether another open file description than `file` has the role `side` of a ring of that
/// shape in this file. Unlike [`holder_of`] it searches no processes, and cannot name one.
///
/// # Errors
/// The operating system's.
pub fn is_role_held(file: BorrowedFd<'_>, geometry: Geometry, side: Side) -> io::Result<bool> {
    let byte = LockRange::Role(side).byte(geometry.sector_size().get());
    let mut found = flock(byte, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

fn holder_at(file: BorrowedFd<'_>, byte: i64) -> Option<i32> {
    let about = fstat(file).ok()?;
    holder_of_inode(about.st_ino, byte).or_else(|| {
        let (file, offset) = Machine::default().beneath(about)?;
        holder_of_inode(fstat(file).ok()?.st_ino, byte + offset)
    })
}

fn holder_of_inode(inode: u64, byte: i64) -> Option<i32> {
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

/// Returns whether a line of fdinfo is a lock on that byte: `lock: 1: OFDLCK ADVISORY WRITE -1
/// 08:02:1234 512 512`.
fn locks(line: &str, inode: u64, byte: i64) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    matches!(words[..], ["lock:", _, "OFDLCK", _, "WRITE", _, place, start, end]
        if place.rsplit(':').next() == Some(inode.to_string().as_str())
            && start == byte.to_string() && end == start)
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

fn kept(holder: Option<i32>) -> io::Error {
    let holder =
        holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"));
    let seconds = EDIT_PATIENCE.as_secs();
    let text = format!("{holder} has kept the lock for {seconds} s (is it stopped?)");
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn failed<D: RingDevice + ?Sized>(device: &D, source: io::Error) -> DeviceError {
    DeviceError::new(device.name(), Operation::Lock, explain(source))
}

/// Explains the error of a device that is open for reading only, and that of a file system without
/// such locks.
fn explain(error: io::Error) -> io::Error {
    const NONE: [Errno; 4] = [Errno::ENOLCK, Errno::EINVAL, Errno::EOPNOTSUPP, Errno::ENOSYS];
    if error.raw_os_error() == Some(Errno::EBADF as i32) {
        let text = "it is open for reading only, and the lock is for writing";
        return io::Error::new(io::ErrorKind::PermissionDenied, text);
    }
    if !error.raw_os_error().is_some_and(|raw| NONE.contains(&Errno::from_raw(raw))) {
        return error;
    }
    let text = format!(
        "its file system has no locks of open file descriptions, which keep producers and consumers apart: {error} \
         (keep the ring on another file system)"
    );
    io::Error::new(io::ErrorKind::Unsupported, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_system_without_locks_is_named_as_the_reason() {
        for errno in [Errno::ENOLCK, Errno::EINVAL, Errno::EOPNOTSUPP] {
            let text = explain(errno.into()).to_string();
            assert!(text.contains("no locks") && text.contains("os error"), "{text}");
        }
        assert_eq!(explain(Errno::EIO.into()).raw_os_error(), Some(libc::EIO));
    }
}
