//! Devices: the only I/O of the library.

pub mod bell;
mod buffer;
mod file;
mod idle;
mod lock;
mod mapped;
mod mapping;
mod memory;
mod serial;
mod unix;
mod virtio;

pub use buffer::AlignedBuf;
pub use file::{FileDevice, OpenOptions};
pub use lock::{LockRange, RangeLock, holder, holder_of};
pub use mapped::MappedDevice;
pub use mapping::Mapping;
pub(crate) use mapping::Word;
pub use memory::{Memory, Orders};
pub use serial::find_by_serial;
pub use unix::UnixDevice;
pub use virtio::VirtioDevice;

use crate::format::{Geometry, Position, Side};
use crate::wait::Woken;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

/// What failed, where, and the operating system's error.
#[derive(Debug, thiserror::Error)]
#[error("{name}: cannot {operation}{}: {source}", sector.map(|s| format!(" sector {s}")).unwrap_or_default())]
pub struct DeviceError {
    /// The device, as the user named it.
    pub name: String,
    /// `read`, `write`, `flush`, `open`, `lock`.
    pub operation: &'static str,
    /// First sector of the transfer.
    pub sector: Option<u64>,
    /// The operating system's error.
    pub source: io::Error,
}

/// Anything that holds sectors.
///
/// Transfers are of whole sectors; a device that needs aligned memory copies what is not ([`AlignedBuf`] spares it that).
pub trait BlockDevice: Send {
    /// As the user named it.
    fn name(&self) -> &str;

    /// Its shape, large enough for a ring.
    fn geometry(&self) -> Geometry;

    /// Fills `bufs` from sector `first` on.
    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError>;

    /// Writes `bufs` to sector `first` and on. Visible to other readers when it returns, durable after [`flush`](Self::flush).
    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError>;

    /// Makes durable what was written before.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Lends `from..to` of the ring's stream where they lie, without a copy.
    ///
    /// `None` unless all of this holds: nobody changes what is published before the consumer frees it; we are that consumer; the
    /// ring's own pointers say that `from..to` is published and not freed; and it does not straddle the wrap point. While the loan lasts nothing else can be done with the
    /// device: neither can space be freed, nor can the device look for another backend.
    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        let _ = (from, to);
        None
    }

    /// The position in a pointer sector by a single load, for those who look for a change of it all the time; `None` where that takes
    /// reading the sector.
    fn glance(&self, side: Side) -> Option<u64> {
        let _ = side;
        None
    }

    /// Reads a pointer sector, at least what is in front of its text.
    fn read_head(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        self.read(side.sector(), &mut [IoSliceMut::new(sector)])
    }

    /// What advisory locks are taken on; `None` where nobody else can open the device.
    fn lock_file(&self) -> Option<BorrowedFd<'_>>;

    /// Gives back what the device holds for its role, if the device itself holds it.
    fn detached(&self) {}

    /// Whether a read is a copy within this machine's memory, and so nothing to be saved.
    fn reads_are_free(&self) -> bool {
        false
    }

    /// How to sleep until the other side moves; `None` where that has to be polled for.
    fn sleeper(&self) -> Option<&dyn Sleep> {
        None
    }

    /// How to wait in a read of the other side's pointer; `None` where that is of no use.
    fn held_reads(&self) -> Option<&dyn HeldReads> {
        None
    }

    /// Changes a pointer sector that more than one process may write: whatever `edit` leaves alone stays as the others made it. It is
    /// given the sector, or its first [`POINTER_BYTES`](crate::format::POINTER_BYTES).
    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        let _exclusive = RangeLock::acquire(self, LockRange::Edit(side))?;
        let mut sector = AlignedBuf::zeroed(self.geometry().sector_size().bytes());
        self.read(side.sector(), &mut [IoSliceMut::new(&mut sector)])?;
        edit(&mut sector);
        self.write(side.sector(), &[IoSlice::new(&sector)])
    }
}

/// A device whose other side wakes us.
pub trait Sleep {
    /// Says that we are about to sleep. The caller looks once more before it does.
    fn announce(&self);

    /// Sleeps until the other side has moved, an interrupt is readable, or the deadline has passed.
    fn sleep(
        &self,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Woken, DeviceError>;
}

/// A device that may be served by one who answers a read of the lowest priority only when it tells something new.
pub trait HeldReads {
    /// Reads `peer`'s pointer sector with the lowest priority and waits for the answer, unless an interrupt is readable or
    /// the deadline passes before; the read goes on then, and is waited for the next time: there is never more than one.
    ///
    /// What it tells is not for the caller, who looks himself then. The other side may move in between, unseen by this
    /// read: a device that holds reads compares with what the last one was told.
    fn await_answer(
        &self,
        peer: Side,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Answer, DeviceError>;
}

/// How a read that may be held ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// With something else than the last one.
    News,
    /// With the same, or with nothing.
    Same,
    /// Not yet.
    Woken(Woken),
    /// Such reads cannot be made here.
    Unable,
}

impl Answer {
    /// Whether `sector` is another than the last one.
    fn of(sector: &[u8], last: &mut Option<Vec<u8>>) -> Self {
        if last.as_deref() == Some(sector) {
            return Self::Same;
        }
        last.get_or_insert_default().splice(.., sector.iter().copied());
        Self::News
    }
}

/// A pointer to a device is one.
macro_rules! pointer_to_device {
    ({ $($bounds:tt)* } $($own:item)*) => {
        $($bounds)* {
            $($own)*

            fn name(&self) -> &str {
                (**self).name()
            }

            fn geometry(&self) -> Geometry {
                (**self).geometry()
            }

            fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
                (**self).read(first, bufs)
            }

            fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
                (**self).write(first, bufs)
            }

            fn flush(&self) -> Result<(), DeviceError> {
                (**self).flush()
            }

            fn glance(&self, side: Side) -> Option<u64> {
                (**self).glance(side)
            }

            fn read_head(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
                (**self).read_head(side, sector)
            }

            fn lock_file(&self) -> Option<BorrowedFd<'_>> {
                (**self).lock_file()
            }

            fn detached(&self) {
                (**self).detached();
            }

            fn reads_are_free(&self) -> bool {
                (**self).reads_are_free()
            }

            fn sleeper(&self) -> Option<&dyn Sleep> {
                (**self).sleeper()
            }

            fn held_reads(&self) -> Option<&dyn HeldReads> {
                (**self).held_reads()
            }

            fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
                (**self).edit_pointer(side, edit)
            }
        }
    };
}

pointer_to_device!({ impl<D: BlockDevice + ?Sized> BlockDevice for Box<D> }
    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        (**self).lend(from, to)
    }
);
// It lends nothing: others may use the device meanwhile.
pointer_to_device!({ impl<D: BlockDevice + Sync + ?Sized> BlockDevice for Arc<D> });
