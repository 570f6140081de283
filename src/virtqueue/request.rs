//! What is asked of a block device, and what it answers.

use std::io;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

/// The I/O priority class *idle*, as `ioprio_set(2)` has it: our backend holds such a read of the other side's pointer until there
/// is something new in it.
pub const IDLE: u32 = 3 << 13;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// From the disk into the slot's buffer.
    Read,
    /// From the slot's buffer onto the disk.
    Write,
    /// Make durable what was written.
    Flush,
    /// The disk's serial number into the slot's buffer: 20 bytes.
    GetId,
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub operation: Operation,
    /// Where, in units of 512 bytes.
    pub sector: u64,
    /// Of the slot's buffer, from its start: a multiple of the disk's sector, none for a flush.
    pub bytes: u32,
    /// As `ioprio_set(2)` has it; 0 for none, or [`IDLE`].
    pub priority: u32,
}

/// A request's place. Its buffer is the caller's from [`BlockQueue::slot`](super::BlockQueue::slot) to [`BlockQueue::submit`](super::BlockQueue::submit), and from its completion until
/// the slot is given out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot(pub(super) u16);

/// A request that was carried out, or refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// Where it was.
    pub slot: Slot,
    /// `VIRTIO_BLK_S_*`.
    pub status: u8,
}

impl Completion {
    /// The status as an error of the operating system, as the kernel's driver translates it.
    pub fn result(self) -> io::Result<()> {
        match u32::from(self.status) {
            VIRTIO_BLK_S_OK => Ok(()),
            VIRTIO_BLK_S_UNSUPP => Err(io::ErrorKind::Unsupported.into()),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }
}
