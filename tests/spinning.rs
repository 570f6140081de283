//! Waits for the other side that spin before they sleep.
#![allow(clippy::unwrap_used)]

use ring_simulation::{Hook, Hooked};
use ring_test_support::RingFile;
use shared_block_ring::FileDevice;
use shared_block_ring::device::{DeviceError, Sleep};
use shared_block_ring::format::Side;
use shared_block_ring::wait::{Wait, Woken};
use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Counts how often a process was about to sleep on its device, and slept.
#[derive(Default)]
struct Bed {
    announced: Cell<u32>,
    slept: Cell<u32>,
}

impl Hook<FileDevice> for Bed {
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

fn bed() -> Hooked<FileDevice, Bed> {
    Hooked::new(RingFile::new(4 * 512, 512).open(), Bed::default())
}

const FOR_EVER: Duration = Duration::from_secs(3600);

/// Pauses until something else than "look again" is the answer.
fn outcome(mut wait: Wait, bed: &Hooked<FileDevice, Bed>, interrupts: &[BorrowedFd<'_>]) -> Woken {
    loop {
        match wait.pause(bed, interrupts).unwrap() {
            Woken::Elapsed => assert_eq!(bed.hook.slept.get(), 0, "slept while it should spin"),
            other => return other,
        }
    }
}

#[test]
fn spinning_wait_ends_by_deadline_and_interrupt_and_announces_no_sleep() {
    let bed = bed();
    let wait = Wait::new(Side::Producer, Some(Duration::from_millis(20))).spin(FOR_EVER);
    assert_eq!(outcome(wait, &bed, &[]), Woken::TimedOut);
    let (reader, writer) = std::io::pipe().unwrap();
    let (quiet, _open) = std::io::pipe().unwrap();
    drop(writer);
    let wait = Wait::new(Side::Producer, None).spin(FOR_EVER);
    assert_eq!(outcome(wait, &bed, &[quiet.as_fd(), reader.as_fd()]), Woken::Readable(1));
    assert_eq!(bed.hook.announced.get(), 0);
}

#[test]
fn wait_sleeps_after_its_spinning() {
    for spin in [Duration::ZERO, Duration::from_micros(200)] {
        let bed = bed();
        let mut wait = Wait::new(Side::Producer, None).spin(spin);
        while bed.hook.slept.get() < 2 {
            wait.pause(&bed, &[]).unwrap();
        }
        assert_eq!(
            bed.hook.announced.get(),
            2,
            "each sleep is announced, and the spinning comes once"
        );
    }
}
