//! Checks that a ring's path still names it: files are replaced, removed and cut under running
//! programs.

use super::open::block_shape;
use super::users::Machine;
use super::{DeviceError, Operation, RingDevice, shown};
use nix::sys::stat::{SFlag, fstat};
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The longest time between two checks of the path of a ring that is in use.
const LOOK: Duration = Duration::from_secs(1);

/// How an open ring and its path have parted. It is the source of a [`DeviceError`]: see
/// [`Displaced::of`].
///
/// ```
/// use shared_block_ring::device::Displaced;
/// use shared_block_ring::{OpenOptions, RingDevice};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
///
/// let device = OpenOptions::default().open(&path)?;
/// device.check_presence()?;
/// std::fs::remove_file(&path)?;
/// let error = device.check_presence().unwrap_err();
/// assert_eq!(Displaced::of(&error), Some(&Displaced::Removed));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Displaced {
    /// The file has no name any more.
    #[error("its file was removed while it was in use")]
    Removed,
    /// The path names something else.
    #[error("its path names something else now{}", place(now.as_ref()))]
    Replaced {
        /// The file's name now, where `/proc` can tell.
        now: Option<PathBuf>,
    },
    /// The path names nothing, and the file has another name.
    #[error("it was moved away while it was in use{}", place(now.as_ref()))]
    Moved {
        /// The file's name now, where `/proc` can tell.
        now: Option<PathBuf>,
    },
    /// The file or device is larger or smaller than when it was opened.
    #[error("its size changed from {from} to {to} bytes while it was in use")]
    Resized {
        /// Bytes when it was opened.
        from: u64,
        /// Bytes now.
        to: u64,
    },
    /// Sector 0 is not what it was when the ring was opened: something else was written over it.
    #[error(
        "its content was overwritten while it was in use: sector 0 holds {} now",
        if *is_ring { "another ring" } else { "no ring" }
    )]
    Overwritten {
        /// Whether sector 0 has the signature of a ring.
        is_ring: bool,
    },
    /// The file that a loop device shows ends before the loop device does.
    #[error(
        "the file behind it, {}, was truncated to {bytes} bytes while it was in use",
        shown(path)
    )]
    Cut {
        /// The file.
        path: PathBuf,
        /// Bytes of the file now.
        bytes: u64,
    },
    /// A backend came back with another ring.
    #[error("another ring is served at its socket now")]
    AnotherRing,
}

fn place(now: Option<&PathBuf>) -> String {
    now.map(|path| format!(" (the ring that was opened is {})", shown(path))).unwrap_or_default()
}

impl Displaced {
    /// Returns what has happened to the ring, if `error` reports that.
    pub fn of(error: &DeviceError) -> Option<&Self> {
        error.source.get_ref()?.downcast_ref()
    }

    pub(crate) fn error(self, name: &str) -> DeviceError {
        DeviceError::new(name, Operation::Continue, self)
    }
}

impl From<Displaced> for io::Error {
    fn from(displaced: Displaced) -> Self {
        Self::new(ErrorKind::StaleNetworkFileHandle, displaced)
    }
}

/// The path that a file or block device was opened by, and the file's metadata then.
#[derive(Debug)]
pub(super) struct Origin {
    path: PathBuf,
    metadata: Metadata,
    /// Bytes of the file or block device.
    bytes: u64,
    /// The file that the device shows, if it is a loop device.
    backing: Option<Backing>,
}

/// The regular file that a loop device shows.
#[derive(Debug)]
struct Backing {
    path: PathBuf,
    /// Number of the file system, and of the inode.
    file: (u64, u64),
    /// The byte behind the last one that the loop device shows.
    end: u64,
}

impl Backing {
    /// The file of the loop device with that number and size; `None` for other devices, and where
    /// the file cannot be seen from here, or ends before the loop device does already.
    fn of(number: u64, bytes: u64) -> Option<Self> {
        let (path, offset) = Machine::default().backing_file(number)?;
        let about = fs::metadata(&path).ok().filter(Metadata::is_file)?;
        let end = offset.checked_add(bytes).filter(|end| *end <= about.len())?;
        Some(Self { path, file: (about.dev(), about.ino()), end })
    }

