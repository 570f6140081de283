//! One open handle on a simulated disk.

use crate::disk::Disk;
use shared_block_ring::device::{DeviceError, Operation};
use shared_block_ring::format::Geometry;
use shared_block_ring::{BlockDevice, RingDevice};
use std::io::{self, IoSlice, IoSliceMut};

/// A [`Disk`] as the ring library takes it. There are no locks: who may open it is the test's to
/// say.
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

/// Returns what makes the library's error of a failed transfer at `sector`, or of a failed flush.
pub(crate) fn failed(
    operation: Operation,
    sector: Option<u64>,
) -> impl Fn(io::Error) -> DeviceError {
    move |source| {
        let error = DeviceError::new("simulated disk", operation, source);
        sector.into_iter().fold(error, DeviceError::at_sector)
    }
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
        self.disk.read(first, &mut bytes).map_err(failed(Operation::Read, Some(first)))?;
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
        self.disk.write(first, &bytes).map_err(failed(Operation::Write, Some(first)))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.disk.flush().map_err(failed(Operation::Flush, None))
    }
}

impl RingDevice for DiskDevice {
    fn reads_are_free(&self) -> bool {
        true
    }
}
