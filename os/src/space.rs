//! The space of a file on its file system: all of it allocated before it is needed, and given back
//! where that was for nothing.

use crate::wait::Limits;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use nix::sys::statvfs::fstatvfs;
use nix::unistd::{Whence, geteuid, lseek64};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};

/// Bytes of zeros written at a time where a file system has no `fallocate`.
const ZEROS: usize = 1 << 20;

/// Bytes of zeros on their way to the disk at most. The flush that follows cannot be interrupted:
/// it has to be short.
const SYNCED: u64 = 64 << 20;

/// Bytes in a block, as `stat` counts what is allocated.
const BLOCK: u64 = 512;

/// Space that was allocated for a file. Given back when this is dropped, unless it was
/// [kept](Self::keep).
///
/// ```
/// use ring_os::Allocation;
/// use std::os::unix::fs::MetadataExt;
///
/// let file = tempfile::tempfile()?;
/// drop(Allocation::new(&file, 1 << 20)?); // what it was for has failed
/// assert_eq!(file.metadata()?.len(), 0);
/// Allocation::new(&file, 1 << 20)?.keep();
/// assert!(file.metadata()?.blocks() * 512 >= 1 << 20);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[must_use = "space that is not kept is given back"]
pub struct Allocation {
    file: Option<File>,
    /// Ranges of the file that had no space before.
    holes: Vec<Range<u64>>,
    /// Bytes of the file before.
    len: u64,
}

impl Allocation {
    /// Allocates the first `bytes` of a file, and keeps what is in them. On a file system that
    /// cannot allocate, zeros are written where the file has nothing.
    ///
    /// # Errors
    /// [`StorageFull`](io::ErrorKind::StorageFull) where the file system has too little room:
    /// nothing is taken then, so that others do not meet a full one meanwhile.
    pub fn new(file: &File, bytes: u64) -> io::Result<Self> {
        Self::within(file, bytes, &Limits::default())
    }

    /// Allocates like [`new`](Self::new), within limits: where they end the work, what was taken
    /// until then is given back.
    ///
    /// # Errors
    /// Those of [`Limits::check_now`], too.
    pub fn within(file: &File, bytes: u64, limits: &Limits<'_>) -> io::Result<Self> {
        let about = file.metadata()?;
        require_room(file, bytes.saturating_sub(about.blocks().saturating_mul(BLOCK)))?;
        let mut allocation = Self { file: None, holes: Vec::new(), len: about.len() };
        if about.blocks() * BLOCK < bytes {
            allocation.holes = holes(file, 0..bytes)?;
            allocation.file = Some(file.try_clone()?);
        }
        // On an error what was taken until then goes with the allocation.
        fill(file, bytes, &allocation.holes, limits)?;
        Ok(allocation)
    }

    /// The space stays allocated.
    pub fn keep(mut self) {
        self.file = None;
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let Some(file) = &self.file else { return };
        // Pages that were only read count as data until they have left the page cache.
        let _ = posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        // Another process may have written to the file meanwhile. Only ranges that are still holes,
        // or reserved and never written, are given back.
        let unused =
            self.holes.iter().flat_map(|hole| holes(file, hole.clone()).unwrap_or_default());
        for hole in unused {
            let (from, len) = (hole.start.cast_signed(), (hole.end - hole.start).cast_signed());
            let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            // Where that is not possible the file stays as large as it has become.
            let _ = fallocate(file, punch, from, len);
        }
        if file.metadata().is_ok_and(|about| about.len() > self.len) {
            let _ = file.set_len(self.len);
        }
    }
}

/// Allocates the first `bytes` of a file for good; see [`Allocation::new`].
///
/// # Errors
/// As [`Allocation::new`].
pub fn allocate(file: &File, bytes: u64) -> io::Result<()> {
    allocate_within(file, bytes, &Limits::default())
}

/// The same within limits; see [`Allocation::within`].
///
/// # Errors
/// As [`Allocation::within`].
pub fn allocate_within(file: &File, bytes: u64, limits: &Limits<'_>) -> io::Result<()> {
    Allocation::within(file, bytes, limits).map(Allocation::keep)
}

fn fill(file: &File, bytes: u64, holes: &[Range<u64>], limits: &Limits<'_>) -> io::Result<()> {
    let len = i64::try_from(bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
    loop {
        // A signal interrupts the call, and then asks to stop perhaps.
        limits.check_now()?;
        match fallocate(file, FallocateFlags::empty(), 0, len) {
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                return holes.iter().try_for_each(|hole| write_zeros(file, hole.clone(), limits));
            }
            done => return Ok(done?),
        }
    }
}

