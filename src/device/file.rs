//! Regular files and kernel block devices.

use super::idle::IdleReads;
use super::open::{block_shape, forget_write_back_errors};
use super::presence::Origin;
use super::{
    AlignedBuf, BlockDevice, DeviceError, HeldReads, LockRange, Operation, RangeLock, RingDevice,
};
use crate::format::{FLAG_AT, Geometry, Side};
use nix::errno::Errno;
use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use nix::sys::uio::{preadv, pwritev};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest time for which an edit may start from a sector that was read before. Another instance
/// of this process, restored from a snapshot, may move the pointer meanwhile: an edit that reads the
/// sector finds that out.
const FRESH: Duration = Duration::from_millis(10);

/// A regular file (through the page cache) or a kernel block device (`O_DIRECT`).
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    name: String,
    geometry: Geometry,
    /// Held reads, of a block device, which is open past the page cache.
    idle: Option<IdleReads>,
    /// The path that the file was opened by.
    origin: Origin,
    /// Whether the device was flushed before.
    flushed: AtomicBool,
    /// The consumer's pointer sector of a regular file, as it was read together with the
    /// producer's, and when; `None` once an edit has used it.
    seen: Mutex<Option<(Vec<u8>, Instant)>>,
}

impl FileDevice {
    /// Makes the device of an open `file`, which was found at `origin`.
    pub(super) fn new(
        file: File,
        name: String,
        geometry: Geometry,
        idle: Option<IdleReads>,
        origin: Origin,
    ) -> Self {
        Self {
            file,
            name,
            geometry,
            idle,
            origin,
            flushed: AtomicBool::new(false),
            seen: Mutex::default(),
        }
    }

    fn error(&self, operation: Operation, source: io::Error) -> DeviceError {
        let source = if self.is_gone() {
            Errno::ENODEV.into()
        } else if let Err(displaced) = self.origin.compare_size(&self.file) {
            // What lies behind its new end cannot be read (an end of the file) or written (no space
            // left).
            displaced.into()
        } else {
            self.explain(source)
        };
        DeviceError::new(&*self.name, operation, source)
    }

    /// Explains the error of a file that cannot be written.
    fn explain(&self, error: io::Error) -> io::Error {
        let huge =
            || fstatfs(&self.file).is_ok_and(|about| about.filesystem_type() == HUGETLBFS_MAGIC);
        if error.raw_os_error() != Some(libc::EINVAL) || !huge() {
            return error;
        }
        let text = "a file on hugetlbfs can be mapped, and not written (vhost-device-blockring serves a ring in it; then name unix:PATH)";
        io::Error::new(io::ErrorKind::Unsupported, text)
    }

    /// Adds to the error of a block device's flush that another program may be the cause.
    fn with_suspects(&self, error: io::Error) -> io::Error {
        if !self.is_direct() || !matches!(error.raw_os_error(), Some(libc::EIO | libc::ENOSPC)) {
            return error;
        }
        let text = format!(
            "{error} (the disk has failed, or could not take what another program wrote to it through the page \
             cache, as dd does: the kernel tells everybody who has the disk open, and its log says which sector)"
        );
        io::Error::new(error.kind(), text)
    }

    /// Returns whether the disk was unplugged: it has no bytes left. The kernel reports it as full
    /// (ENOSPC) or as ending before what is read.
    fn is_gone(&self) -> bool {
        self.is_direct() && block_shape(self.file.as_fd()).is_ok_and(|(_, bytes)| bytes == 0)
    }

    fn is_direct(&self) -> bool {
        self.idle.is_some()
    }

    fn byte_of(&self, sector: u64) -> u64 {
        sector * u64::from(self.geometry.sector_size().get())
    }

    fn pointer_sector(&self, side: Side) -> Result<Vec<u8>, DeviceError> {
        let mut sector = vec![0; self.geometry.sector_size().bytes()];
        self.read(side.sector(), &mut [IoSliceMut::new(&mut sector)])?;
        Ok(sector)
    }

    /// Returns a pointer sector as [`read_pointer`](RingDevice::read_pointer) has just read it, for
    /// one edit.
    fn take_seen(&self, side: Side) -> Option<Vec<u8>> {
        if side != Side::Consumer {
            return None;
        }
        let (sector, read) = self.seen().take()?;
        (read.elapsed() < FRESH).then_some(sector)
    }

