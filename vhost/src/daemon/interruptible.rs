//! A device whose reads end at a limit or a stop: a walk over many GiB of a slow disk must not keep
//! a process from stopping.

use shared_block_ring::device::{BlockDevice, DeviceError, Operation, RingDevice};
use shared_block_ring::format::{Geometry, Side};
use shared_block_ring::wait::Limits;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

/// Bytes read between two looks at the limits: a multiple of every sector size.
const CHUNK: usize = 256 * 1024;

/// A device that is read within limits.
pub struct Interruptible<'a, D> {
    device: D,
    limits: &'a Limits<'a>,
}

impl<'a, D: BlockDevice> Interruptible<'a, D> {
    /// Reads `device` within `limits`.
    pub fn new(device: D, limits: &'a Limits<'a>) -> Self {
        Self { device, limits }
    }
}

impl<D: BlockDevice> BlockDevice for Interruptible<'_, D> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    /// Reads piece by piece.
    ///
    /// # Errors
    /// The device's, and those of [`Limits::check_now`].
    fn read(&self, mut first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        let size = self.geometry().sector_size().bytes();
        for piece in bufs.iter_mut().flat_map(|buf| buf.chunks_mut(CHUNK)) {
            self.limits
                .check_now()
                .map_err(|e| DeviceError::new(self.name(), Operation::Read, e).at_sector(first))?;
            let sectors = piece.len() / size;
            self.device.read(first, &mut [IoSliceMut::new(piece)])?;
            first += sectors as u64;
        }
        Ok(())
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        self.device.write(first, bufs)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }
}

impl<D: RingDevice> RingDevice for Interruptible<'_, D> {
    fn peek_position(&self, side: Side) -> Option<u64> {
        self.device.peek_position(side)
    }

    fn read_pointer(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read_pointer(side, sector)
    }

    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        self.device.lock_file()
    }

    fn reads_are_free(&self) -> bool {
        self.device.reads_are_free()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use shared_block_ring::device::MappedDevice;
    use shared_block_ring::format::SectorSize;
    use std::cell::Cell;
    use std::io::{ErrorKind, Write};
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;

    /// Asks for the stop when it is read for the second time.
    struct Asking(MappedDevice, Cell<u32>, UnixStream);

    impl BlockDevice for Asking {
        fn name(&self) -> &str {
            self.0.name()
        }

        fn geometry(&self) -> Geometry {
            self.0.geometry()
        }

        fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
            self.1.set(self.1.get() + 1);
            if self.1.get() == 2 {
                (&self.2).write_all(&[0]).unwrap();
            }
            self.0.read(first, bufs)
        }

        fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
            self.0.write(first, bufs)
        }

        fn flush(&self) -> Result<(), DeviceError> {
            self.0.flush()
        }
    }

    impl RingDevice for Asking {}

    #[test]
    fn read_ends_with_the_piece_in_which_the_stop_was_asked_for() {
        let bytes = 4 * CHUNK;
        let geometry = Geometry::new(SectorSize::DEFAULT, bytes as u64 / 512).unwrap();
        let file = tempfile::tempfile().unwrap();
        let written: Vec<u8> = (0..bytes).map(|at| u8::try_from(at / 512 % 251).unwrap()).collect();
        file.write_all_at(&written, 0).unwrap();
        let (stop, asker) = UnixStream::pair().unwrap();
        let mapped = MappedDevice::new(file, "ring", geometry).unwrap();
        let stop = [stop.as_fd()];
        let limits = Limits::default().or_on(&stop);
        let device = Interruptible::new(Asking(mapped, Cell::new(0), asker), &limits);
        let (mut one, mut two) = (vec![0; CHUNK + 512], vec![0; 2 * CHUNK]);
        let mut bufs = [IoSliceMut::new(&mut one), IoSliceMut::new(&mut two)];
        let error = device.read(3, &mut bufs).unwrap_err();
        assert_eq!(error.source.kind(), ErrorKind::Interrupted);
        assert_eq!((device.device.1.get(), error.sector), (2, Some(3 + 513)));
        assert!(one == written[3 * 512..][..one.len()] && two.iter().all(|&byte| byte == 0));
    }
}
