//! Waits in held reads, and waits that poll.
#![allow(clippy::unwrap_used)]

use ring_simulation::{Disk, DiskDevice, Hook, Hooked};
use shared_block_ring::device::{DeviceError, HeldReadOutcome, HeldReads};
use shared_block_ring::format::{SectorSize, Side};
use shared_block_ring::wait::{Wait, Woken};
use std::os::fd::BorrowedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Answers reads that may be held with `answer`, after `hold`.
struct Held {
    answer: HeldReadOutcome,
    hold: Duration,
    reads: Mutex<u32>,
}

impl Hook<DiskDevice> for Held {
    fn held_reads(&self) -> Option<&dyn HeldReads> {
        Some(self)
    }
}

fn held(answer: HeldReadOutcome, hold: Duration) -> Hooked<DiskDevice, Held> {
    let disk = DiskDevice::new(&Disk::new(SectorSize::DEFAULT, 8));
    Hooked::new(disk, Held { answer, hold, reads: Mutex::new(0) })
}

/// Returns how many such reads that many pauses make.
fn reads_in(device: &Hooked<DiskDevice, Held>, pauses: u32) -> u32 {
    let mut wait = Wait::new(Side::Producer, None);
    (0..pauses).for_each(|_| assert_eq!(wait.pause(device, &[]).unwrap(), Woken::Elapsed));
    *device.hook.reads.lock().unwrap()
}

impl HeldReads for Held {
    fn await_answer(
        &self,
        peer: Side,
        _interrupts: &[BorrowedFd<'_>],
        _deadline: Option<Instant>,
    ) -> Result<HeldReadOutcome, DeviceError> {
        assert_eq!(peer, Side::Producer);
        *self.reads.lock().unwrap() += 1;
        std::thread::sleep(self.hold);
        Ok(self.answer)
    }
}

#[test]
fn wait_polls_a_device_that_does_not_hold_reads_and_tries_again_later() {
    let device = held(HeldReadOutcome::Same, Duration::ZERO);
    assert_eq!(reads_in(&device, 200), 3);
    let device = held(HeldReadOutcome::Same, Duration::ZERO);
    // 2 without a pause, and one read again behind 256 of them.
    assert_eq!(reads_in(&device, 2 + 256 + 1), 4);
}

#[test]
fn wait_stays_with_a_device_that_holds_reads() {
    let device = held(HeldReadOutcome::Same, Duration::from_millis(5));
    assert_eq!(reads_in(&device, 50), 50);
}

#[test]
fn wait_stays_with_a_device_that_answers_with_news() {
    let device = held(HeldReadOutcome::News, Duration::ZERO);
    assert_eq!(reads_in(&device, 50), 50);
}

#[test]
fn wait_polls_a_device_without_held_reads() {
    let device = held(HeldReadOutcome::Unable, Duration::ZERO);
    assert_eq!(reads_in(&device, 100), 1);
}

#[test]
fn wait_that_is_interrupted_names_the_descriptor() {
    let device = held(HeldReadOutcome::Woken(Woken::Readable(3)), Duration::ZERO);
    let mut wait = Wait::new(Side::Producer, None);
    assert_eq!(wait.pause(&device, &[]).unwrap(), Woken::Readable(3));
}
