//! Held reads on a kernel block device: reads with the lowest I/O priority, which
//! `vhost-device-blockring` answers only when the sector has changed.
//!
//! They go through `io_uring`, so that the process sleeps in `poll`, where a signal or a deadline
//! wakes it. A process that slept in the read itself could not be stopped, and the kernel would
//! warn of a hung task.

use super::{AlignedBuf, DeviceError, HeldReadOutcome, HeldReads, Mapping, Memory, Operation};
use crate::format::{SectorSize, Side};
use crate::wait::{Woken, wait_readable};
use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// `IOPRIO_CLASS_IDLE` in bits 13 to 15 of the priority, as `ioprio_set(2)` has it.
const IDLE: u16 = 3 << 13;

/// The `user_data` by which the completion of a read is known, and that of its cancellation.
const READ: u64 = 1;
const CANCELLATION: u64 = 2;

/// How long a held read may take to be over, once it was asked to end.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// Held reads in flight on one open block device, at most one for each side that can be waited for.
#[derive(Debug)]
pub struct IdleReads {
    file: File,
    name: String,
    sector_size: SectorSize,
    sides: [OnceLock<Option<Mutex<HeldRead>>>; 2],
}

impl IdleReads {
    /// Makes the held reads of the device behind `file`, which is open with `O_DIRECT`.
    pub fn new(file: &File, name: &str, sector_size: SectorSize) -> io::Result<Self> {
        let (file, name) = (file.try_clone()?, name.to_owned());
        Ok(Self { file, name, sector_size, sides: Default::default() })
    }

    /// The ring of `io_uring`; `None` where the kernel has none, or does not let this process use
    /// it.
    fn reader(&self, peer: Side) -> Option<&Mutex<HeldRead>> {
        let side = &self.sides[usize::from(peer == Side::Consumer)];
        let reader = side.get_or_init(|| match HeldRead::new(self.sector_size) {
            Ok(reader) => Some(Mutex::new(reader)),
            Err(e) => {
                log::debug!("{}: waiting by polling, without io_uring: {e}", self.name);
                None
            }
        });
        reader.as_ref()
    }
}

impl HeldReads for IdleReads {
    fn await_answer(
        &self,
        peer: Side,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<HeldReadOutcome, DeviceError> {
        let Some(reader) = self.reader(peer) else { return Ok(HeldReadOutcome::Unable) };
        // At most one caller waits for each side.
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader
            .read(&self.file, peer, interrupts, deadline)
            .map_err(|e| DeviceError::new(&*self.name, Operation::Wait, e).at_sector(peer.sector()))
    }
}

impl Drop for IdleReads {
    /// Ends the held reads: a process cannot end while one of its reads is in flight. Any other
    /// request has the backend answer them.
    fn drop(&mut self) {
        let outstanding = |side: &OnceLock<Option<Mutex<HeldRead>>>| {
            let reader = side.get().and_then(Option::as_ref);
            reader.is_some_and(|r| r.lock().unwrap_or_else(PoisonError::into_inner).is_submitted)
        };
        if self.sides.iter().any(outstanding) {
            let mut sector = AlignedBuf::zeroed(self.sector_size.bytes());
            // The outcome of this request does not matter.
            let _ = self.file.read_at(&mut sector, 0);
        }
    }
}

/// Memory that a read in flight stores to.
///
/// While the kernel may store to it, it stays mapped: if it is dropped by then, for good. So
/// nothing else of this process can come to lie where the kernel stores.
#[derive(Debug)]
struct Landing {
    /// `None` only while it is dropped.
    memory: Option<Mapping>,
    /// True from before a read into it is queued until its completion has been reaped.
    is_lent: bool,
}

impl Landing {
    fn new(bytes: u64) -> io::Result<Self> {
        Ok(Self { memory: Some(Mapping::anonymous(bytes)?), is_lent: false })
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if self.is_lent {
            std::mem::forget(self.memory.take());
        }
    }
}

struct HeldRead {
    ring: IoUring,
    landing: Landing,
    sector: Vec<u8>,
    /// The bytes of the last answer.
    last: Option<Vec<u8>>,
    /// True while the kernel has a read into the landing.
    is_submitted: bool,
}

impl std::fmt::Debug for HeldRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeldRead(outstanding: {})", self.is_submitted)
    }
}

impl HeldRead {
    fn new(sector_size: SectorSize) -> io::Result<Self> {
        let ring = IoUring::new(2)?;
        let landing = Landing::new(u64::from(sector_size.get()))?;
        let sector = vec![0; sector_size.bytes()];
        Ok(Self { ring, landing, sector, last: None, is_submitted: false })
    }

