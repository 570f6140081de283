//! The way to a device: how it gets to know of the queue, and how the two wake each other.

use super::{DmaMemory, Layout};
use std::io;
use std::os::fd::BorrowedFd;

/// What a device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes in a sector.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Writes are durable only after a flush.
    pub flush: bool,
    /// Chains may be indirect.
    pub indirect: bool,
    /// Notifications and interrupts by index.
    pub event_idx: bool,
}

/// Why a device that went away is not driven again.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// It is not there, or not yet able to serve: a later look may find it.
    #[error(transparent)]
    ForNow(io::Error),
    /// It does not come back, or as another one.
    #[error(transparent)]
    ForGood(io::Error),
}

/// A virtio block device that is not driven yet, and then the one whose queue runs.
pub trait Transport: Send {
    /// What the device says of itself.
    fn disk(&self) -> Disk;

    /// At least `bytes` of memory that the device can be given.
    fn allocate(&self, bytes: u64) -> io::Result<DmaMemory>;

    /// Gives the memory to the device, and starts the queue that lies in it.
    fn start(&mut self, memory: &DmaMemory, layout: Layout) -> io::Result<()>;

    /// Tells the device that there is something in the queue.
    fn notify(&self) -> io::Result<()>;

    /// Readable after an interrupt of the device.
    fn interrupt(&self) -> BorrowedFd<'_>;

    /// Forgets interrupts that came.
    fn acknowledge(&self);

    /// Makes [`interrupt`](Self::interrupt) readable, for another thread of ours that waits for what was found here.
    fn pass_on(&self);

    /// Readable when the device is gone.
    fn gone(&self) -> BorrowedFd<'_>;

    /// Looks once for a device that has gone, and has it go on with the queue in `memory` from the index `base` on.
    /// [`interrupt`](Self::interrupt) and [`gone`](Self::gone) stay the same descriptors, whoever waits on them.
    fn resume(&mut self, memory: &DmaMemory, layout: Layout, base: u16) -> Result<(), Away> {
        let _ = (memory, layout, base);
        Err(Away::ForGood(io::Error::new(io::ErrorKind::NotConnected, "the device is gone")))
    }
}
