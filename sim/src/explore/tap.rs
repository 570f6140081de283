//! One side's handle on the disk, under the explorer's control.

use crate::device::{DiskDevice, failed};
use crate::disk::Disk;
use crate::explore::control::{Access, Control, Way};
use crate::explore::mutant::Mutant;
use shared_block_ring::device::{DeviceError, Memory, Operation};
use shared_block_ring::format::{EXTENSION, Geometry, SLOT_BYTES, SLOTS_AT};
use shared_block_ring::{BlockDevice, RingDevice};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Writes that a mutant defers.
type Deferred = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

/// The disk as a block device.
#[derive(Clone)]
pub struct Tap {
    disk: Disk,
    control: Control,
    deferred: Deferred,
}

impl Tap {
    pub fn new(disk: &Disk, control: &Control) -> Self {
        Self { disk: disk.clone(), control: control.clone(), deferred: Deferred::default() }
    }

    fn put(&self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let size = self.disk.geometry().sector_size().bytes();
        match self.control.enter(Access::Write { first, sectors: bytes.len() / size }) {
            Way::On => self.disk.write(first, bytes)?,
            Way::Skip => {}
            Way::Fail(written) => {
                let written = bytes.len().min(written * size);
                if written > 0 {
                    self.disk.write(first, &bytes[..written])?;
                    self.control.changed();
                }
                return Err(failure());
            }
        }
        self.control.changed();
        Ok(())
    }

    fn take_deferred(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.deferred.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn failure() -> io::Error {
    io::Error::from_raw_os_error(5)
}

impl BlockDevice for Tap {
    fn name(&self) -> &'static str {
        "simulated disk"
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        if matches!(self.control.enter(Access::Read), Way::Fail(_)) {
            return Err(failed(Operation::Read, Some(first))(failure()));
        }
        DiskDevice::new(&self.disk).read(first, bufs)?;
        // Once attached, a producer reads data only to write it back.
        let writes = |operation| self.control.mutant_in(operation) == Some(Mutant::TailNotKept);
        if first > 2 && ["push", "advance"].into_iter().any(writes) {
            for buf in bufs.iter_mut() {
                buf.fill(0);
            }
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let fail = failed(Operation::Write, Some(first));
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        if self.control.mutant() == Some(Mutant::PointerBeforeData) && first > 2 {
            self.deferred.lock().unwrap_or_else(PoisonError::into_inner).push((first, bytes));
            return Ok(());
        }
        self.put(first, &bytes).map_err(&fail)?;
        self.take_deferred().iter().try_for_each(|(at, bytes)| self.put(*at, bytes)).map_err(fail)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        match self.control.enter(Access::Flush) {
            Way::On => self.disk.flush().map_err(failed(Operation::Flush, None)),
            Way::Skip => Ok(()),
            Way::Fail(_) => {
                if !self.control.is_dead() {
                    // Pending writes are not durable, and no later flush makes them so.
                    self.disk.lose_pending();
                }
                Err(failed(Operation::Flush, None)(failure()))
            }
        }
    }
}

impl RingDevice for Tap {}

/// The disk as shared memory: each store is a change of its own.
pub struct TapMemory {
    tap: Tap,
}

impl TapMemory {
    pub fn new(disk: &Disk, control: &Control) -> Self {
        Self { tap: Tap::new(disk, control) }
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        let Tap { disk, control, .. } = &self.tap;
        // A store does not fail; that of a dead process does not happen.
        let size = u64::from(disk.geometry().sector_size().get());
        let access = Access::Write { first: offset / size, sectors: 1 };
        if matches!(control.enter(access), Way::On) {
            disk.store(offset, bytes);
            control.changed();
        }
    }

    /// Defers a store of a mutant, or makes up for it. Returns whether the store was dealt with.
    fn misplaced(&self, offset: u64, bytes: &[u8]) -> bool {
        let size = self.tap.disk.geometry().sector_size().bytes() as u64;
        let within = offset % size;
        let slots = SLOTS_AT[0] as u64..(SLOTS_AT[1] + SLOT_BYTES) as u64;
        let pointer = (size..self.tap.disk.geometry().data_start()).contains(&offset);
        if !pointer || self.tap.control.mutant() != Some(Mutant::SlotAfterPosition) {
            return false;
        }
        if slots.contains(&within) {
            let mut deferred = self.tap.deferred.lock().unwrap_or_else(PoisonError::into_inner);
            deferred.push((offset, bytes.to_vec()));
            return true;
        }
        if within == 0 {
            self.store(offset, bytes);
            for (at, bytes) in self.tap.take_deferred() {
                self.store(at, &bytes);
            }
            return true;
        }
        false
    }

    /// Stores in pieces: words where a reader looks, larger pieces where no reader looks before a
    /// later store.
    fn store_in_pieces(&self, offset: u64, bytes: &[u8]) {
        let geometry = self.tap.disk.geometry();
        let size = geometry.sector_size().bytes() as u64;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let within = at % size;
            let slots = at < geometry.data_start() && within < EXTENSION.end as u64;
            // Up to the next boundary of a word or of half a sector.
            let unit = if slots { 8 } else { size / 2 };
            let len = usize::try_from(unit - at % unit).unwrap_or(rest.len()).min(rest.len());
            let (now, later) = rest.split_at(len);
            self.store(at, now);
            (at, rest) = (at + len as u64, later);
        }
    }
}

impl Memory for TapMemory {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let _ = self.tap.control.enter(Access::Read);
        let size = self.tap.disk.geometry().sector_size().bytes() as u64;
        let start = offset - offset % size;
        let end = (offset + bytes.len() as u64).next_multiple_of(size);
        let mut sectors = vec![0; usize::try_from(end - start).unwrap_or(0)];
        // The device keeps the bounds; a store or load does not fail.
        let read = self.tap.disk.read(start / size, &mut sectors);
        debug_assert!(read.is_ok());
        let within = usize::try_from(offset - start).unwrap_or(0);
        bytes.copy_from_slice(&sectors[within..within + bytes.len()]);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        if !self.misplaced(offset, bytes) {
            self.store_in_pieces(offset, bytes);
        }
    }

    fn load_u64(&self, offset: u64) -> u64 {
        let mut word = [0; 8];
        self.read(offset, &mut word);
        u64::from_le_bytes(word)
    }

    fn store_u64(&self, offset: u64, value: u64) {
        if !self.misplaced(offset, &value.to_le_bytes()) {
            self.store(offset, &value.to_le_bytes());
        }
    }

    fn store_u8(&self, offset: u64, value: u8) {
        self.store(offset, &[value]);
    }

    fn fence(&self) {}

    fn sync(&self) -> io::Result<()> {
        self.tap.flush().map_err(|e| e.source)
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
