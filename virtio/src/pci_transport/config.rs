//! The configuration space of a PCI function.

use crate::{Error, Refusal, Step};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of it that every function has.
pub const CONFIG_BYTES: usize = 256;

/// The command register, and its bits.
const COMMAND: u64 = 4;
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const NO_LINE_INTERRUPT: u16 = 1 << 10;

/// A part of a file.
#[derive(Debug)]
pub struct Area {
    /// The file.
    pub file: File,
    /// Where the part starts.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// The configuration space.
#[derive(Debug)]
pub struct Config(pub Area);

impl Config {
    /// Reads the first bytes. They are the kernel's answer: what is there when the device is gone
    /// is ones.
    pub fn read(&self) -> Result<[u8; CONFIG_BYTES], Error> {
        let mut bytes = [0; CONFIG_BYTES];
        let read = self.0.file.read_exact_at(&mut bytes, self.0.offset);
        read.map_err(|e| match e.kind() {
            // The kernel shows the first quarter of it to a process without the privilege.
            io::ErrorKind::UnexpectedEof => Refusal::NotRoot.into(),
            _ => Step::Configure.failed()(e),
        })?;
        Ok(bytes)
    }

    /// Lets the processor reach the device's registers, and keeps the device from memory and from
    /// interrupting by its line.
    pub fn disable_device(&self) -> Result<(), Error> {
        self.set(MEMORY | NO_LINE_INTERRUPT, BUS_MASTER).map_err(Step::Configure.failed())
    }

    /// Lets the device reach memory, and interrupt by its line or not.
    pub fn enable_device(&self, line: bool) -> Result<(), Error> {
        let (set, clear) = if line { (0, NO_LINE_INTERRUPT) } else { (NO_LINE_INTERRUPT, 0) };
        self.set(MEMORY | BUS_MASTER | set, clear).map_err(Step::Configure.failed())
    }

    /// Lets the device interrupt by its line again, which the kernel has switched off to end the
    /// interrupt.
    pub fn enable_line(&self) -> io::Result<()> {
        self.set(0, NO_LINE_INTERRUPT)
    }

    fn set(&self, set: u16, clear: u16) -> io::Result<()> {
        let at = self.0.offset + COMMAND;
        let mut bytes = [0; 2];
        self.0.file.read_exact_at(&mut bytes, at)?;
        let command = (u16::from_le_bytes(bytes) | set) & !clear;
        self.0.file.write_all_at(&command.to_le_bytes(), at)
    }
}
