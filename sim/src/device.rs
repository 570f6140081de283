//! One opening of a disk.

use crate::disk::Disk;
use shared_block_ring::BlockDevice;
use shared_block_ring::device::DeviceError;
use shared_block_ring::format::Geometry;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// A [`Disk`] as the ring library takes it. There are no locks: who may open it is the test's to say.
#[derive(Clone)]
pub struct DiskDevice {
    disk: Disk,
}

impl DiskDevice {
    /// Opens `disk`.
    pub fn new(disk: &Disk) -> Self {
        Self { disk: disk.clone() }
    }
}

/// What the library is told of a failure.
pub(crate) fn failed(
    operation: &'static str,
    sector: Option<u64>,
) -> impl Fn(io::Error) -> DeviceError {
    move |source| DeviceError { name: "simulated disk".to_owned(), operation, sector, source }
}

impl BlockDevice for DiskDevice {
    fn name(&self) -> &'static str {
        "simulated disk"
    }

    fn geometry(&self) -> Geometry {
        self.disk.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let mut bytes = vec![0; bufs.iter().map(|buf| buf.len()).sum()];
        self.disk.read(first, &mut bytes).map_err(failed("read", Some(first)))?;
        let mut rest = &bytes[..];
        for buf in bufs {
            let (now, later) = rest.split_at(buf.len());
            buf.copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.disk.write(first, &bytes).map_err(failed("write", Some(first)))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.disk.flush().map_err(failed("flush", None))
    }

    fn reads_are_free(&self) -> bool {
        true
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
