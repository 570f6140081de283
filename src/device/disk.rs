//! A disk: what holds the sectors of a ring.

use super::DeviceError;
use crate::format::Geometry;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

/// A disk: anything that holds sectors.
///
/// A new kind of device is these five methods and an empty [`RingDevice`](super::RingDevice), which
/// is what a ring asks beyond a disk:
///
/// ```
/// use shared_block_ring::device::{DeviceError, Operation};
/// use shared_block_ring::format::{Geometry, SectorSize};
/// use shared_block_ring::{BlockDevice, Producer, RingDevice, create};
/// use std::io::{ErrorKind, IoSlice, IoSliceMut};
/// use std::ops::Range;
/// use std::sync::{Arc, Mutex};
///
/// /// A disk in this process's memory.
/// struct Ram(Geometry, Mutex<Vec<u8>>);
///
/// impl Ram {
///     fn range(
///         &self,
///         first: u64,
///         len: usize,
///         operation: Operation,
///     ) -> Result<Range<usize>, DeviceError> {
///         let start = first as usize * self.0.sector_size().bytes();
///         if start + len > self.0.total_bytes() as usize {
///             let beyond = ErrorKind::UnexpectedEof;
///             return Err(DeviceError::new(self.name(), operation, beyond).at_sector(first));
///         }
///         Ok(start..start + len)
///     }
/// }
///
/// impl BlockDevice for Ram {
///     fn name(&self) -> &str {
///         "ram"
///     }
///
///     fn geometry(&self) -> Geometry {
///         self.0
///     }
///
///     fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
///         let len = bufs.iter().map(|buf| buf.len()).sum();
///         let mut at = self.range(first, len, Operation::Read)?.start;
///         for buf in bufs {
///             let len = buf.len();
///             buf.copy_from_slice(&self.1.lock().unwrap()[at..at + len]);
///             at += len;
///         }
///         Ok(())
///     }
///
///     fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
///         let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
///         let range = self.range(first, bytes.len(), Operation::Write)?;
///         self.1.lock().unwrap()[range].copy_from_slice(&bytes);
///         Ok(())
///     }
///
///     fn flush(&self) -> Result<(), DeviceError> {
///         Ok(()) // memory is as durable as it gets at once
///     }
/// }
///
/// impl RingDevice for Ram {}
///
/// let geometry = Geometry::new(SectorSize::DEFAULT, 64)?;
/// let disk = Arc::new(Ram(geometry, Mutex::new(vec![0; 64 * 512])));
/// create(&*disk, Default::default())?;
/// let mut producer = Producer::attach(Arc::clone(&disk), "logs", "web-1")?;
/// let position = producer.push("hello")?;
/// producer.advance(position)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// Transfers are of whole sectors within the disk. Two of them that touch one sector are never
/// under way at the same time from one handle, but a reader can meet a writer's half-written
/// sector; a ring allows for that.
pub trait BlockDevice: Send {
    /// Returns the device's name for messages, as the user gave it.
    fn name(&self) -> &str;

    /// Returns the device's shape, which is large enough for a ring and does not change.
    fn geometry(&self) -> Geometry;

    /// Fills `bufs` from sector `first` on.
    ///
    /// # Errors
    /// The operating system's, and [`UnexpectedEof`](std::io::ErrorKind::UnexpectedEof) for sectors
    /// beyond the end. `bufs` then hold anything.
    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError>;

    /// Writes `bufs` to sector `first` and on. They are visible to other readers when this returns,
    /// and durable after [`flush`](Self::flush).
    ///
    /// # Errors
    /// The operating system's. Each sector then holds its old bytes, its new ones or a mixture.
    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError>;

    /// Makes durable everything that was written before.
    ///
    /// # Errors
    /// The operating system's. Nothing is known then of what was written since the last flush that
    /// succeeded; the handle that called this accepts nothing more.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Returns the alignment, in bytes, of a buffer's address and length at which a transfer needs
    /// no copy within the device: a power of two.
    ///
    /// Buffers of any other alignment are correct, and slower. What the library transfers lies in
    /// an [`AlignedBuf`](super::AlignedBuf).
    fn alignment(&self) -> usize {
        1
    }
}

/// Implements the trait for a pointer to a device.
macro_rules! disk_behind_pointer {
    ({ $($head:tt)* }) => {
        $($head)* {
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

            fn alignment(&self) -> usize {
                (**self).alignment()
            }
        }
    };
}

disk_behind_pointer!({ impl<D: BlockDevice + ?Sized> BlockDevice for Box<D> });
disk_behind_pointer!({ impl<D: BlockDevice + Sync + ?Sized> BlockDevice for Arc<D> });
