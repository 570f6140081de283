//! A guest's write to a region in plain memory, as the guard judges it.

use shared_block_ring::Position;
use shared_block_ring::format::Side;
use std::convert::Infallible;
use std::ops::Range;
use vhost_device_blockring::data_path::guard::View;

/// A write of `bytes` to the region from byte `start` on.
pub struct Write<'a> {
    pub region: &'a [u8],
    pub sector_size: usize,
    pub start: usize,
    pub bytes: &'a [u8],
    /// Whether the write may be a repeated one.
    pub may_repeat: bool,
}

/// Converts a device offset to an index of memory.
pub fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Write<'_> {
    /// Returns the bytes that are to be written to that part of the region.
    pub fn part(&self, range: &Range<u64>) -> &[u8] {
        &self.bytes[index(range.start) - self.start..index(range.end) - self.start]
    }

    fn sector(&self, sector: u64) -> &[u8] {
        &self.region[index(sector) * self.sector_size..][..self.sector_size]
    }
}

impl View for Write<'_> {
    type Fault = Infallible;

    fn control_sector(&self, sector: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.sector(sector));
    }

    fn position(&self, side: Side) -> Option<Position> {
        Position::new(u64::from_le_bytes(self.sector(side.sector())[..8].try_into().unwrap()))
    }

    fn word(&self, offset: u64) -> [u8; 4] {
        self.region[index(offset)..index(offset) + 4].try_into().unwrap()
    }

    fn requested(&self, range: Range<u64>, copy: &mut [u8]) -> Result<(), Infallible> {
        copy.copy_from_slice(self.part(&range));
        Ok(())
    }

    fn is_unchanged(&self, range: Range<u64>) -> Result<bool, Infallible> {
        Ok(self.part(&range) == &self.region[index(range.start)..index(range.end)])
    }

    fn may_repeat(&self) -> bool {
        self.may_repeat
    }
}
