//! Looking at the ring: the producer's own pointer sector, and what the consumer has freed.

use super::Producer;
use crate::device::RingDevice;
use crate::error::{Error, Result};
use crate::format::{PointerSector, Side};
use crate::handle::Handle;
use crate::history::{History, Memory, superseded};
use crate::rules::{Mark, plausible};
use std::io::IoSliceMut;

impl<D: RingDevice> Producer<D> {
    /// Starts at the ring's position, with nothing pushed.
    pub(super) fn begin(&mut self) -> Result<()> {
        let handle = &mut self.handle;
        let (consumer, freed) = handle.read_mark(Side::Consumer)?;
        let (producer, published) = handle.read_mark(Side::Producer)?;
        plausible(producer.position, consumer.position, handle.geometry)?;
        self.sector.copy_from_slice(handle.last_read());
        let published = Mark::resumed(
            Mark::new(producer.position, published),
            Mark::new(consumer.position, freed),
        );
        let head = self.stage.restart(published.position);
        read_data(handle, published.position.get(), head)?;
        // The pointers may not be durable yet, and all that follows relies on them.
        handle.flush()?;
        (self.start, self.published, self.pushed) = (published, published, published);
        self.exposed = published.position;
        self.ends.clear();
        (self.consumer, self.acknowledged) = (consumer, producer.flag);
        self.durable_consumer = consumer.position;
        Ok(())
    }

    /// Looks at the ring, acknowledges a change of its flag, and refuses if it is suspended.
    pub(super) fn running(&mut self) -> Result<()> {
        self.handle.device.ensure_role()?;
        self.look()?;
        self.acknowledge()?;
        if self.consumer.flag {
            return Err(Error::Suspended);
        }
        Ok(plausible(self.pushed.position, self.consumer.position, self.handle.geometry)?)
    }

    /// Reads both pointer sectors: the consumer's for its news, the producer's for another
    /// instance's writes.
    pub(super) fn look(&mut self) -> Result<()> {
        let first = Side::Producer.sector();
        self.handle.device.read(first, &mut [IoSliceMut::new(&mut self.heads)])?;
        if self.heads[..self.sector.len()] != self.sector[..] {
            self.reconcile()?;
        }
        self.consumer = PointerSector::decode(Side::Consumer, &self.heads[self.sector.len()..])?;
        Ok(())
    }

    /// Deals with a producer sector that differs from what this handle has written.
    fn reconcile(&mut self) -> Result<()> {
        let own = &self.heads[..self.sector.len()];
        let remembered = PointerSector::decode(Side::Producer, &self.sector)?.position;
        let claim = |sector: &[u8], position| self.handle.claim(Side::Producer, sector, position);
        let ring = PointerSector::decode(Side::Producer, own)?;
        let memory = Memory {
            start: self.start,
            sector: (remembered, claim(&self.sector, remembered)),
            published: self.published,
            ends: &self.ends,
        };
        match memory.compare(ring.position, claim(own, ring.position)) {
            // Its text differs, or its flag.
            History::Ours => {}
            History::Ahead => {
                // The instance that published it may have died before it was durable.
                self.exposed = self.pushed.position;
                self.handle.flush()?;
                self.published = self.pushed;
                self.stage.mark_written();
            }
            History::Parted(from) => {
                let to = self.pushed;
                self.handle.revive();
                self.begin()?;
                return Err(superseded(Side::Producer, ring.position, from, to));
            }
        }
        let size = self.sector.len();
        self.sector.copy_from_slice(&self.heads[..size]);
        self.acknowledged = ring.flag;
        Ok(())
    }

    /// Finds out why the write of the pointer to `mark` failed with `error`: because of the device,
    /// which is an error, or because another instance of the same state has moved the pointer. In
    /// the latter case, returns whether that instance has published `mark`; if not, the position is
    /// where this handle has left it, and only other bytes of the sector have changed.
    pub(super) fn contested(&mut self, mark: Mark, error: Error) -> Result<bool> {
        let first = Side::Producer.sector();
        let heads = &mut [IoSliceMut::new(&mut self.heads)];
        let read = self.handle.device.read(first, heads);
        let own = &self.heads[..self.sector.len()];
        if read.is_err() || own == &self.next[..] || own == &self.sector[..] {
            return Err(error);
        }
        let acknowledged = self.acknowledged;
        match self.reconcile() {
            Ok(()) if self.acknowledged == acknowledged => {
                self.handle.revive();
                Ok(self.published.position >= mark.position)
            }
            Err(e) if e.is_superseded() => Err(e),
            Ok(()) | Err(_) => Err(error),
        }
    }
}

/// Reads the sector of the data area that holds stream offset `at`.
pub(super) fn read_data<D: RingDevice>(
    handle: &Handle<D>,
    at: u64,
    sector: &mut [u8],
) -> Result<()> {
    let size = sector.len() as u64;
    let [extent, _] = handle.geometry.extents(handle.geometry.sector_floor(at), size);
    Ok(handle.device.read(extent.offset / size, &mut [IoSliceMut::new(sector)])?)
}
