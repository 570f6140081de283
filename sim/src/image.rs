//! A ring in a process's own memory: nothing is ever lost, and nothing waits for a disk.

use shared_block_ring::device::Memory;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Memory for a [`MappedDevice`](shared_block_ring::MappedDevice). Clones share it.
#[derive(Clone)]
pub struct Image(Arc<Mutex<Vec<u8>>>);

impl Image {
    /// Makes memory of zeros.
    pub fn zeroed(bytes: usize) -> Self {
        Self::of(&vec![0; bytes])
    }

    /// Makes memory with a copy of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(bytes.to_vec())))
    }

    /// Returns a copy of the memory.
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        // A panic in a copy leaves no invariant broken.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn range(offset: u64, len: usize) -> std::ops::Range<usize> {
        let at = usize::try_from(offset).expect("within memory");
        at..at + len
    }
}

impl Memory for Image {
    fn read(&self, offset: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.lock()[Self::range(offset, bytes.len())]);
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        self.lock()[Self::range(offset, bytes.len())].copy_from_slice(bytes);
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
