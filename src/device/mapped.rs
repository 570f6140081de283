//! A ring in a shared mapping: both ends see each other's stores, with no system call.

use super::{BlockDevice, DeviceError, Mapping, Memory};
use crate::format::{
    EXTENSION, FLAG_AT, Geometry, POINTER_BYTES, Position, SLOT_BYTES, SLOTS_AT, Side, TEXT_AT,
};
use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// What processors pass to each other.
const CACHE_LINE: usize = 64;

/// A file (on disk, tmpfs, or a memfd) mapped shared, or other shared memory. Flushing syncs the file.
#[derive(Debug)]
pub struct MappedDevice<M = Mapping> {
    memory: M,
    name: String,
    geometry: Geometry,
    /// Room for a sector in front of the data area, as it was.
    room: RefCell<Vec<u8>>,
}

impl MappedDevice {
    /// Maps `file`, which must be as large as `geometry` and stay so; `name` is for messages.
    pub fn new(file: File, name: &str, geometry: Geometry) -> Result<Self, DeviceError> {
        let memory = Mapping::new(file, geometry.total_bytes()).map_err(|source| DeviceError {
            name: name.to_owned(),
            operation: "map",
            sector: None,
            source,
        })?;
        Ok(Self::over(memory, name, geometry))
    }
}

impl<M: Memory> MappedDevice<M> {
    /// Over `memory`, which is as large as `geometry`.
    pub fn over(memory: M, name: &str, geometry: Geometry) -> Self {
        let room = RefCell::new(vec![0; geometry.sector_size().bytes()]);
        Self { memory, name: name.to_owned(), geometry, room }
    }

    /// The memory itself.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    fn bounds(&self, operation: &'static str, first: u64, len: usize) -> Result<u64, DeviceError> {
        let size = u64::from(self.geometry.sector_size().get());
        let start = first.checked_mul(size);
        start
            .filter(|start| {
                start.checked_add(len as u64).is_some_and(|end| end <= self.geometry.total_bytes())
            })
            .ok_or_else(|| DeviceError {
                name: self.name.clone(),
                operation,
                sector: Some(first),
                source: io::ErrorKind::UnexpectedEof.into(),
            })
    }

    /// Reads a sector in front of the data area, its position first: what it promises must be read after it.
    fn read_head_at(&self, start: u64, sector: &mut [u8]) {
        let position = self.memory.load_u64(start);
        self.memory.read(start, sector);
        sector[..8].copy_from_slice(&position.to_le_bytes());
    }

    /// Stores what of a sector in front of the data area is to change from `old` to `new`.
    ///
    /// A writer that dies between any two stores leaves the old sector or the new one: first what is beside position and flag, a
    /// slot absent until it is whole; then the flag; then the position. What does not change is not stored, since position
    /// and flag can have two writers.
    fn store_head(&self, start: u64, old: &[u8], new: &[u8]) {
        let stored = |range: std::ops::Range<usize>| {
            if new[range.clone()] != old[range.clone()] {
                self.memory.write(start + range.start as u64, &new[range]);
            }
        };
        // The text, line by line: one that does not change stays with whoever has read it.
        for line in (EXTENSION.end..new.len()).step_by(CACHE_LINE) {
            stored(line..new.len().min(line + CACHE_LINE));
        }
        stored(EXTENSION.start..SLOTS_AT[0]);
        stored(SLOTS_AT[1] + SLOT_BYTES..EXTENSION.end);
        for at in SLOTS_AT {
            if new[at..at + SLOT_BYTES] != old[at..at + SLOT_BYTES] {
                self.memory.store_u64(start + at as u64, 0);
                stored(at + 8..at + SLOT_BYTES);
                self.memory.store_u64(start + at as u64, word_at(new, at));
            }
        }
        if new[FLAG_AT] != old[FLAG_AT] {
            self.memory.store_u8(start + FLAG_AT as u64, new[FLAG_AT]);
        }
        if new[..8] != old[..8] {
            self.memory.store_u64(start, word_at(new, 0));
        }
    }
}

fn word_at(sector: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&sector[at..at + 8]);
    u64::from_le_bytes(word)
}

impl<M: Memory> BlockDevice for MappedDevice<M> {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let size = self.geometry.sector_size().bytes();
        let mut at = self.bounds("read", first, bufs.iter().map(|buf| buf.len()).sum())?;
        for buf in bufs {
            let head = self.geometry.data_start().saturating_sub(at).min(buf.len() as u64);
            let (heads, data) = buf.split_at_mut(usize::try_from(head).unwrap_or(usize::MAX));
            for (index, sector) in heads.chunks_mut(size).enumerate() {
                self.read_head_at(at + (index * size) as u64, sector);
            }
            self.memory.read(at + head, data);
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let size = self.geometry.sector_size().bytes();
        let mut at = self.bounds("write", first, bufs.iter().map(|buf| buf.len()).sum())?;
        for buf in bufs {
            let head = self.geometry.data_start().saturating_sub(at).min(buf.len() as u64);
            let (heads, data) = buf.split_at(usize::try_from(head).unwrap_or(usize::MAX));
            self.memory.write(at + head, data);
            for (index, new) in heads.chunks(size).enumerate() {
                let start = at + (index * size) as u64;
                let mut old = self.room.borrow_mut();
                let old = &mut old[..new.len()];
                self.read_head_at(start, old);
                self.store_head(start, old, new);
            }
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        self.memory.lend(self.geometry, from, to)
    }

    fn glance(&self, side: Side) -> Option<u64> {
        Some(self.memory.load_u64(self.geometry.pointer_start(side)))
    }

    /// Without the text, which takes most of the cache lines of a sector.
    fn read_head(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        self.read_head_at(self.geometry.pointer_start(side), &mut sector[..TEXT_AT]);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.memory.sync().map_err(|source| DeviceError {
            name: self.name.clone(),
            operation: "flush",
            sector: None,
            source,
        })
    }

    fn reads_are_free(&self) -> bool {
        true
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        self.memory.lock_file()
    }

    /// Without a lock: the flag is one store, the position another, and `edit` changes one of them.
    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        let start = self.geometry.pointer_start(side);
        let mut old = [0; POINTER_BYTES];
        self.read_head_at(start, &mut old);
        let mut new = old;
        edit(&mut new);
        self.store_head(start, &old, &new);
        Ok(())
    }
}
