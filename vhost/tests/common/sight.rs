//! A write to a region in plain memory, as the guard sees it.

use shared_block_ring::Position;
use shared_block_ring::format::Side;
use std::convert::Infallible;
use std::ops::Range;
use vhost_device_blockring::guard::Sight;

/// `bytes` are for the region's bytes from `start` on.
pub struct Write<'a> {
    pub region: &'a [u8],
    pub sector_size: usize,
    pub start: usize,
    pub bytes: &'a [u8],
}

/// As memory is indexed.
pub fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap()
}

impl Write<'_> {
    /// What is to be written to that part of the region.
    pub fn part(&self, range: &Range<u64>) -> &[u8] {
        &self.bytes[index(range.start) - self.start..index(range.end) - self.start]
    }

    fn sector(&self, sector: u64) -> &[u8] {
        &self.region[index(sector) * self.sector_size..][..self.sector_size]
    }
}

impl Sight for Write<'_> {
    type Fault = Infallible;

    fn head_sector(&self, sector: u64, bytes: &mut [u8]) {
        bytes.copy_from_slice(self.sector(sector));
    }

    fn position(&self, side: Side) -> Option<Position> {
        Position::new(u64::from_le_bytes(self.sector(side.sector())[..8].try_into().unwrap()))
    }

    fn word(&self, offset: u64) -> [u8; 4] {
        self.region[index(offset)..index(offset) + 4].try_into().unwrap()
    }

    fn written(&self, range: Range<u64>, private: &mut [u8]) -> Result<(), Infallible> {
        private.copy_from_slice(self.part(&range));
        Ok(())
    }

    fn same(&self, range: Range<u64>) -> Result<bool, Infallible> {
        Ok(self.part(&range) == &self.region[index(range.start)..index(range.end)])
    }
}
