//! Opening a file or a kernel block device, with checks that it is one and is not used otherwise.

use super::file::FileDevice;
use super::idle::IdleReads;
use super::presence::Origin;
use super::serial::refuse_ambiguous_link;
use super::users::Machine;
use super::{DeviceError, Operation, shown};
use crate::format::{FormatError, Geometry, SectorSize};
use crate::new_file::refuse_among_devices;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, fcntl, openat};
use nix::sys::stat::Mode;
use std::fs::{File, FileType, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

mod ioctl {
    nix::ioctl_read_bad!(blksszget, 0x1268, libc::c_int);
    nix::ioctl_read_bad!(blkroget, 0x125e, libc::c_int);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
}

/// The longest time for which another process may have the device to itself, to find out who uses
/// it.
const LOOKING: Duration = Duration::from_secs(1);

/// The pause between two attempts meanwhile.
const PAUSE: Duration = Duration::from_millis(10);

/// Options for opening a file or a kernel block device.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
/// use shared_block_ring::{BlockDevice, OpenOptions};
///
/// let device = OpenOptions::new().read_only(true).open(&path)?;
/// assert_eq!(device.geometry().total_bytes(), 1 << 20);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct OpenOptions {
    sector_size: Option<SectorSize>,
    read_only: bool,
    exclusive: bool,
}

impl OpenOptions {
    /// Makes the default options: for reading and writing, with sectors of 512 bytes in a file.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the sector size of a regular file. A block device has its own, and one that differs is
    /// an error.
    #[must_use]
    pub fn sector_size(mut self, size: SectorSize) -> Self {
        self.sector_size = Some(size);
        self
    }

    /// Sets whether the device is opened for reading only.
    #[must_use]
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Sets whether a block device is kept for this opening alone: meanwhile it cannot be mounted,
    /// claimed, built upon, or opened for a ring. A file that a loop device shows is refused.
    #[must_use]
    pub fn exclusive(mut self, exclusive: bool) -> Self {
        self.exclusive = exclusive;
        self
    }

    /// Opens `path`: a regular file through the page cache, a block device past it (`O_DIRECT`).
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) with the operating system's error. For writing, a
    /// block device that is mounted, a swap, part of a volume or held exclusively by a process is
    /// refused, and so is a regular file in a file system of device nodes.
    /// [`Error::Format`](crate::Error::Format) for a device of a shape that cannot hold a ring.
    pub fn open(self, path: impl AsRef<Path>) -> crate::Result<FileDevice> {
        let path = path.as_ref();
        let name = shown(path);
        let fail = |source: io::Error| DeviceError::new(&*name, Operation::Open, source);
        let opened = self.opened(path).map_err(fail)?;
        let Opened { file, metadata } = opened;
        let block = metadata.file_type().is_block_device();
        let (sector_size, bytes) = if block {
            let (size, bytes) = block_shape(file.as_fd()).map_err(fail)?;
            let size = SectorSize::new(size)?;
            if let Some(asked) = self.sector_size.filter(|&asked| asked != size) {
                let (asked, device) = (asked.get(), size.get());
                return Err(FormatError::DeviceSectorSize { asked, device }.into());
            }
            (size, bytes)
        } else {
            (self.sector_size.unwrap_or(SectorSize::DEFAULT), metadata.len())
        };
        let geometry = Geometry::new(sector_size, bytes / u64::from(sector_size.get()))?;
        let idle = block.then(|| IdleReads::new(&file, &name, sector_size)).transpose();
        let idle = idle.map_err(fail)?;
        let origin = Origin::new(path, &metadata, bytes).map_err(fail)?;
        Ok(FileDevice::new(file, name, geometry, idle, origin))
    }

    fn opened(self, path: &Path) -> io::Result<Opened> {
        if path.as_os_str().is_empty() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "the path is empty"));
        }
        refuse_ambiguous_link(path)?;
        let found = std::fs::metadata(path)?;
        if let Some(what) = unfit(found.file_type()) {
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        let block = found.file_type().is_block_device();
        // A disk is opened past the page cache, which works in blocks of 4 KiB: a buffered write of
        // sector 1 would write sector 2 back as it was, and a buffered reader would see stale
        // pointers.
        //
        // Anything else is opened without waiting: a pipe may have taken the file's place
        // meanwhile.
        let exclusive = block && self.exclusive && !self.read_only;
        let flags = match (block, exclusive) {
            (false, _) => libc::O_NONBLOCK | libc::O_NOCTTY,
            (true, false) => libc::O_DIRECT,
            (true, true) => libc::O_DIRECT | libc::O_EXCL,
        };
        let mut options = File::options();
        options.read(true).write(!self.read_only).custom_flags(flags);
        let file = patiently(|| options.open(path)).map_err(|e| busy(e, &found))?;
        let metadata = file.metadata()?;
        // Not by the inode's number: an overlay can give a file another one when it is opened for
        // writing.
        if metadata.file_type() != found.file_type() || metadata.rdev() != found.rdev() {
            return Err(io::Error::other("it was replaced while it was opened"));
        }
        if !block {
            fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
        }
        if !self.read_only {
            self.fit_for_writing(path, &file, &metadata)?;
        }
        Ok(Opened { file, metadata })
    }

    fn fit_for_writing(self, path: &Path, file: &File, metadata: &Metadata) -> io::Result<()> {
        if !metadata.file_type().is_block_device() {
            // By the file's own path, behind all links. A file without a name is no disk's name
            // misspelt.
            match path.canonicalize() {
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                name => refuse_among_devices(&name?)?,
            }
        } else if is_read_only(file)? {
            let text = "the device is read-only (blockdev --setrw makes it writable, if it can be)";
            return Err(io::Error::new(ErrorKind::ReadOnlyFilesystem, text));
        } else if !self.exclusive {
            // For a moment only: the other side of the ring may be on this machine, too.
            let flags = OFlag::O_RDONLY | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            patiently(|| Ok(openat(AT_FDCWD, path, flags, Mode::empty())?))
                .map_err(|e| busy(e, metadata))?;
        }
        if self.exclusive
            && let Some(node) = Machine::default().loop_over(metadata)
        {
            let node = node.display();
            let text = format!("in use: {node} shows it as a disk (losetup -d {node})");
            return Err(io::Error::new(ErrorKind::ResourceBusy, text));
        }
        Ok(())
    }
}

