//! A guest's disk whose user can be restored from a snapshot taken between any two requests.

use ring_test_support::executor_disk::Driver;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::Geometry;
use shared_block_ring::{BlockDevice, RingDevice};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The answer to a request: the bytes of a read, nothing for other requests.
pub type Answers = Mutex<Vec<Vec<u8>>>;

/// The guest's disk. It records its answers or, for the requests before the snapshot, replays
/// recorded ones.
pub struct Snapshotted<'a, 'd> {
    driver: &'a Driver<'d>,
    answers: &'a Answers,
    /// Requests before the snapshot, which do not reach the disk again.
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

    /// Returns the recorded answer to a request from before the snapshot.
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
}

impl RingDevice for &Snapshotted<'_, '_> {}