/// Compares what is needed with what the file system has left, where it says that.
fn require_room(file: &File, needed: u64) -> io::Result<()> {
    let about = fstatvfs(file)?;
    let free = if geteuid().is_root() { about.blocks_free() } else { about.blocks_available() };
    let free = free.saturating_mul(about.fragment_size());
    if about.blocks() == 0 || needed <= free {
        return Ok(());
    }
    let text = format!(
        "no space: {needed} bytes more are needed, the file system has {free} left (make room, or choose a smaller size)"
    );
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// Returns the holes within `range`, and what of it is behind the end of the file. Where holes
/// cannot be told from data there is none in front of the end.
fn holes(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let (mut at, mut found) = (range.start, Vec::new());
    while at < range.end {
        let hole = next(file, at, Whence::SeekHole)?.unwrap_or(at);
        if hole >= range.end {
            break;
        }
        let data = next(file, hole, Whence::SeekData)?.unwrap_or(range.end).min(range.end);
        found.push(hole..data);
        at = data;
    }
    Ok(found)
}

/// Returns where the next hole or the next data begins, `None` behind the end of the file.
fn next(file: &File, at: u64, what: Whence) -> io::Result<Option<u64>> {
    match lseek64(file, at.cast_signed(), what) {
        Ok(found) => Ok(Some(found.cast_unsigned())),
        Err(Errno::ENXIO) => Ok(None),
        Err(Errno::EINVAL) => {
            // No such question is answered here: everything up to the end of the file is data.
            let len = file.metadata()?.len();
            Ok(match what {
                Whence::SeekHole => Some(len.max(at)),
                _ => Some(at).filter(|&at| at < len),
            })
        }
        Err(e) => Err(e.into()),
    }
}

fn write_zeros(file: &File, hole: Range<u64>, limits: &Limits<'_>) -> io::Result<()> {
    let zeros = vec![0; ZEROS];
    let (mut at, mut synced) = (hole.start, hole.start);
    while at < hole.end {
        limits.check_now()?;
        let len = usize::try_from(hole.end - at).unwrap_or(ZEROS).min(ZEROS);
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
        if at - synced >= SYNCED {
            file.sync_data()?;
            synced = at;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::fd::AsFd;

    const MIB: u64 = 1 << 20;

    /// Data at 1 MiB, and holes around it.
    fn sparse() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * MIB).unwrap();
        file.write_all_at(&[7; 4096], MIB).unwrap();
        file.sync_all().unwrap();
        file
    }

    fn allocated(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * BLOCK
    }

    #[test]
    fn allocation_gives_back_what_it_took_and_no_data() {
        let file = sparse();
        let before = allocated(&file);
        let allocation = Allocation::new(&file, 6 * MIB).unwrap();
        assert!(allocated(&file) >= 6 * MIB);
        // By another process, meanwhile.
        file.write_all_at(&[8; 4096], 3 * MIB).unwrap();
        drop(allocation);
        assert!(allocated(&file) <= before + 64 * 1024, "{before} and {}", allocated(&file));
        assert_eq!(file.metadata().unwrap().len(), 4 * MIB);
        for (at, byte) in [(MIB, 7), (3 * MIB, 8)] {
            let mut bytes = [0; 4096];
            file.read_exact_at(&mut bytes, at).unwrap();
            assert_eq!(bytes, [byte; 4096]);
        }
    }

    #[test]
    fn allocation_that_is_kept_stays() {
        let file = sparse();
        allocate(&file, 4 * MIB).unwrap();
        assert!(allocated(&file) >= 4 * MIB);
        drop(Allocation::new(&file, 4 * MIB).unwrap());
        assert!(allocated(&file) >= 4 * MIB, "nothing was taken");
    }

    #[test]
    fn allocation_that_is_to_stop_takes_nothing() {
        let (stop, asked) = std::os::unix::net::UnixStream::pair().unwrap();
        drop(asked);
        let stop = [stop.as_fd()];
        let limits = Limits::default().or_on(&stop);
        let file = sparse();
        let before = allocated(&file);
        let error = Allocation::within(&file, 4 * MIB, &limits).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
        // Where a file system cannot allocate.
        let error = write_zeros(&file, 2 * MIB..4 * MIB, &limits).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted, "{error}");
        assert_eq!(allocated(&file), before);
    }

    #[test]
    fn zeros_fill_a_hole_and_nothing_else() {
        let file = sparse();
        write_zeros(&file, MIB + 4096..4 * MIB, &Limits::default()).unwrap();
        assert!(holes(&file, MIB..4 * MIB).unwrap().is_empty());
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, MIB).unwrap();
        assert_eq!((bytes, file.metadata().unwrap().len()), ([7; 4096], 4 * MIB));
    }

    #[test]
    fn allocation_without_room_takes_nothing() {
        let file = sparse();
        let before = allocated(&file);
        let error = Allocation::new(&file, 1 << 60).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        assert!(error.to_string().contains("bytes more are needed"), "{error}");
        assert_eq!(allocated(&file), before);
    }
}
