//! The signs of life that the thread of the work gives to a service manager: between two pieces of
//! work, and out of each wait for the ring, however long that is.

use nix::sys::time::TimeSpec;
use nix::sys::timer::Expiration;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags, TimerSetTimeFlags};
use ring_program::ServiceManager;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

pub struct Life {
    manager: ServiceManager,
    /// It expires whenever a sign is due; none if the manager expects no signs.
    timer: Option<TimerFd>,
}

impl Life {
    /// # Errors
    /// The operating system's; there is no timer.
    pub fn new(manager: ServiceManager) -> io::Result<Self> {
        let timer = manager.interval().map(|interval| {
            let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            let each = Expiration::Interval(TimeSpec::from_duration(interval));
            timer.set(each, TimerSetTimeFlags::empty())?;
            Ok::<_, io::Error>(timer)
        });
        Ok(Self { manager, timer: timer.transpose()? })
    }

    pub fn manager(&self) -> &ServiceManager {
        &self.manager
    }

    /// Returns what is readable when a sign is due, for waits.
    pub fn timer(&self) -> Option<BorrowedFd<'_>> {
        self.timer.as_ref().map(AsFd::as_fd)
    }

    /// Gives a sign of life, if one is due.
    pub fn sign(&mut self) {
        // It does not block: before the timer expires, it answers so.
        if let Some(timer) = &self.timer
            && timer.wait().is_ok()
        {
            self.manager.alive();
        }
    }
}
