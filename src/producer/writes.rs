//! Writes to the ring: one for all staged items, and one of the pointer that publishes them.

use super::Producer;
use super::looks::read_data;
use crate::device::RingDevice;
use crate::error::{Error, Result};
use crate::format::{PointerSector, Side, put_slot};
use crate::rules::Mark;
use std::io::IoSlice;

impl<D: RingDevice> Producer<D> {
    /// Writes what is staged, unless the ring is known to be suspended or superseded.
    pub(super) fn write_staged(&mut self) -> Result<()> {
        self.handle.device.ensure_role()?;
        // A backend's guard refuses a pointer whose slots do not continue those that are there, and
        // so the pointer of another instance. Without slots nothing can tell them apart, so the
        // ring is looked at first; and so it is where that costs no request.
        let device = &self.handle.device;
        if self.consumer.flag || !self.handle.has_slots() || device.reads_are_free() {
            self.running()?;
        }
        match self.write_out() {
            Err(e) if e.is_refusal() => {
                Err(self.look().err().filter(Error::is_superseded).unwrap_or(e))
            }
            written => written,
        }
    }

    /// Writes the sectors that staged items touch.
    fn write_out(&mut self) -> Result<()> {
        if self.stage.is_clean() {
            return Ok(());
        }
        let capacity = self.handle.geometry.capacity().get();
        if self.pushed.position.get() > self.durable_consumer.get().saturating_add(capacity) {
            // The space ahead was freed by a consumer pointer that a power loss can still take
            // back: the bytes that are overwritten now would then count as unconsumed.
            self.handle.flush()?;
            self.durable_consumer = self.consumer.position;
        }
        let (handle, heads) = (&self.handle, &mut self.heads);
        let size = self.sector.len();
        let limit = self.durable_consumer.get().saturating_add(capacity);
        let (first, bytes) = self.stage.sectors(capacity, |last, behind| -> Result<()> {
            if last > limit {
                // Those bytes are unconsumed, or would be after a power loss.
                let oldest = &mut heads[..size];
                read_data(handle, last - size as u64, oldest)?;
                behind.copy_from_slice(&oldest[size - behind.len()..]);
            } else {
                behind.fill(0);
            }
            Ok(())
        })?;
        let mut rest = bytes;
        for extent in handle.geometry.extents(first, bytes.len() as u64) {
            let (now, later) = rest.split_at(usize::try_from(extent.len).unwrap_or(rest.len()));
            if !now.is_empty() {
                handle.device.write(extent.offset / size as u64, &[IoSlice::new(now)])?;
            }
            rest = later;
        }
        // Not earlier: after a failed write the next one starts from the same sector again.
        self.stage.mark_written();
        Ok(())
    }

    /// Writes the producer's flag if it differs from the consumer's.
    pub(super) fn acknowledge(&mut self) -> Result<()> {
        if self.consumer.flag == self.acknowledged {
            return Ok(());
        }
        self.publish(self.published, self.consumer.flag)
    }

    /// Writes the pointer with `mark` and the flag `suspended`: once more if other bytes of the
    /// sector had changed.
    pub(super) fn publish(&mut self, mark: Mark, suspended: bool) -> Result<()> {
        self.exposed = mark.position;
        if let Err(e) = self.write_pointer(mark, suspended) {
            if !e.is_refusal() {
                return Err(e);
            }
            if self.contested(mark, e)? {
                return Ok(());
            }
            // Once more, on top of the bytes that were there.
            self.write_pointer(mark, suspended)?;
        }
        std::mem::swap(&mut self.sector, &mut self.next);
        (self.published, self.acknowledged) = (mark, suspended);
        Ok(())
    }

    fn write_pointer(&mut self, mark: Mark, suspended: bool) -> Result<()> {
        self.next.copy_from_slice(&self.sector);
        let present = PointerSector::decode(Side::Producer, &self.next)?.position;
        if mark.position > present
            && let Some((uuid, slot)) = self.handle.slot(mark)
        {
            put_slot(uuid, &mut self.next, present, &slot);
        }
        let pointer = PointerSector { position: mark.position, flag: suspended };
        pointer.encode(Side::Producer, Some(self.handle.owner()), &mut self.next);
        self.handle.write_producer(&self.next)
    }
}
