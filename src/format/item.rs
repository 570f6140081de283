//! Framing of items: a little-endian length, the payload, padding to the next multiple of 4.

use super::{FormatError, Position};

/// Bytes in front of every payload.
pub const HEADER_BYTES: u64 = 4;

/// Returns the bytes that a payload of `len` bytes takes in the stream, with header and padding.
pub const fn framed_len(len: u32) -> u64 {
    (len as u64 + HEADER_BYTES).next_multiple_of(4)
}

/// A verified item header: where the payload lies, and where the next item starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Header {
    /// The position at which the item starts.
    pub at: Position,
    /// Bytes of payload.
    pub length: u32,
    /// The position at which the next item starts.
    pub next: Position,
}

impl Header {
    /// Decodes the four bytes at `at` of a stream that is published up to `producer`.
    ///
    /// The length is bounded by what is published, hence by the ring's capacity, before anything is
    /// sized by it.
    ///
    /// # Errors
    /// [`FormatError::ItemLength`] for an item that would reach beyond `producer`.
    pub fn decode(at: Position, bytes: [u8; 4], producer: Position) -> Result<Self, FormatError> {
        let length = u32::from_le_bytes(bytes);
        match at.checked_add(framed_len(length)) {
            Some(next) if next <= producer => Ok(Self { at, length, next }),
            _ => Err(FormatError::ItemLength { at, length, producer }),
        }
    }

    /// Returns the stream offset of the payload's first byte.
    pub fn payload_start(self) -> u64 {
        self.at.get() + HEADER_BYTES
    }
}