    fn compare(&self) -> Result<(), Displaced> {
        let about = fs::metadata(&self.path).ok();
        let about = about.filter(|about| (about.dev(), about.ino()) == self.file);
        match about.map(|about| about.len()).filter(|bytes| *bytes < self.end) {
            Some(bytes) => Err(Displaced::Cut { path: self.path.clone(), bytes }),
            None => Ok(()),
        }
    }
}

impl Origin {
    /// The origin of a ring at `path`, which has that `metadata` and so many `bytes`.
    pub fn new(path: &Path, metadata: &Metadata, bytes: u64) -> io::Result<Self> {
        let is_block = metadata.file_type().is_block_device();
        let backing = is_block.then(|| Backing::of(metadata.rdev(), bytes)).flatten();
        // The process may go to another folder.
        let path = std::path::absolute(path)?;
        Ok(Self { path, metadata: metadata.clone(), bytes, backing })
    }

    /// Compares the size of `file` with what it was when it was opened. A size that cannot be seen
    /// counts as unchanged.
    pub fn compare_size(&self, file: &File) -> Result<(), Displaced> {
        let now = bytes_of(file).unwrap_or(self.bytes);
        unchanged_size(self.bytes, now)?;
        self.backing.as_ref().map_or(Ok(()), Backing::compare)
    }

    /// Compares `file`, which was opened by this path, with what the path names now. What cannot be
    /// seen counts as unchanged.
    pub fn compare(&self, file: &File) -> Result<(), Displaced> {
        if self.metadata.file_type().is_block_device() {
            self.compare_path(file, |found| {
                found.file_type().is_block_device() && found.rdev() == self.metadata.rdev()
            })?;
            return self.compare_size(file);
        }
        let Ok(now) = file.metadata() else { return Ok(()) };
        if now.nlink() == 0 && self.metadata.nlink() > 0 {
            return Err(Displaced::Removed);
        }
        let same = |found: &Metadata| (found.dev(), found.ino()) == (now.dev(), now.ino());
        self.compare_path(file, same)?;
        self.compare_size(file)
    }

    fn compare_path(&self, file: &File, same: impl Fn(&Metadata) -> bool) -> Result<(), Displaced> {
        let now = || fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        match fs::metadata(&self.path) {
            Ok(found) if same(&found) => Ok(()),
            Ok(_) => Err(Displaced::Replaced { now: now() }),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
                if self.metadata.nlink() == 0 {
                    return Ok(());
                }
                Err(if self.metadata.file_type().is_block_device() {
                    Displaced::Removed
                } else {
                    Displaced::Moved { now: now() }
                })
            }
            // A folder that may not be searched any more, a server that does not answer.
            Err(_) => Ok(()),
        }
    }
}

/// Returns the size of a regular file or block device.
pub(super) fn bytes_of(file: impl AsFd) -> io::Result<u64> {
    let about = fstat(&file)?;
    if SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT == SFlag::S_IFBLK {
        return Ok(block_shape(file.as_fd())?.1);
    }
    u64::try_from(about.st_size).map_err(io::Error::other)
}

/// Whether a file is as large as it was.
pub(super) fn unchanged_size(from: u64, to: u64) -> Result<(), Displaced> {
    if from == to { Ok(()) } else { Err(Displaced::Resized { from, to }) }
}

/// A check of a ring's path once a second: [`look`](Self::look) costs a clock reading, and system
/// calls when the check is due.
#[derive(Debug)]
pub struct Lookout {
    due: Instant,
}

impl Default for Lookout {
    fn default() -> Self {
        Self { due: Instant::now() + LOOK }
    }
}

impl Lookout {
    /// Returns the time of the next check.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Returns whether a look is due. If it is, the caller makes it, and the next one is due a
    /// second later.
    pub fn is_due(&mut self) -> bool {
        let now = Instant::now();
        let is_due = now >= self.due;
        if is_due {
            self.due = now + LOOK;
        }
        is_due
    }

    /// Checks the device if that is due, and returns whether it did: see
    /// [`RingDevice::check_presence`].
    ///
    /// # Errors
    /// Those of the check.
    pub fn look<D: RingDevice + ?Sized>(&mut self, device: &D) -> Result<bool, DeviceError> {
        if !self.is_due() {
            return Ok(false);
        }
        device.check_presence().map(|()| true)
    }
}
