//! Published stream bytes in memory.

use crate::device::{AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::format::{HEADER_BYTES, Header, Position, Tally, crc32c_append};
use std::io::IoSliceMut;

/// Read at a time, unless an item is longer: large enough to make a read's fixed cost small, small enough to stay in cache.
pub(crate) const WINDOW_BYTES: u64 = 256 * 1024;

/// An item, lent until the next call: where it lies, or as a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Popped<'a> {
    /// Where the next item starts: pop from there, or advance to there.
    pub next: Position,
    /// The payload.
    pub bytes: &'a [u8],
}

/// A copy of whole sectors. Published bytes cannot change before the consumer advances over them: what was read once
/// need not be read again.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: AlignedBuf,
    /// Stream offset of the first byte, and of the first one behind what is valid.
    start: u64,
    end: u64,
}

impl Window {
    pub fn empty() -> Self {
        Self { bytes: AlignedBuf::zeroed(0), start: 0, end: 0 }
    }

    /// Brings the item at `from < producer` into the window.
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

    /// The payload of an item that [`load`](Self::load) has just brought in.
    pub fn lend(&self, header: Header) -> Popped<'_> {
        let start = self.index(header.payload_start());
        let end = self.index(header.payload_start() + u64::from(header.length));
        Popped { next: header.next, bytes: &self.bytes[start..end] }
    }

    /// What is here of `from..to` from `from` on.
    pub fn rest(&self, from: Position, to: Position) -> &[u8] {
        let end = self.end.min(to.get());
        if self.start <= from.get() && from.get() < end {
            &self.bytes[self.index(from.get())..self.index(end)]
        } else {
            &[]
        }
    }

    /// What is here, as stream offsets.
    pub fn extent(&self) -> (u64, u64) {
        (self.start, self.end)
    }

    /// Whether all of `from..to` is here.
    pub fn covers(&self, from: Position, to: Position) -> bool {
        self.start <= from.get() && to.get() <= self.end
    }

    /// The checksum `crc` of the stream before `from`, continued to `to`.
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

    /// What is known of the stream before `from`, continued over the items up to `to`, where one must end.
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
                    return Err(Error::Advance { to, from, limit: at });
                }
                other => other?,
            };
            let item = self.index(at.get())..self.index(header.next.get());
            tally = tally.extend(1, &self.bytes[item]);
            at = header.next;
        }
        Ok(tally)
    }

    /// An offset that `cover` has brought into memory, hence one that memory can index.
    fn index(&self, offset: u64) -> usize {
        usize::try_from(offset - self.start).unwrap_or(usize::MAX)
    }

    /// Reads sectors so that published stream bytes `from..to` are here. At most a ring's capacity and two sectors are held.
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
            // Up to the wrap point at a time: a full ring's first and last sector can be the same one.
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
