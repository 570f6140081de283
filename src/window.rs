//! Copies of published stream bytes.

use crate::device::{AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::format::{HEADER_BYTES, Header, Position, Tally, crc32c_append};
use std::io::IoSliceMut;

/// Bytes read at a time, unless an item is longer: enough to make a read's fixed cost small, few
/// enough to stay in the processor's cache.
pub(crate) const WINDOW_BYTES: u64 = 256 * 1024;

/// An item of a ring, lent until the next call of its consumer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Popped<'a> {
    /// The position of the next item: to pop from, or to advance to.
    pub next: Position,
    /// The payload.
    pub bytes: &'a [u8],
}

/// A copy of whole sectors. Published bytes do not change before the consumer advances over them:
/// what was read once need not be read again.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: AlignedBuf,
    /// Stream offset of the first byte.
    start: u64,
    /// Stream offset behind the last valid byte.
    end: u64,
}

impl Window {
    pub fn empty() -> Self {
        Self { bytes: AlignedBuf::zeroed(0), start: 0, end: 0 }
    }

    /// Reads the item at `from < producer`, if it is not in the window.
    pub fn load<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        from: Position,
        producer: Position,
    ) -> Result<Header> {
        self.cover(device, from.get(), from.get() + HEADER_BYTES, producer.get())?;
        let mut word = [0; 4];
        word.copy_from_slice(&self.bytes[self.index(from.get())..][..4]);
        let header = Header::decode(from, word, producer)?;
        self.cover(device, from.get(), header.next.get(), producer.get())?;
        Ok(header)
    }

    /// Returns the item that [`load`](Self::load) has just read.
    pub fn lend(&self, header: Header) -> Popped<'_> {
        let start = self.index(header.payload_start());
        let end = self.index(header.payload_start() + u64::from(header.length));
        Popped { next: header.next, bytes: &self.bytes[start..end] }
    }

    /// Returns what the window holds of `from..to`, from `from` on.
    pub fn rest(&self, from: Position, to: Position) -> &[u8] {
        let end = self.end.min(to.get());
        if self.start <= from.get() && from.get() < end {
            &self.bytes[self.index(from.get())..self.index(end)]
        } else {
            &[]
        }
    }

    /// Reads the published bytes from `from < producer` on, as many as one read takes.
    pub fn cover_some<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        from: Position,
        producer: Position,
    ) -> Result<()> {
        self.cover(device, from.get(), from.get() + HEADER_BYTES, producer.get())
    }

    /// Returns the stream offsets that the window holds.
    pub fn extent(&self) -> (u64, u64) {
        (self.start, self.end)
    }

    /// Returns whether the window holds all of `from..to`.
    pub fn covers(&self, from: Position, to: Position) -> bool {
        self.start <= from.get() && to.get() <= self.end
    }

    /// Returns the checksum of the stream before `to`, where `crc` is that before `from`.
    pub fn digest<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        from: Position,
        to: Position,
        mut crc: u32,
    ) -> Result<u32> {
        let mut at = from.get();
        while at < to.get() {
            self.cover(device, at, at + HEADER_BYTES, to.get())?;
            let end = self.end.min(to.get());
            crc = crc32c_append(crc, &self.bytes[self.index(at)..self.index(end)]);
            at = end;
        }
        Ok(crc)
    }

    /// Returns the tally at `to`, where an item must end, from the `tally` at `from`.
    pub fn walk<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        from: Position,
        to: Position,
        mut tally: Tally,
    ) -> Result<Tally> {
        let mut at = from;
        while at < to {
            let header = match self.load(device, at, to) {
                Err(Error::Format(_)) => {
                    return Err(Error::InvalidAdvance { to, from, limit: at });
                }
                other => other?,
            };
            let item = self.index(at.get())..self.index(header.next.get());
            tally = tally.extend(1, &self.bytes[item]);
            at = header.next;
        }
        Ok(tally)
    }

    /// Returns the index of a stream offset that the window holds.
    fn index(&self, offset: u64) -> usize {
        usize::try_from(offset - self.start).unwrap_or(usize::MAX)
    }

    /// Reads sectors, unless the window holds the published stream bytes `from..to` already. It
    /// holds at most a ring's capacity and two sectors.
    fn cover<D: BlockDevice + ?Sized>(
        &mut self,
        device: &D,
        from: u64,
        to: u64,
        producer: u64,
    ) -> Result<()> {
        if self.start <= from && to <= self.end {
            return Ok(());
        }
        let geometry = device.geometry();
        let size = u64::from(geometry.sector_size().get());
        let start = geometry.sector_floor(from);
        let end = geometry.sector_ceil(to.max(producer.min(start + WINDOW_BYTES)));
        (self.start, self.end) = (start, start);
        self.bytes.resize(usize::try_from(end - start).unwrap_or(usize::MAX));
        let mut rest = &mut self.bytes[..];
        let mut at = start;
        while !rest.is_empty() {
            // Up to the wrap point at a time: a full ring's first and last sector can be the same
            // one.
            let run = (geometry.capacity().get() - geometry.data_offset(at)).min(rest.len() as u64);
            let (now, later) = rest.split_at_mut(usize::try_from(run).unwrap_or(usize::MAX));
            let sector = (geometry.data_start() + geometry.data_offset(at)) / size;
            device.read(sector, &mut [IoSliceMut::new(now)])?;
            rest = later;
            at += run;
        }
        self.end = end.min(producer);
        Ok(())
    }
}
