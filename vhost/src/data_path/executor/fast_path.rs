//! Requests that need no judgement but that of their place.

use super::{Executor, SECTOR_UNIT};
use crate::data_path::request::Kind;
use crate::data_path::request_state::Answer;
use std::ops::Range;
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

impl Executor {
    /// Returns the device offset of a read or a write of `len` bytes at `sector` that can be
    /// [carried out](Self::carry_out) at once: one that concerns data alone and, where it is a
    /// write, free bytes alone. Nothing but its place has to be judged then.
    #[inline]
    pub fn admit(&mut self, kind: Kind, sector: u64, len: u64) -> Option<u64> {
        let range = self.guard.range(sector, len).ok()?;
        let is_data = range.start >= self.region.geometry().data_start();
        (is_data && (kind == Kind::Read || self.may_store(&range))).then_some(range.start)
    }

    /// Prefetches what a write of `len` bytes at `sector` will store to.
    #[inline]
    pub fn prefetch(&self, sector: u64, len: u64) {
        self.region.prefetch_to_write(sector.wrapping_mul(SECTOR_UNIT), len);
    }

    /// Whether all of `range`, which is in the data area, may be stored.
    #[inline]
    fn may_store(&mut self, range: &Range<u64>) -> bool {
        let Self { service, guard, region, guest, published, .. } = self;
        if service.read_only || !service.guarded {
            return !service.read_only;
        }
        let Some(host) = region.position(guard.host()) else { return false };
        let (producer, consumer) = guard.positions(guest.pointer.position, host);
        guard.is_free(range, producer, consumer, published)
    }

    /// Carries out a read or a write that was admitted for device offset `start`.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "`data` then need not be copied to be passed")]
    pub fn carry_out<B: BitmapSlice>(
        &self,
        kind: Kind,
        data: &VolatileSlice<'_, B>,
        start: u64,
    ) -> Answer {
        let len = data.len() as u64;
        if kind == Kind::Read {
            self.region.load_slice(start, data);
            self.counters.reads.count();
            self.counters.read_bytes.add(len);
            // MAX_BYTES bounds it.
            Answer::ok(u32::try_from(len).unwrap_or(u32::MAX))
        } else {
            self.region.store_slice(data, start);
            self.counters.writes.count();
            self.counters.written_bytes.add(len);
            Answer::ok(0)
        }
    }
}
