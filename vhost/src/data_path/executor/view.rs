//! The region and a request as the guard sees them.

use crate::data_path::guard::{SECTOR_UNIT, View};
use crate::data_path::region::{BadAddress, Region};
use crate::data_path::request::{Request, Segment};
use shared_block_ring::Position;
use shared_block_ring::format::Side;
use std::ops::Range;
use vm_memory::GuestMemoryBackend;

/// Checks that every byte of a request's buffers is guest memory: nothing is stored of a request
/// with one that is not.
pub(super) fn check_buffers<M: GuestMemoryBackend>(
    mem: &M,
    request: &Request,
) -> Result<(), BadAddress> {
    let is_there = |segment: &Segment| mem.check_range(segment.address, segment.len);
    if request.data.iter().all(is_there) { Ok(()) } else { Err(BadAddress) }
}

/// The region, and a request's bytes in guest memory, as the guard sees them.
pub(super) struct RequestView<'a, M> {
    pub region: &'a Region,
    pub mem: &'a M,
    pub request: &'a Request,
    pub may_repeat: bool,
}

impl<M> RequestView<'_, M> {
    /// Converts device bytes to bytes of the request's data.
    pub fn part(&self, range: &Range<u64>) -> Range<u64> {
        // Within 64 bits: the guard has checked the request's range.
        let start = self.request.sector * SECTOR_UNIT;
        range.start - start..range.end - start
    }
}

impl<M: GuestMemoryBackend> View for RequestView<'_, M> {
    type Fault = BadAddress;

    fn control_sector(&self, index: u64, sector: &mut [u8]) {
        self.region.read_control_sector(index, sector);
    }

    fn position(&self, side: Side) -> Option<Position> {
        self.region.position(side)
    }

    fn word(&self, offset: u64) -> [u8; 4] {
        self.region.word(offset)
    }

    fn requested(&self, range: Range<u64>, copy: &mut [u8]) -> Result<(), BadAddress> {
        Region::from_guest(self.mem, &self.request.data, self.part(&range), copy)
    }

    fn is_unchanged(&self, range: Range<u64>) -> Result<bool, BadAddress> {
        self.region.same(self.mem, &self.request.data, self.part(&range), range.start)
    }

    fn may_repeat(&self) -> bool {
        self.may_repeat
    }
}
