//! Pushing in memory alone, which is what nearly every push is.

use super::Producer;
use crate::device::RingDevice;
use crate::format::{Position, framed_len};
use crate::item::Encode;

impl<D: RingDevice> Producer<D> {
    /// Pushes items if that takes memory alone: no look at the ring, and no write. Otherwise none
    /// is pushed.
    #[doc(hidden)] // for the package of Python, which has a lock to give up before it waits for a device
    pub fn push_in_memory<T: Encode>(&mut self, items: &[T]) -> Option<Position> {
        self.handle.attached().ok()?;
        self.push_at_once(items)
    }

    /// Stages items as they are encoded, without a look at the ring or a write. If not all of them
    /// fit that way, none is staged.
    pub(super) fn push_at_once<T: Encode>(&mut self, items: &[T]) -> Option<Position> {
        let capacity = self.handle.geometry.capacity().get();
        let used = self.pushed.position.since(self.consumer.position)?;
        if items.is_empty() || self.consumer.flag {
            return None;
        }
        let room = capacity.checked_sub(used)?.min(self.stage.room());
        let from = self.stage.end();
        let mut bytes = 0;
        for item in items {
            let payload = item.encode();
            let fits = |framed: &u64| bytes + framed <= room;
            let length = u32::try_from(payload.len()).ok();
            let framed = length.map(framed_len).filter(fits);
            let (Some(length), Some(framed)) = (length, framed) else {
                self.stage.forget(from);
                return None;
            };
            self.stage.put(&payload, length);
            bytes += framed;
        }
        let end = self.pushed.position.checked_add(bytes);
        match end {
            Some(end) => self.staged(from, items.len(), end),
            None => self.stage.forget(from),
        }
        end
    }
}
