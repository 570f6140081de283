//! When a wait is spent in a read that the device may hold, and when it polls.
#![allow(clippy::unwrap_used)]

use ring_simulation::{Disk, DiskDevice};
use shared_block_ring::BlockDevice;
use shared_block_ring::device::{Answer, DeviceError, HeldReads};
use shared_block_ring::format::{Geometry, SectorSize, Side};
use shared_block_ring::wait::{Wait, Woken};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Answers such reads with `answer`, after `hold`.
struct Held {
    disk: DiskDevice,
    answer: Answer,
    hold: Duration,
    reads: Mutex<u32>,
}

impl Held {
    fn new(answer: Answer, hold: Duration) -> Self {
        let disk = DiskDevice::new(&Disk::new(SectorSize::DEFAULT, 8));
        Self { disk, answer, hold, reads: Mutex::new(0) }
    }

    /// How many such reads so many pauses make.
    fn reads_in(&self, pauses: u32) -> u32 {
        let mut wait = Wait::new(Side::Producer, None);
        (0..pauses).for_each(|_| assert_eq!(wait.pause(self, &[]).unwrap(), Woken::Elapsed));
        *self.reads.lock().unwrap()
    }
}

impl BlockDevice for Held {
    fn name(&self) -> &str {
        self.disk.name()
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.disk.read(first, bufs)
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        self.disk.write(first, bufs)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.disk.flush()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn held_reads(&self) -> Option<&dyn HeldReads> {
        Some(self)
    }
}

impl HeldReads for Held {
    fn await_answer(
        &self,
        peer: Side,
        _interrupts: &[BorrowedFd<'_>],
        _deadline: Option<Instant>,
    ) -> Result<Answer, DeviceError> {
        assert_eq!(peer, Side::Producer);
        *self.reads.lock().unwrap() += 1;
        std::thread::sleep(self.hold);
        Ok(self.answer)
    }
}

#[test]
fn a_device_that_does_not_hold_reads_is_polled_and_tried_again_now_and_then() {
    let device = Held::new(Answer::Same, Duration::ZERO);
    assert_eq!(device.reads_in(200), 3);
    let device = Held::new(Answer::Same, Duration::ZERO);
    // 2 without a pause, and one read again behind 256 of them.
    assert_eq!(device.reads_in(2 + 256 + 1), 4);
}

#[test]
fn a_device_that_holds_them_for_a_while_is_read_for_ever() {
    let device = Held::new(Answer::Same, Duration::from_millis(5));
    assert_eq!(device.reads_in(50), 50);
}

#[test]
fn news_are_never_held_against_a_device() {
    let device = Held::new(Answer::News, Duration::ZERO);
    assert_eq!(device.reads_in(50), 50);
}

#[test]
fn where_there_are_no_such_reads_waiting_is_polling() {
    let device = Held::new(Answer::Unable, Duration::ZERO);
    assert_eq!(device.reads_in(100), 1);
}

#[test]
fn a_wait_that_is_interrupted_says_by_what() {
    let device = Held::new(Answer::Woken(Woken::Readable(3)), Duration::ZERO);
    let mut wait = Wait::new(Side::Producer, None);
    assert_eq!(wait.pause(&device, &[]).unwrap(), Woken::Readable(3));
}
