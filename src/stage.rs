//! What was pushed and is not on the device yet: one piece of aligned memory, so that a batch leaves as one write.

use crate::device::AlignedBuf;
use crate::format::{Geometry, Position, crc32c};
use std::fmt;

/// Bytes staged before they are written out, unless one item or batch is longer: a device's fixed cost per request is small beside
/// the transfer of so many, and they still lie in the processor's cache when they are written.
const STAGE_BYTES: usize = 256 * 1024;

/// Framed items from a sector's start on: in front what that sector holds already, then what is to be written.
pub struct Stage {
    bytes: AlignedBuf,
    /// Bytes in a sector.
    size: usize,
    /// Bytes that are to lie here at once.
    limit: usize,
    /// Stream offset of the first byte, which begins a sector.
    first: u64,
    /// Behind what the device has, and behind what is staged.
    written: usize,
    end: usize,
}

/// What tells two of them apart: the bytes that are still to be written, or will be again.
impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crc = crc32c(&self.bytes[..self.end]);
        write!(f, "{}: {}..{} {crc:#010x}", self.first, self.written, self.end)
    }
}

impl Stage {
    /// Nothing, at the start of the stream of a ring of that shape.
    pub fn new(geometry: Geometry) -> Self {
        let size = geometry.sector_size().bytes();
        let ring = usize::try_from(geometry.capacity().get()).unwrap_or(usize::MAX);
        let limit = STAGE_BYTES.min(ring.saturating_add(size));
        Self { bytes: AlignedBuf::zeroed(size), size, limit, first: 0, written: 0, end: 0 }
    }

    /// Starts over at `at`. What the sector there holds is for the caller to fill in.
    pub fn restart(&mut self, at: Position) -> &mut [u8] {
        let size = self.size as u64;
        self.first = at.get() - at.get() % size;
        self.end = self.index(at.get());
        self.written = self.end;
        &mut self.bytes[..self.size]
    }

    /// Whether the device has everything.
    pub fn is_clean(&self) -> bool {
        self.written == self.end
    }

    /// Bytes that join what is staged; more of them wait until that is written.
    pub fn room(&self) -> u64 {
        if self.is_clean() { u64::MAX } else { self.limit.saturating_sub(self.end) as u64 }
    }

    /// Frames an item of `length` bytes behind the others.
    #[inline]
    pub fn put(&mut self, payload: &[u8], length: u32) {
        let framed = (4 + payload.len()).next_multiple_of(4);
        let (start, end) = (self.end, self.end + framed);
        if end > self.bytes.len() {
            self.grow(end);
        }
        let item = &mut self.bytes[start..end];
        // The padding, if there is any, is in the last of these words.
        item[framed - 4..].copy_from_slice(&[0; 4]);
        item[..4].copy_from_slice(&length.to_le_bytes());
        item[4..4 + payload.len()].copy_from_slice(payload);
        self.end = end;
    }

    #[cold]
    fn grow(&mut self, end: usize) {
        self.bytes.resize(end.next_multiple_of(self.size).max(self.limit));
    }

    /// Where the next item goes: for [`since`](Self::since) and [`forget`](Self::forget), until something is written.
    pub fn end(&self) -> usize {
        self.end
    }

    /// What was staged from there on, with framing.
    pub fn since(&self, end: usize) -> &[u8] {
        &self.bytes[end..self.end]
    }

    /// Forgets what was staged from there on.
    pub fn forget(&mut self, end: usize) {
        self.end = end;
    }

    /// The sectors to write, and where in the stream they begin. `oldest` fills in what the last one holds behind the items.
    pub fn sectors<E>(
        &mut self,
        capacity: u64,
        oldest: impl FnOnce(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(u64, &[u8]), E> {
        let whole = self.end.next_multiple_of(self.size);
        // Only as many as lie in memory.
        let lap = usize::try_from(capacity).unwrap_or(usize::MAX);
        if whole > lap {
            // They end in the sector they start in, one lap on: their end goes in front, where the head was consumed.
            self.bytes.copy_within(lap..self.end, 0);
            return Ok((self.first, &self.bytes[..lap]));
        }
        let behind = &mut self.bytes[self.end..whole];
        oldest(self.first + whole as u64, behind)?;
        Ok((self.first, &self.bytes[..whole]))
    }

    /// The device has everything. The sector that it ends in is kept: it will be written again, with what comes next.
    pub fn settle(&mut self) {
        let head = self.end - self.end % self.size;
        self.bytes.copy_within(head..self.end, 0);
        self.first += head as u64;
        self.end -= head;
        self.written = self.end;
    }

    /// Offsets of this stream from the first byte on, as far as memory reaches.
    fn index(&self, offset: u64) -> usize {
        usize::try_from(offset - self.first).unwrap_or(usize::MAX)
    }
}
