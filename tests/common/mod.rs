//! What these tests share: a ring in a temporary file, opened as often as a test likes, and more in files of its own.
#![allow(dead_code, clippy::unwrap_used, missing_docs)]

pub mod backend;
pub mod journal;

use shared_block_ring::format::SectorSize;
use shared_block_ring::{
    BlockDevice, Consumer, CreateOptions, FileDevice, MappedDevice, OpenOptions, Producer, Result,
    create,
};
use std::path::PathBuf;
use std::process::Output;

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

/// The program must have ended with that code, and with these words on standard error.
pub fn assert_fails(output: &Output, code: i32, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(text.contains(words), "{text:?} lacks {words:?}");
}
