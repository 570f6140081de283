//! A ring in a shared mapping: both ends see each other's stores, with no system call.

use super::{BlockDevice, DeviceError, Mapping};
use crate::format::{FLAG_AT, Geometry, Side};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};

/// A file (on disk, tmpfs, or a memfd) mapped shared. Flushing syncs the file.
#[derive(Debug)]
pub struct MappedDevice {
    mapping: Mapping,
    file: File,
    name: String,
    geometry: Geometry,
}

impl MappedDevice {
    /// Maps `file`, which must be as large as `geometry` and stay so; `name` is for messages.
    pub fn new(file: File, name: &str, geometry: Geometry) -> Result<Self, DeviceError> {
        let mapping = Mapping::new(&file, geometry.total_bytes()).map_err(|source| {
            DeviceError { name: name.to_owned(), operation: "map", sector: None, source }
        })?;
        Ok(Self { mapping, file, name: name.to_owned(), geometry })
    }

    /// The memory itself.
    pub fn mapping(&self) -> &Mapping {
        &self.mapping
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

    /// Stores a pointer sector so that no reader sees half a position, nor the new one before what comes with it.
    fn store_pointer(&self, start: u64, sector: &[u8]) {
        self.mapping.write(start + FLAG_AT as u64, &sector[FLAG_AT..]);
        self.mapping.store_u64(start, position_in(sector));
    }
}

fn position_in(sector: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&sector[..8]);
    u64::from_le_bytes(word)
}

impl BlockDevice for MappedDevice {
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
            for (index, part) in buf.chunks_mut(size).enumerate() {
                let start = at + (index * size) as u64;
                if start >= self.geometry.data_start() {
                    break;
                }
                // The position first: what it promises must be read after it.
                let position = self.mapping.load_u64(start);
                self.mapping.read(start, part);
                part[..8].copy_from_slice(&position.to_le_bytes());
            }
            let head = self.geometry.data_start().saturating_sub(at).min(buf.len() as u64);
            let (_, data) = buf.split_at_mut(usize::try_from(head).unwrap_or(usize::MAX));
            self.mapping.read(at + head, data);
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
            self.mapping.write(at + head, data);
            for (index, part) in heads.chunks(size).enumerate() {
                self.store_pointer(at + (index * size) as u64, part);
            }
            at += buf.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        // This covers stores through the mapping too: the kernel marks their pages dirty at the first one.
        self.file.sync_data().map_err(|source| DeviceError {
            name: self.name.clone(),
            operation: "flush",
            sector: None,
            source,
        })
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    /// Without a lock: the flag is one store, the position another, and `edit` changes one of them.
    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        let start = self.geometry.pointer_start(side);
        let mut before = vec![0; self.geometry.sector_size().bytes()];
        self.read(side.sector(), &mut [IoSliceMut::new(&mut before)])?;
        let mut after = before.clone();
        edit(&mut after);
        let rest = FLAG_AT + 1;
        if after[rest..] != before[rest..] {
            self.mapping.write(start + rest as u64, &after[rest..]);
        }
        if after[FLAG_AT] != before[FLAG_AT] {
            self.mapping.store_u8(start + FLAG_AT as u64, after[FLAG_AT]);
        }
        if after[..8] != before[..8] {
            self.mapping.store_u64(start, position_in(&after));
        }
        Ok(())
    }
}
