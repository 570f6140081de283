//! What the ring says: where it stands, what the consumer has freed, whether somebody else has moved it.

use super::Producer;
use crate::device::BlockDevice;
use crate::error::{Error, Result};
use crate::format::{PointerSector, Side};
use crate::handle::Handle;
use crate::history::{History, Memory, superseded};
use crate::rules::{Mark, plausible};
use std::io::IoSliceMut;

impl<D: BlockDevice> Producer<D> {
    /// Starts where the ring stands, with nothing pushed.
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
        // What we read may not be durable yet, and we are about to rely on it.
        handle.flush()?;
        (self.start, self.published, self.pushed) = (published, published, published);
        self.ends.clear();
        (self.consumer, self.acknowledged) = (consumer, producer.flag);
        self.durable_consumer = consumer.position;
        Ok(())
    }

    /// Looks, acknowledges a change, and goes on if the ring is not suspended.
    pub(super) fn running(&mut self) -> Result<()> {
        self.look()?;
        self.acknowledge()?;
        if self.consumer.flag {
            return Err(Error::Suspended);
        }
        Ok(plausible(self.pushed.position, self.consumer.position, self.handle.geometry)?)
    }

    /// Sees what the consumer says, with a look at our own pointer.
    pub(super) fn look(&mut self) -> Result<()> {
        let first = Side::Producer.sector();
        self.handle.device.read(first, &mut [IoSliceMut::new(&mut self.heads)])?;
        if self.heads[..self.sector.len()] != self.sector[..] {
            self.reconcile()?;
        }
        self.consumer = PointerSector::decode(Side::Consumer, &self.heads[self.sector.len()..])?;
        Ok(())
    }

    /// Deals with a pointer sector that is not as we have written it.
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
            // Another text, or an acknowledgement.
            History::Ours => {}
            History::Ahead => {
                // Whoever has published it may have died before it was durable.
                self.handle.flush()?;
                self.published = self.pushed;
                self.stage.settle();
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

    /// What `error` has come of, which a write of our pointer to `mark` has met: the device, or another life of ours. Whether that has
    /// written what we wanted to; if not, its pointer is where we have left it, and only what is beside it was not.
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

/// Fills a sector with what the device has of the data at a place in the stream.
pub(super) fn read_data<D: BlockDevice>(
    handle: &Handle<D>,
    at: u64,
    sector: &mut [u8],
) -> Result<()> {
    let size = sector.len() as u64;
    let [extent, _] = handle.geometry.extents(handle.geometry.sector_floor(at), size);
    Ok(handle.device.read(extent.offset / size, &mut [IoSliceMut::new(sector)])?)
}
