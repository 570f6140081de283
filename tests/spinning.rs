//! Waiting for the other side, spinning before it by choice.
#![allow(clippy::unwrap_used)]

mod common;

use common::RingFile;
use ring_simulation::Unlocked;
use shared_block_ring::device::{DeviceError, Sleep};
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::wait::{Wait, Woken};
use shared_block_ring::{BlockDevice, FileDevice};
use std::cell::Cell;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// A device that notes how often somebody was about to sleep on it, and slept.
struct Bed {
    device: Unlocked<FileDevice>,
    announced: Cell<u32>,
    slept: Cell<u32>,
}

impl BlockDevice for Bed {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.device.read(first, bufs)
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        self.device.write(first, bufs)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn sleeper(&self) -> Option<&dyn Sleep> {
        Some(self)
    }
}

impl Sleep for Bed {
    fn announce(&self) {
        self.announced.set(self.announced.get() + 1);
    }

    fn sleep(&self, _: &[BorrowedFd<'_>], _: Option<Instant>) -> Result<Woken, DeviceError> {
        self.slept.set(self.slept.get() + 1);
        Ok(Woken::Elapsed)
    }
}

fn bed() -> Bed {
    let device = Unlocked(RingFile::new(4 * 512, 512).open());
    Bed { device, announced: Cell::new(0), slept: Cell::new(0) }
}

const FOR_EVER: Duration = Duration::from_secs(3600);

/// Pauses until something else than "look again" is the answer.
fn outcome(mut wait: Wait, bed: &Bed, interrupts: &[BorrowedFd<'_>]) -> Woken {
    loop {
        match wait.pause(bed, interrupts).unwrap() {
            Woken::Elapsed => assert_eq!(bed.slept.get(), 0, "slept while it should spin"),
            other => return other,
        }
    }
}

#[test]
fn who_spins_is_told_of_the_deadline_and_of_interrupts_without_announcing_a_sleep() {
    let bed = bed();
    let wait = Wait::new(Side::Producer, Some(Duration::from_millis(20))).spin(FOR_EVER);
    assert_eq!(outcome(wait, &bed, &[]), Woken::TimedOut);
    let (reader, writer) = std::io::pipe().unwrap();
    let (quiet, _open) = std::io::pipe().unwrap();
    drop(writer);
    let wait = Wait::new(Side::Producer, None).spin(FOR_EVER);
    assert_eq!(outcome(wait, &bed, &[quiet.as_fd(), reader.as_fd()]), Woken::Readable(1));
    assert_eq!(bed.announced.get(), 0);
}

#[test]
fn who_has_spun_long_enough_or_does_not_spin_sleeps() {
    for spin in [Duration::ZERO, Duration::from_micros(200)] {
        let bed = bed();
        let mut wait = Wait::new(Side::Producer, None).spin(spin);
        while bed.slept.get() < 2 {
            wait.pause(&bed, &[]).unwrap();
        }
        assert_eq!(bed.announced.get(), 2, "each sleep is announced, and the spinning comes once");
    }
}
