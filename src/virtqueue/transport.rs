//! The way to a device: how it gets to know of the queue, and how the two wake each other.

use super::{Disk, DmaMemory, Layout};
use std::io;
use std::os::fd::BorrowedFd;

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

    /// Readable after an interrupt of the device; `None` where none can be had, and whoever waits has to look.
    fn interrupt(&self) -> Option<BorrowedFd<'_>>;

    /// Forgets interrupts that came.
    fn acknowledge(&self);

    /// Makes [`interrupt`](Self::interrupt), if there is one, readable, for another thread of ours that waits for what was found here.
    fn pass_on(&self);

    /// Readable when the device is gone; `None` where nobody tells.
    fn gone(&self) -> Option<BorrowedFd<'_>>;

    /// Whether the device is still there, as far as that can be asked: it is while it does not answer for long.
    fn present(&self) -> io::Result<()>;

    /// Looks once for a device that has gone, and has it go on with the queue in `memory` from the index `base` on.
    /// [`interrupt`](Self::interrupt) and [`gone`](Self::gone) stay the same descriptors, whoever waits on them.
    fn resume(&mut self, memory: &DmaMemory, layout: Layout, base: u16) -> Result<(), Away> {
        let _ = (memory, layout, base);
        Err(Away::ForGood(io::Error::new(io::ErrorKind::NotConnected, "the device is gone")))
    }
}
