//! A ring in a temporary file, opened as often as a test likes.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod journal;

use shared_block_ring::device::Memory;
use shared_block_ring::format::SectorSize;
use shared_block_ring::{
    BlockDevice, Consumer, CreateOptions, FileDevice, MappedDevice, OpenOptions, Producer, Result,
    create,
};
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

pub struct RingFile {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
    pub sector_size: u32,
}

impl RingFile {
    /// A file of zeros.
    pub fn blank(bytes: usize, sector_size: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.img");
        std::fs::write(&path, vec![0; bytes]).unwrap();
        Self { _dir: dir, path, sector_size }
    }

    /// An empty ring.
    pub fn new(bytes: usize, sector_size: u32) -> Self {
        let file = Self::blank(bytes, sector_size);
        create(&file.open(), CreateOptions::default()).unwrap();
        file
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions::default().sector_size(SectorSize::new(self.sector_size).unwrap())
    }

    pub fn open(&self) -> FileDevice {
        self.options().open(&self.path).unwrap()
    }

    pub fn open_mapped(&self) -> MappedDevice {
        let geometry = self.open().geometry();
        let file = std::fs::File::options().read(true).write(true).open(&self.path).unwrap();
        MappedDevice::new(file, "mapped ring", geometry).unwrap()
    }

    pub fn producer(&self) -> Result<Producer<FileDevice>> {
        Producer::attach(self.open(), "queue", "producer")
    }

    pub fn consumer(&self) -> Result<Consumer<FileDevice>> {
        Consumer::attach(self.open(), "queue", "consumer")
    }

    pub fn bytes(&self) -> Vec<u8> {
        std::fs::read(&self.path).unwrap()
    }
}

/// A device in memory; clones are the same one.
#[derive(Clone)]
pub struct Image(Arc<Mutex<Vec<u8>>>);

impl Image {
    pub fn zeroed(bytes: usize) -> Self {
        Self::of(&vec![0; bytes])
    }

    pub fn of(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(bytes.to_vec())))
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

impl Memory for Image {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        let at = usize::try_from(offset).unwrap();
        bytes.copy_from_slice(&self.0.lock().unwrap()[at..at + bytes.len()]);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let at = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn load_u64(&self, offset: u64) -> u64 {
        let mut word = [0; 8];
        self.read(offset, &mut word);
        u64::from_le_bytes(word)
    }

    fn store_u64(&self, offset: u64, value: u64) {
        self.write(offset, &value.to_le_bytes());
    }

    fn store_u8(&self, offset: u64, value: u8) {
        self.write(offset, &[value]);
    }

    fn fence(&self) {}

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
