//! A device to which everything but its sectors is taken away.

use shared_block_ring::BlockDevice;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::Geometry;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// Has no locks, and changes a pointer sector as one whole.
pub struct Unlocked<D>(pub D);

impl<D: BlockDevice> BlockDevice for Unlocked<D> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.0.read(first, bufs)
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        self.0.write(first, bufs)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush()
    }

    fn reads_are_free(&self) -> bool {
        self.0.reads_are_free()
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
