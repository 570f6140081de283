//! Reads with the lowest I/O priority on a kernel block device: a backend of ours answers one only when it has news.
//!
//! By `io_uring`, and so that the process sleeps where anything can wake it: one that waited in a read itself could not be
//! stopped, and the kernel would warn of a hung task.

use super::{AlignedBuf, Answer, DeviceError, HeldReads};
use crate::format::{SectorSize, Side};
use crate::virtqueue::{DmaMemory, IDLE, Pages};
use crate::wait::{Woken, wait_readable};
use io_uring::{IoUring, opcode, types};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

/// Of one opening of a block device, one for each side that can be waited for.
#[derive(Debug)]
pub struct IdleReads {
    file: File,
    name: String,
    sector_size: SectorSize,
    sides: [OnceLock<Option<Mutex<HeldRead>>>; 2],
}

impl IdleReads {
    /// On the device behind `file`, which is open past the page cache.
    pub fn new(file: &File, name: &str, sector_size: SectorSize) -> io::Result<Self> {
        let (file, name) = (file.try_clone()?, name.to_owned());
        Ok(Self { file, name, sector_size, sides: Default::default() })
    }

    /// None where the kernel has no `io_uring`, or does not let us have it.
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
    ) -> Result<Answer, DeviceError> {
        let Some(reader) = self.reader(peer) else { return Ok(Answer::Unable) };
        // Of each side there is one who waits for it.
        let mut reader = reader.lock().unwrap_or_else(PoisonError::into_inner);
        reader.read(&self.file, peer, interrupts, deadline).map_err(|source| DeviceError {
            name: self.name.clone(),
            operation: "wait",
            sector: Some(peer.sector()),
            source,
        })
    }
}

impl Drop for IdleReads {
    /// A process cannot end while a read of its is held. Any other request has it answered.
    fn drop(&mut self) {
        let outstanding = |side: &OnceLock<Option<Mutex<HeldRead>>>| {
            let reader = side.get().and_then(Option::as_ref);
            reader.is_some_and(|r| r.lock().unwrap_or_else(PoisonError::into_inner).outstanding)
        };
        if self.sides.iter().any(outstanding) {
            let mut sector = AlignedBuf::zeroed(self.sector_size.bytes());
            // What becomes of it matters to nobody.
            let _ = self.file.read_at(&mut sector, 0);
        }
    }
}

struct HeldRead {
    ring: IoUring,
    /// Where the kernel puts the sector. It has the pages for as long as it needs them, whatever becomes of our mapping.
    memory: DmaMemory,
    sector: Vec<u8>,
    /// What the last answer was.
    last: Option<Vec<u8>>,
    outstanding: bool,
}

impl std::fmt::Debug for HeldRead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HeldRead(outstanding: {})", self.outstanding)
    }
}

impl HeldRead {
    fn new(sector_size: SectorSize) -> io::Result<Self> {
        let ring = IoUring::new(2)?;
        let memory = DmaMemory::new(u64::from(sector_size.get()), Pages::Small)?;
        let sector = vec![0; sector_size.bytes()];
        Ok(Self { ring, memory, sector, last: None, outstanding: false })
    }

    fn read(
        &mut self,
        file: &File,
        peer: Side,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> io::Result<Answer> {
        if !self.outstanding {
            self.submit(file, peer)?;
        }
        loop {
            let done = self.ring.completion().next();
            if let Some(done) = done.map(|entry| entry.result()) {
                self.outstanding = false;
                return Ok(self.answered(done));
            }
            // SAFETY: the descriptor is the ring's, which lives longer than this borrow.
            let ring = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
            let mut waited = vec![ring];
            waited.extend_from_slice(interrupts);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let late = || deadline.is_some_and(|deadline| deadline <= Instant::now());
            match wait_readable(&waited, left)? {
                Some(0) => {}
                Some(index) => return Ok(Answer::Woken(Woken::Readable(index - 1))),
                None if late() => return Ok(Answer::Woken(Woken::TimedOut)),
                // A signal, for whose handler the caller may have to look.
                None => return Ok(Answer::Woken(Woken::Elapsed)),
            }
        }
    }

    fn submit(&mut self, file: &File, peer: Side) -> io::Result<()> {
        let size = self.sector.len() as u64;
        let to = std::ptr::with_exposed_provenance_mut(
            usize::try_from(self.memory.host_address(0)).map_err(io::Error::other)?,
        );
        let class = u16::try_from(IDLE).map_err(io::Error::other)?;
        let len = u32::try_from(size).map_err(io::Error::other)?;
        let read = opcode::Read::new(types::Fd(file.as_raw_fd()), to, len)
            .offset(size * peer.sector())
            .ioprio(class)
            .build();
        // SAFETY: the memory is `len` bytes long and shared; the kernel holds on to its pages until the read is done, and so it
        // may be unmapped before. The descriptor is open; the kernel has its own reference once it is submitted.
        unsafe { self.ring.submission().push(&read) }.map_err(io::Error::other)?;
        loop {
            match self.ring.submit() {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.outstanding = true;
        Ok(())
    }

    fn answered(&mut self, result: i32) -> Answer {
        if usize::try_from(result) != Ok(self.sector.len()) {
            // Whoever waits looks for himself next, and finds out what is wrong.
            return Answer::Same;
        }
        self.memory.read(0, &mut self.sector);
        Answer::of(&self.sector, &mut self.last)
    }
}
