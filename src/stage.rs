//! Items that were pushed and are not on the device yet: one piece of aligned memory, so that a
//! batch is one write.

use crate::device::AlignedBuf;
use crate::format::{Geometry, Position, crc32c};
use std::fmt;

/// Bytes staged before they are written, unless one item or batch is longer: a device's fixed cost
/// per request is small beside the transfer of so many, and they are still in the processor's cache
/// when they are written.
const STAGE_BYTES: usize = 256 * 1024;

/// Framed items from the start of a sector on: first what that sector holds already, then what is
/// to be written.
pub struct Stage {
    bytes: AlignedBuf,
    /// Bytes in a sector.
    size: usize,
    /// Most bytes to be staged at once.
    limit: usize,
    /// Stream offset of the first byte, which is the first of a sector.
    first: u64,
    /// End of what the device has.
    written: usize,
    /// End of what is staged.
    end: usize,
}

/// The bytes that are still to be written, or will be again, as range and checksum.
impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let crc = crc32c(&self.bytes[..self.end]);
        write!(f, "{}: {}..{} {crc:#010x}", self.first, self.written, self.end)
    }
}

impl Stage {
    /// Makes an empty stage at the start of the stream of a ring of that shape.
    pub fn new(geometry: Geometry) -> Self {
        let size = geometry.sector_size().bytes();
        let ring = usize::try_from(geometry.capacity().get()).unwrap_or(usize::MAX);
        let limit = STAGE_BYTES.min(ring.saturating_add(size));
        Self { bytes: AlignedBuf::zeroed(size), size, limit, first: 0, written: 0, end: 0 }
    }

    /// Starts over at `at`, and returns the bytes of the sector there, for the caller to fill in.
    pub fn restart(&mut self, at: Position) -> &mut [u8] {
        let size = self.size as u64;
        self.first = at.get() - at.get() % size;
        self.end = self.index(at.get());
        self.written = self.end;
        &mut self.bytes[..self.size]
    }

    /// Returns whether the device has everything.
    pub fn is_clean(&self) -> bool {
        self.written == self.end
    }

    /// Returns the bytes that can join what is staged before that is written.
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
        // Padding, if there is any, is in the last word.
        item[framed - 4..].copy_from_slice(&[0; 4]);
        item[..4].copy_from_slice(&length.to_le_bytes());
        item[4..4 + payload.len()].copy_from_slice(payload);
        self.end = end;
    }

    /// Makes room for an item of `length` bytes behind the others.
    pub fn make_room(&mut self, length: u32) {
        let end = self.end + (4 + length as usize).next_multiple_of(4);
        if end > self.bytes.len() {
            self.grow(end);
        }
    }

    /// The first `length` bytes of the payload that there is [room](Self::make_room) for.
    pub fn lent(&self, length: u32) -> &[u8] {
        &self.bytes[self.end + 4..][..length as usize]
    }

    /// As [`lent`](Self::lent), to be written.
    pub fn lent_mut(&mut self, length: u32) -> &mut [u8] {
        &mut self.bytes[self.end + 4..][..length as usize]
    }

    /// Frames the payload that was lent.
    pub fn put_lent(&mut self, length: u32) {
        let (start, len) = (self.end, 4 + length as usize);
        let item = &mut self.bytes[start..start + len.next_multiple_of(4)];
        item[..4].copy_from_slice(&length.to_le_bytes());
        item[len..].fill(0);
        self.end = start + item.len();
    }

    #[cold]
    fn grow(&mut self, end: usize) {
        self.bytes.resize(end.next_multiple_of(self.size).max(self.limit));
    }

    /// Returns the place of the next item, for [`since`](Self::since) and [`forget`](Self::forget).
    /// The place is valid until something is written.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Returns what was staged from `end` on, with framing.
    pub fn since(&self, end: usize) -> &[u8] {
        &self.bytes[end..self.end]
    }

    /// Forgets what was staged from `end` on.
    pub fn forget(&mut self, end: usize) {
        self.end = end;
    }

    /// Returns the sectors to write, and the stream offset at which they begin. `oldest` is called
    /// with the offset behind them, to fill in what the last sector holds behind the items.
    pub fn sectors<E>(
        &mut self,
        capacity: u64,
        oldest: impl FnOnce(u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<(u64, &[u8]), E> {
        let whole = self.end.next_multiple_of(self.size);
        // Only as many as lie in memory.
        let lap = usize::try_from(capacity).unwrap_or(usize::MAX);
        if whole > lap {
            // They end in the sector that they start in, one lap on. Their end goes in front: what
            // was there is consumed.
            self.bytes.copy_within(lap..self.end, 0);
            return Ok((self.first, &self.bytes[..lap]));
        }
        let behind = &mut self.bytes[self.end..whole];
        oldest(self.first + whole as u64, behind)?;
        Ok((self.first, &self.bytes[..whole]))
    }

    /// Notes that the device has everything. The sector in which it ends is kept: it is written
    /// again, with the next items.
    pub fn mark_written(&mut self) {
        let head = self.end - self.end % self.size;
        self.bytes.copy_within(head..self.end, 0);
        self.first += head as u64;
        self.end -= head;
        self.written = self.end;
    }

    /// Returns the index of a stream offset, which is bounded by what memory holds.
    fn index(&self, offset: u64) -> usize {
        usize::try_from(offset - self.first).unwrap_or(usize::MAX)
    }
}
