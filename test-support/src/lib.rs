//! Support for the tests of several packages: a ring in a temporary file, a backend that only hands
//! a ring over, processes and their pipes, a journal's callbacks, scrapes of metrics, man pages,
//! code blocks of the documents, and NATS servers.
//!
//! With the feature `vhost`, a guest: a writer of split rings, a front end that follows the
//! protocol and messages that do not, and the guest's disk over the backend's executor or worker.
// A test that cannot be set up fails.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    missing_debug_implementations
)]

pub mod backend;
pub mod beside;
#[cfg(feature = "vhost")]
pub mod conversation;
pub mod documents;
#[cfg(feature = "vhost")]
pub mod executor_disk;
#[cfg(feature = "vhost")]
pub mod front_end;
#[cfg(feature = "vhost")]
pub mod guard_write;
pub mod journal;
pub mod manual;
#[cfg(feature = "vhost")]
pub mod messages;
pub mod metrics;
pub mod nats;
pub mod process;
pub mod service;
#[cfg(feature = "vhost")]
pub mod split_ring;
#[cfg(feature = "vhost")]
pub mod traffic;
#[cfg(feature = "vhost")]
pub mod worker_disk;

pub use process::{assert_fails, assert_ok};

use shared_block_ring::format::SectorSize;
use shared_block_ring::{
    BlockDevice, Consumer, CreateOptions, FileDevice, MappedDevice, OpenOptions, Producer, Result,
    create,
};
use std::path::PathBuf;

/// A ring in a file of its own, opened as often as a test likes. Removed when this is dropped.
pub struct RingFile {
    _dir: tempfile::TempDir,
    pub path: PathBuf,
    pub sector_size: u32,
}

impl RingFile {
    /// Makes a file of zeros: no ring.
    pub fn blank(bytes: usize, sector_size: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ring.img");
        std::fs::write(&path, vec![0; bytes]).unwrap();
        Self { _dir: dir, path, sector_size }
    }

    /// Makes a file with an empty ring.
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