    fn seen(&self) -> MutexGuard<'_, Option<(Vec<u8>, Instant)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what differs between two contents of a pointer sector.
    fn write_changes(&self, side: Side, old: &[u8], new: &[u8]) -> Result<(), DeviceError> {
        let start = self.byte_of(side.sector());
        for piece in changes(old, new).into_iter().filter(|piece| !piece.is_empty()) {
            let at = start + piece.start as u64;
            write_all(&self.file, at, &[IoSlice::new(&new[piece])])
                .map_err(|e| self.error(Operation::Write, e).at_sector(side.sector()))?;
        }
        Ok(())
    }

    /// Returns whether the kernel takes buffers at these addresses, with these lengths.
    fn takes(&self, mut addresses: impl Iterator<Item = (usize, usize)>) -> bool {
        let unit = self.alignment();
        addresses.all(|(address, len)| (address | len).is_multiple_of(unit))
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
        let fail = |e| self.error(Operation::Read, e).at_sector(first);
        if first == Side::Consumer.sector() {
            // An edit after this read must not start from what was read before it.
            self.seen().take();
        }
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
        let fail = |e| self.error(Operation::Write, e).at_sector(first);
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
        // This handle writes past the page cache: what the cache could not write back is another
        // program's.
        if self.is_direct() && !self.flushed.swap(true, Ordering::Relaxed) {
            forget_write_back_errors(&self.file);
        }
        self.file.sync_data().map_err(|e| self.error(Operation::Flush, self.with_suspects(e)))
    }

    /// `O_DIRECT` takes multiples of a logical sector; the page cache takes any address.
    fn alignment(&self) -> usize {
        if self.is_direct() { self.geometry.sector_size().bytes() } else { 1 }
    }
}

impl RingDevice for FileDevice {
    fn reads_are_free(&self) -> bool {
        !self.is_direct()
    }

    fn held_reads(&self) -> Option<&dyn HeldReads> {
        Some(self.idle.as_ref()?)
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    /// Reads the consumer's sector of a file together with the producer's, in one call: a consumer
    /// that looks for items frees their space next, and need not read its sector again then.
    fn read_pointer(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        let is_whole = sector.len() == self.geometry.sector_size().bytes();
        if self.is_direct() || side != Side::Producer || !is_whole {
            return self.read(side.sector(), &mut [IoSliceMut::new(sector)]);
        }
        let mut other = vec![0; sector.len()];
        self.read(side.sector(), &mut [IoSliceMut::new(sector), IoSliceMut::new(&mut other)])?;
        *self.seen() = Some((other, Instant::now()));
        Ok(())
    }

    /// Writes only what changes in a file, and takes the lock only to change the flag. So the flag
    /// that another process sets stays, as does what a process stores that has the file mapped; and
    /// a process that may only read the file cannot hold anybody up by keeping the lock.
    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        if !self.is_direct() {
            let old = match self.take_seen(side) {
                Some(seen) => seen,
                None => self.pointer_sector(side)?,
            };
            let mut new = old.clone();
            edit(&mut new);
            if new[FLAG_AT] == old[FLAG_AT] {
                return self.write_changes(side, &old, &new);
            }
        }
        let _exclusive = RangeLock::acquire(self, LockRange::Edit(side))?;
        let old = self.pointer_sector(side)?;
        let mut new = AlignedBuf::zeroed(old.len());
        new.copy_from_slice(&old);
        edit(&mut new);
        if self.is_direct() {
            return self.write(side.sector(), &[IoSlice::new(&new)]);
        }
        self.write_changes(side, &old, &new)
    }

    fn check_presence(&self) -> Result<(), DeviceError> {
        if self.is_gone() {
            return Err(self.error(Operation::Continue, Errno::ENODEV.into()));
        }
        self.origin.compare(&self.file).map_err(|displaced| displaced.error(&self.name))
    }
}

/// Returns the ranges of a pointer sector to write, in this order: what comes with the position,
/// then the flag, then the position. A process that dies in between leaves the old position with
/// its slot, or the new one with its own.
fn changes(old: &[u8], new: &[u8]) -> [Range<usize>; 3] {
    let changed = |within: Range<usize>| {
        let differs = |&at: &usize| old[at] != new[at];
        let first = within.clone().find(differs).unwrap_or(within.start);
        first..within.rev().find(differs).map_or(first, |last| last + 1)
    };
    let position = if old[..FLAG_AT] == new[..FLAG_AT] { 0..0 } else { 0..FLAG_AT };
    [changed(FLAG_AT + 1..new.len()), changed(FLAG_AT..FLAG_AT + 1), position]
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
