//! A guest's disk that can be taken back to a snapshot between any two requests.

use crate::common::disk::Driver;
use shared_block_ring::BlockDevice;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::Geometry;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a guest is told about its requests: the bytes of a read, nothing of others.
pub type Answers = Mutex<Vec<Vec<u8>>>;

/// The guest's disk, whose answers are kept, or, for the first so many requests, those that were kept.
pub struct Snapshotted<'a, 'd> {
    driver: &'a Driver<'d>,
    answers: &'a Answers,
    /// Requests before the snapshot; none of them reaches the disk again.
    before: usize,
    made: AtomicUsize,
}

impl<'a, 'd> Snapshotted<'a, 'd> {
    pub fn first_life(driver: &'a Driver<'d>, answers: &'a Answers) -> Self {
        Self { driver, answers, before: 0, made: AtomicUsize::new(0) }
    }

    pub fn restored(driver: &'a Driver<'d>, answers: &'a Answers, before: usize) -> Self {
        Self { driver, answers, before, made: AtomicUsize::new(0) }
    }

    pub fn is_restored(&self) -> bool {
        self.made.load(Ordering::Relaxed) >= self.before
    }

    /// The answer from before the snapshot.
    fn kept(&self) -> Option<Vec<u8>> {
        let index = self.made.fetch_add(1, Ordering::Relaxed);
        (index < self.before).then(|| self.answers.lock().unwrap()[index].clone())
    }

    fn keep(&self, answer: Vec<u8>) {
        self.answers.lock().unwrap().push(answer);
    }
}

impl BlockDevice for &Snapshotted<'_, '_> {
    fn name(&self) -> &'static str {
        "disk"
    }

    fn geometry(&self) -> Geometry {
        self.driver.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let [buf] = bufs else { panic!("the library reads into one buffer") };
        if let Some(kept) = self.kept() {
            buf.copy_from_slice(&kept);
        } else {
            self.driver.read(first, &mut [IoSliceMut::new(buf)])?;
            self.keep(buf.to_vec());
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        if self.kept().is_some() {
            return Ok(());
        }
        self.keep(Vec::new());
        self.driver.write(first, bufs)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.kept().is_some() {
            return Ok(());
        }
        self.keep(Vec::new());
        self.driver.flush()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