    fn read(
        &mut self,
        file: &File,
        peer: Side,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> io::Result<HeldReadOutcome> {
        if !self.landing.is_lent {
            self.queue(file, peer)?;
        }
        if !self.is_submitted {
            self.submit()?;
        }
        loop {
            if let Some(result) = self.reap() {
                return Ok(self.answered(result));
            }
            let mut waited = vec![descriptor(&self.ring)];
            waited.extend_from_slice(interrupts);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let late = || deadline.is_some_and(|deadline| deadline <= Instant::now());
            match wait_readable(&waited, left)? {
                Some(0) => {}
                Some(index) => return Ok(HeldReadOutcome::Woken(Woken::Readable(index - 1))),
                None if late() => return Ok(HeldReadOutcome::Woken(Woken::TimedOut)),
                // A signal, for whose handler the caller may have to look.
                None => return Ok(HeldReadOutcome::Woken(Woken::Elapsed)),
            }
        }
    }

    /// Prepares the read of `peer`'s pointer sector.
    fn queue(&mut self, file: &File, peer: Side) -> io::Result<()> {
        let Some(memory) = &self.landing.memory else { return Err(io::ErrorKind::Other.into()) };
        let len = u32::try_from(self.sector.len()).map_err(io::Error::other)?;
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), memory.as_ptr().as_ptr(), len)
            .offset(u64::from(len) * peer.sector())
            .ioprio(IDLE)
            .build()
            .user_data(READ);
        self.landing.is_lent = true;
        // SAFETY: the landing is `len` bytes long and mapped. It stays so until the completion is
        // reaped, or for good: `is_lent` is cleared by that alone. Nobody has a reference to its
        // bytes. The file is open, and belongs to whoever owns this read.
        let queued = unsafe { self.ring.submission().push(&read) };
        queued.map_err(|full| {
            self.landing.is_lent = false;
            io::Error::other(full)
        })
    }

    /// Submits the queued requests to the kernel. After an error it may be called again.
    fn submit(&mut self) -> io::Result<()> {
        loop {
            match self.ring.submit() {
                Ok(0) => {}
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.is_submitted = true;
        Ok(())
    }

    /// Takes the completion of the read, if there is one: bytes, or the negative number of an
    /// error.
    fn reap(&mut self) -> Option<i32> {
        let done = self.ring.completion().find(|done| done.user_data() == READ)?;
        (self.landing.is_lent, self.is_submitted) = (false, false);
        Some(done.result())
    }

    /// Ends the read in flight. Returns whether it is over.
    fn end(&mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let cancel = opcode::AsyncCancel::new(READ).build().user_data(CANCELLATION);
        // SAFETY: a cancellation names no memory.
        let queued = unsafe { self.ring.submission().push(&cancel) };
        // A read that is not cancelled may end all the same.
        let _ = queued.map_err(io::Error::other).and_then(|()| self.ring.submit());
        loop {
            if self.reap().is_some() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || wait_readable(&[descriptor(&self.ring)], Some(left)).is_err() {
                return false;
            }
        }
    }

    fn answered(&mut self, result: i32) -> HeldReadOutcome {
        let Some(memory) = &self.landing.memory else { return HeldReadOutcome::Same };
        if usize::try_from(result) != Ok(self.sector.len()) {
            // The caller reads the sector itself next, and meets the error.
            return HeldReadOutcome::Same;
        }
        memory.read(0, &mut self.sector);
        HeldReadOutcome::of(&self.sector, &mut self.last)
    }
}

/// The descriptor that is readable while a completion waits to be reaped.
fn descriptor(ring: &IoUring) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the ring's, which is borrowed for as long.
    unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) }
}

impl Drop for HeldRead {
    /// The kernel gives up the reads of a ring that is closed, but some time later: so it is waited
    /// for here.
    fn drop(&mut self) {
        if self.is_submitted && !self.end(END_PATIENCE) {
            log::debug!("a held read does not end: its memory stays mapped");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{Read, Write};

    /// A pipe, whose reads wait for the other end.
    fn pipe() -> (File, File) {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        (reader.into(), writer.into())
    }

    fn begin(file: &File) -> HeldRead {
        let mut read = HeldRead::new(SectorSize::DEFAULT).unwrap();
        let answer = read.read(file, Side::Consumer, &[], Some(Instant::now())).unwrap();
        assert_eq!(answer, HeldReadOutcome::Woken(Woken::TimedOut));
        assert!(read.is_submitted);
        read
    }

    fn address(read: &HeldRead) -> usize {
        read.landing.memory.as_ref().unwrap().addresses().start
    }

    /// Whether a mapping begins at that address.
    fn is_mapped(address: usize) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let within = |line: &str| {
            let (start, rest) = line.split_once('-')?;
            let (end, _) = rest.split_once(' ')?;
            let [start, end] = [start, end].map(|text| usize::from_str_radix(text, 16).ok());
            Some((start?..end?).contains(&address))
        };
        maps.lines().any(|line| within(line) == Some(true))
    }

    #[test]
    fn read_goes_on_over_waits_and_tells_what_has_changed() {
        let (reader, mut writer) = pipe();
        let mut read = begin(&reader);
        for (sector, news) in [([1; 512], HeldReadOutcome::News), ([1; 512], HeldReadOutcome::Same)]
        {
            writer.write_all(&sector).unwrap();
            assert_eq!(read.read(&reader, Side::Consumer, &[], None).unwrap(), news);
            assert!(!read.is_submitted);
        }
    }

    #[test]
    fn drop_ends_the_read_before_its_memory_is_unmapped() {
        let (mut reader, mut writer) = pipe();
        let read = begin(&reader);
        let address = address(&read);
        drop(read);
        assert!(!is_mapped(address));
        // Nobody reads here any more: what comes is ours.
        writer.write_all(&[2; 512]).unwrap();
        let mut sector = [0; 512];
        reader.read_exact(&mut sector).unwrap();
        assert_eq!(sector, [2; 512]);
    }

    #[test]
    fn drop_in_a_panic_ends_the_read_too() {
        let (mut reader, mut writer) = pipe();
        let read = begin(&reader);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _read = read;
            std::panic::resume_unwind(Box::new(()));
        }));
        assert!(panicked.is_err());
        writer.write_all(&[3; 512]).unwrap();
        assert_eq!(reader.read(&mut [0; 512]).unwrap(), 512);
    }

    #[test]
    fn memory_of_a_read_that_does_not_end_stays_mapped() {
        let (reader, mut writer) = pipe();
        let mut read = begin(&reader);
        let address = address(&read);
        // As if the kernel did not answer.
        read.is_submitted = false;
        drop(read);
        assert!(is_mapped(address));
        writer.write_all(&[4; 512]).unwrap();
        assert!(is_mapped(address));
    }
}
