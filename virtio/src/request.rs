//! Requests to a block device, and their answers.

use crate::block::BlockQueue;
use std::fmt;
use std::io;
use virtio_bindings::bindings::virtio_blk::{VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

/// Bytes of a device's serial number.
const ID_BYTES: u32 = 20;

/// The I/O priority class *idle*, as `ioprio_set(2)` has it. A device may serve such a request
/// whenever it likes.
pub const IDLE: u32 = 3 << 13;

/// What a request asks for (virtio 1.3, 5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    Read,
    Write,
    Flush,
    GetId,
}

/// A request. Sectors are counted in units of 512 bytes, whatever the device's sector size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    pub(super) kind: Kind,
    pub(super) sector: u64,
    /// Bytes of the slot's buffer that it is about.
    pub(super) bytes: u32,
    /// As `ioprio_set(2)` has it; 0 for none.
    pub(super) priority: u32,
}

impl Request {
    /// Reads `bytes`, a multiple of the device's sector size, from `sector` on into the slot's
    /// buffer.
    pub const fn read(sector: u64, bytes: u32) -> Self {
        Self { kind: Kind::Read, sector, bytes, priority: 0 }
    }

    /// Writes the first `bytes` of the slot's buffer, a multiple of the device's sector size, to
    /// `sector` and on.
    pub const fn write(sector: u64, bytes: u32) -> Self {
        Self { kind: Kind::Write, sector, bytes, priority: 0 }
    }

    /// Makes durable what was written by requests that are done.
    pub const fn flush() -> Self {
        Self { kind: Kind::Flush, sector: 0, bytes: 0, priority: 0 }
    }

    /// Reads the device's serial number into the slot's buffer: 20 bytes, padded with zeros.
    pub const fn serial_number() -> Self {
        Self { kind: Kind::GetId, sector: 0, bytes: ID_BYTES, priority: 0 }
    }

    /// Gives the request a priority, as `ioprio_set(2)` has it: [`IDLE`], for example.
    #[must_use]
    pub const fn with_priority(self, priority: u32) -> Self {
        Self { priority, ..self }
    }
}

/// A request that is in flight: two of one driver at a time have different ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(u16);

impl RequestId {
    pub(super) fn of_slot(slot: u16) -> Self {
        Self(slot)
    }
}

/// A free place for a request, with a buffer of [`Shape::buffer_bytes`](super::Shape::buffer_bytes)
/// bytes.
///
/// The device has no access to the buffer before [`submit`](Self::submit), which takes the slot: a
/// buffer that the device may read or write cannot be named. A slot that is dropped stays free.
///
/// ```compile_fail,E0382
/// # use virtio_blk_driver::{BlockDriver, Request};
/// # fn f(driver: &mut BlockDriver) {
/// let mut slot = driver.slot().unwrap();
/// slot.submit(Request::write(0, 512));
/// slot.fill(&[7; 512]); // The device may be reading the buffer.
/// # }
/// ```
#[must_use = "a slot that is dropped stays free"]
pub struct Slot<'a> {
    queue: &'a mut BlockQueue,
    index: u16,
}

impl<'a> Slot<'a> {
    pub(super) fn new(queue: &'a mut BlockQueue, index: u16) -> Self {
        Self { queue, index }
    }

    /// Copies `bytes` into the start of the buffer. The rest of the buffer stays as the last
    /// request left it.
    ///
    /// # Panics
    /// If there are more of them than the buffer holds.
    pub fn fill(&mut self, bytes: &[u8]) {
        self.queue.fill(self.index, bytes);
    }

    /// Makes a request of the slot. The device does not see it before
    /// [`publish`](super::BlockDriver::publish).
    ///
    /// # Panics
    /// If the request is about more bytes than the buffer holds.
    pub fn submit(self, request: Request) -> RequestId {
        self.queue.submit(self.index, request)
    }
}

impl fmt::Debug for Slot<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Slot").field(&self.index).finish()
    }
}

/// A request that the device is done with: carried out, or refused.
///
/// Its buffer can be read while this exists. Then its slot is free for the next request, which is
/// why nothing can be submitted meanwhile:
///
/// ```compile_fail,E0499
/// # use virtio_blk_driver::{BlockDriver, Request};
/// # fn f(driver: &mut BlockDriver) {
/// let done = driver.reap().unwrap().unwrap();
/// driver.slot().unwrap().submit(Request::read(0, 512));
/// done.read(&mut [0; 512]); // The device may be writing to the buffer.
/// # }
/// ```
#[must_use = "a request may have failed"]
pub struct Completion<'a> {
    queue: &'a BlockQueue,
    slot: u16,
    status: u8,
}

impl<'a> Completion<'a> {
    pub(super) fn new(queue: &'a BlockQueue, slot: u16, status: u8) -> Self {
        Self { queue, slot, status }
    }

    /// Returns which request it is.
    pub fn id(&self) -> RequestId {
        RequestId(self.slot)
    }

    /// Returns the device's answer, `VIRTIO_BLK_S_*`.
    pub fn status(&self) -> u8 {
        self.status
    }

    /// Returns the answer as an error of the operating system, as the kernel's driver translates
    /// it.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported), or `EIO`.
    pub fn result(&self) -> io::Result<()> {
        match u32::from(self.status) {
            VIRTIO_BLK_S_OK => Ok(()),
            VIRTIO_BLK_S_UNSUPP => Err(io::ErrorKind::Unsupported.into()),
            _ => Err(io::Error::from_raw_os_error(libc::EIO)),
        }
    }

    /// Copies bytes out of the start of the buffer. They are the device's word: of a request that
    /// failed, or of a device that lies, they may be anything that an earlier request left there.
    ///
    /// # Panics
    /// If `bytes` is longer than the buffer.
    pub fn read(&self, bytes: &mut [u8]) {
        self.queue.read(self.slot, bytes);
    }
}

impl fmt::Debug for Completion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completion")
            .field("slot", &self.slot)
            .field("status", &self.status)
            .finish()
    }
}
