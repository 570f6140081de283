//! What the kernel lets a process have of a PCI function.

use super::config::{Area, Config};
use super::interrupts::Interrupts;
use super::registers::Registers;
use crate::virtqueue::DmaMemory;
use std::io;
use std::os::fd::BorrowedFd;

/// A function that this process has to itself, for as long as this lives.
pub trait Function: Send {
    /// The configuration space.
    fn config(&self) -> io::Result<Config>;

    /// The memory behind a base address register.
    fn region(&self, bar: u8) -> io::Result<Area>;

    /// Lets the function reach the memory at its device address.
    fn map(&self, memory: &DmaMemory) -> io::Result<()>;

    /// How it interrupts; `isr` is its interrupt status.
    fn interrupts(&self, isr: Registers) -> io::Result<Interrupts>;

    /// Readable when the kernel wants the function back; `None` where it does not ask.
    fn gone(&self) -> Option<BorrowedFd<'_>>;
}