/// An open file or block device.
struct Opened {
    file: File,
    metadata: Metadata,
}

/// Returns why a file of that type cannot hold a ring.
fn unfit(kind: FileType) -> Option<&'static str> {
    const TAIL: &str = "neither a file nor a block device";
    if kind.is_file() || kind.is_block_device() {
        None
    } else if kind.is_dir() {
        Some("a folder is neither a file nor a block device")
    } else if kind.is_fifo() {
        Some("a named pipe is neither a file nor a block device")
    } else if kind.is_socket() {
        Some(
            "a socket is neither a file nor a block device (a backend's sockets are named unix:PATH, for consumers, and vhost-user:PATH)",
        )
    } else if kind.is_char_device() {
        Some("a character device is neither a file nor a block device")
    } else {
        Some(TAIL)
    }
}

/// Opens a device that another process may have to itself for a moment.
fn patiently<T>(open: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + LOOKING;
    loop {
        match open() {
            Err(e) if is_busy(&e) && Instant::now() < end => sleep(PAUSE),
            opened => return opened,
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EBUSY as i32)
}

/// Names the user of a block device that the kernel calls busy, and of a swap file that it calls a
/// text.
fn busy(error: io::Error, metadata: &Metadata) -> io::Error {
    if error.raw_os_error() == Some(Errno::ETXTBSY as i32) {
        return io::Error::new(error.kind(), "in use as a swap (swapoff), or as a program");
    }
    if !is_busy(&error) {
        return error;
    }
    let user = Machine::default().user_of_number(metadata.rdev()).ok().flatten();
    let user = user.unwrap_or_else(|| {
        "by something that cannot be seen from here, a mount in another namespace perhaps"
            .to_owned()
    });
    io::Error::new(ErrorKind::ResourceBusy, format!("in use: {user}"))
}

/// Returns the logical sector size and the bytes of a block device.
pub(super) fn block_shape(file: BorrowedFd<'_>) -> io::Result<(u32, u64)> {
    let (mut size, mut bytes) = (0, 0);
    // SAFETY: BLKSSZGET writes one int to the address it is given, which is that of a live int.
    unsafe { ioctl::blksszget(file.as_raw_fd(), &raw mut size) }?;
    // SAFETY: BLKGETSIZE64 writes one u64 to the address it is given; usize is 64 bits wide on the
    // targets that have it.
    unsafe { ioctl::blkgetsize64(file.as_raw_fd(), &raw mut bytes) }?;
    Ok((u32::try_from(size).unwrap_or(0), bytes as u64))
}

fn is_read_only(disk: &File) -> io::Result<bool> {
    let mut read_only = 0;
    // SAFETY: BLKROGET writes one int to the address it is given, which is that of a live int.
    unsafe { ioctl::blkroget(disk.as_raw_fd(), &raw mut read_only) }?;
    Ok(read_only != 0)
}

/// Writes back what the page cache has of a block device, and takes the errors of that, which the
/// kernel would report to the next flush: also an old error of a program that has ended.
///
/// The disk itself is not flushed. An error of its flush is not lost.
pub(super) fn forget_write_back_errors(disk: &File) {
    let all = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // An old error ends the first call before it writes anything.
    for _ in 0..2 {
        // SAFETY: the call gets no memory, only a descriptor that is open. A length of 0 means up
        // to the end.
        if unsafe { libc::sync_file_range(disk.as_raw_fd(), 0, 0, all) } == 0 {
            return;
        }
    }
}
