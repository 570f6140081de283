//! Interrupts of a device, as descriptors to wait for.

use super::common::NO_VECTOR;
use super::config::Config;
use super::registers::Registers;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The one message that is used.
const VECTOR: u16 = 0;

/// Way in which an interrupt of the device reaches this process.
pub enum Interrupts {
    /// A message, which the kernel makes an event of.
    Message(EventFd),
    /// A line, which the kernel switches off until we have seen to it.
    Line(Line),
    /// Nothing: the kernel has nobody who takes it.
    None,
}

/// A line that a file of the kernel's userspace I/O shows (driver-api/uio-howto).
pub struct Line {
    uio: File,
    /// An event by which other threads of this process end the wait: nothing that is written to
    /// `uio` makes that readable.
    passed: EventFd,
    either: Epoll,
    isr: Registers,
    config: Config,
}

/// An event that reads without blocking.
pub fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

/// The event's descriptor.
pub fn descriptor(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is the event's, which lives as long as the borrow.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

impl Line {
    /// Over the file, which reads without blocking, the device's interrupt status and its
    /// configuration space.
    pub fn new(uio: File, isr: Registers, config: Config) -> io::Result<Self> {
        let passed = event()?;
        let either = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = EpollEvent::new(EpollFlags::EPOLLIN, 0);
        either.add(&uio, readable)?;
        either.add(descriptor(&passed), readable)?;
        Ok(Self { uio, passed, either, isr, config })
    }

    fn acknowledge(&self) -> io::Result<()> {
        // None is the common case of one that raced with another reason to wake up.
        let _ = self.passed.read();
        match (&self.uio).read_exact(&mut [0; 4]) {
            Ok(()) => {
                // Reading it is what ends the interrupt (4.1.4.5); one that comes from here on is
                // seen when the line is on again.
                let _: u8 = self.isr.read(0);
                self.config.enable_line()
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl Interrupts {
    /// The message's number, as the device is told it.
    pub fn vector(&self) -> u16 {
        match self {
            Self::Message(_) => VECTOR,
            Self::Line(_) | Self::None => NO_VECTOR,
        }
    }

    /// Readable after one.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Message(event) => Some(descriptor(event)),
            Self::Line(line) => Some(line.either.0.as_fd()),
            Self::None => None,
        }
    }

    /// Forgets those that came.
    pub fn acknowledge(&self) {
        match self {
            Self::Message(event) => {
                let _ = event.read();
            }
            Self::Line(line) => {
                // A device that went away is found out about by whoever looks for it next.
                let _ = line.acknowledge();
            }
            Self::None => {}
        }
    }

    /// Makes the descriptor readable.
    pub fn pass_on(&self) {
        // A full counter says the same.
        let _ = match self {
            Self::Message(event) => event.write(1),
            Self::Line(line) => line.passed.write(1),
            Self::None => Ok(()),
        };
    }
}
