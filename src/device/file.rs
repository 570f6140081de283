//! Regular files and kernel block devices.

use super::idle::IdleReads;
use super::{AlignedBuf, BlockDevice, DeviceError, HeldReads};
use crate::error::Result as RingResult;
use crate::format::{FormatError, Geometry, SectorSize};
use nix::errno::Errno;
use nix::sys::uio::{preadv, pwritev};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

mod ioctl {
    nix::ioctl_read_bad!(blksszget, 0x1268, libc::c_int);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, usize);
}

/// How to open a file or a kernel block device.
#[derive(Debug, Clone, Copy, Default)]
pub struct OpenOptions {
    sector_size: Option<SectorSize>,
    read_only: bool,
}

impl OpenOptions {
    /// For a regular file (a block device is asked for its own). 512 unless told.
    #[must_use]
    pub fn sector_size(mut self, size: SectorSize) -> Self {
        self.sector_size = Some(size);
        self
    }

    /// Looks, never touches.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Opens `path`, by its type buffered (a file) or past the page cache (a block device).
    pub fn open(self, path: &Path) -> RingResult<FileDevice> {
        let name = path.display().to_string();
        let fail =
            |operation, source| DeviceError { name: name.clone(), operation, sector: None, source };
        let metadata = std::fs::metadata(path).map_err(|e| fail("open", e))?;
        let block = metadata.file_type().is_block_device();
        if !block && !metadata.is_file() {
            let what =
                io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device");
            return Err(fail("open", what).into());
        }
        // Past the page cache: it works in blocks of 4 KiB, so that a buffered write of sector 1 would write sector 2
        // back as it was, and a buffered reader would see stale pointers.
        let file = File::options()
            .read(true)
            .write(!self.read_only)
            .custom_flags(if block { libc::O_DIRECT } else { 0 })
            .open(path)
            .map_err(|e| fail("open", e))?;
        let (sector_size, bytes) = if block {
            let (size, bytes) = block_shape(&file).map_err(|e| fail("open", e))?;
            let size = SectorSize::new(size)?;
            if let Some(ring) = self.sector_size.filter(|&asked| asked != size) {
                return Err(
                    FormatError::WrongSectorSize { ring: ring.get(), device: size.get() }.into()
                );
            }
            (size, bytes)
        } else {
            (self.sector_size.unwrap_or(SectorSize::DEFAULT), metadata.len())
        };
        let geometry = Geometry::new(sector_size, bytes / u64::from(sector_size.get()))?;
        let idle = block.then(|| IdleReads::new(&file, &name, sector_size)).transpose();
        let idle = idle.map_err(|e| fail("open", e))?;
        Ok(FileDevice { file, name, geometry, idle })
    }
}

/// A regular file (through the page cache) or a kernel block device (`O_DIRECT`).
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    name: String,
    geometry: Geometry,
    /// Of a block device, which is open past the page cache.
    idle: Option<IdleReads>,
}

impl FileDevice {
    fn error(
        &self,
        operation: &'static str,
        sector: Option<u64>,
        source: io::Error,
    ) -> DeviceError {
        let source = if self.is_gone() { Errno::ENODEV.into() } else { source };
        DeviceError { name: self.name.clone(), operation, sector, source }
    }

    /// A disk that was unplugged has no bytes left. For the kernel it is full (ENOSPC), then, or ends before what is read.
    fn is_gone(&self) -> bool {
        self.is_direct() && block_shape(&self.file).is_ok_and(|(_, bytes)| bytes == 0)
    }

    fn is_direct(&self) -> bool {
        self.idle.is_some()
    }

    fn byte_of(&self, sector: u64) -> u64 {
        sector * u64::from(self.geometry.sector_size().get())
    }

    /// Whether the kernel takes these addresses as they are.
    fn takes(&self, mut addresses: impl Iterator<Item = (usize, usize)>) -> bool {
        let unit = self.geometry.sector_size().bytes();
        !self.is_direct() || addresses.all(|(address, len)| (address | len).is_multiple_of(unit))
    }
}

impl BlockDevice for FileDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let fail = |e| self.error("read", Some(first), e);
        if self.takes(bufs.iter().map(|b| (b.as_ptr().addr(), b.len()))) {
            return read_all(&self.file, self.byte_of(first), bufs).map_err(fail);
        }
        let mut aligned = AlignedBuf::zeroed(bufs.iter().map(|b| b.len()).sum());
        read_all(&self.file, self.byte_of(first), &mut [IoSliceMut::new(&mut aligned)])
            .map_err(fail)?;
        let mut rest = &aligned[..];
        for buf in bufs {
            let (now, later) = rest.split_at(buf.len());
            buf.copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let fail = |e| self.error("write", Some(first), e);
        if self.takes(bufs.iter().map(|b| (b.as_ptr().addr(), b.len()))) {
            return write_all(&self.file, self.byte_of(first), bufs).map_err(fail);
        }
        let mut aligned = AlignedBuf::zeroed(bufs.iter().map(|b| b.len()).sum());
        let mut at = 0;
        for buf in bufs {
            aligned[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        write_all(&self.file, self.byte_of(first), &[IoSlice::new(&aligned)]).map_err(fail)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.file.sync_data().map_err(|e| self.error("flush", None, e))
    }

    fn reads_are_free(&self) -> bool {
        !self.is_direct()
    }

    fn held_reads(&self) -> Option<&dyn HeldReads> {
        Some(self.idle.as_ref()?)
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

/// Logical sector size and bytes of a block device.
fn block_shape(file: &File) -> io::Result<(u32, u64)> {
    let (mut size, mut bytes) = (0, 0);
    // SAFETY: BLKSSZGET writes one int to the address it is given, which is that of a live int.
    unsafe { ioctl::blksszget(file.as_raw_fd(), &raw mut size) }?;
    // SAFETY: BLKGETSIZE64 writes one u64 to the address it is given; usize is 64 bits wide on the targets that have it.
    unsafe { ioctl::blkgetsize64(file.as_raw_fd(), &raw mut bytes) }?;
    Ok((u32::try_from(size).unwrap_or(0), bytes as u64))
}

fn offset(byte: u64) -> i64 {
    // Geometry bounds every byte of a device by i64::MAX.
    byte.cast_signed()
}

fn read_all(file: &File, mut at: u64, mut bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
    IoSliceMut::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        match preadv(file, bufs, offset(at)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                at += n as u64;
                IoSliceMut::advance_slices(&mut bufs, n);
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

fn write_all(file: &File, mut at: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
    let mut bufs: Vec<IoSlice<'_>> = bufs.iter().map(|b| IoSlice::new(b)).collect();
    let mut bufs = &mut bufs[..];
    IoSlice::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        match pwritev(file, bufs, offset(at)) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                at += n as u64;
                IoSlice::advance_slices(&mut bufs, n);
            }
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
