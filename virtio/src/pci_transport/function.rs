//! A PCI function as the kernel lets a process have it.

use super::config::{Area, Config};
use super::interrupts::Interrupts;
use super::registers::Registers;
use crate::Error;
use crate::memory::DmaMemory;
use std::os::fd::BorrowedFd;

/// A function that this process has to itself, for as long as this lives.
pub trait Function: Send {
    /// Opens the configuration space.
    fn config(&self) -> Result<Config, Error>;

    /// Opens the memory behind a base address register.
    fn region(&self, bar: u8) -> Result<Area, Error>;

    /// Lets the function reach the memory at its device address.
    ///
    /// # Safety
    /// The same as for [`Link::start`](crate::transport::Link::start).
    unsafe fn map(&self, memory: &DmaMemory) -> Result<(), Error>;

    /// Sets up the function's interrupts; `isr` is its interrupt status.
    fn interrupts(&self, isr: Registers) -> Result<Interrupts, Error>;

    /// Returns a descriptor that is readable when the kernel wants the function back; `None` where
    /// it does not ask.
    fn gone(&self) -> Option<BorrowedFd<'_>>;
}
