//! Sectors 1 and 2: a position, a flag, and a text for people.

use super::{FormatError, Position, u64_at};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The byte that holds the flag: 1 is true, 2 is false.
pub const FLAG_AT: usize = 8;

/// The first byte of the text.
pub const TEXT_AT: usize = 128;

/// Bytes of text, whatever the sector size.
pub const TEXT_BYTES: usize = 384;

/// Bytes of a pointer sector that carry meaning; the rest of a larger sector is zero.
pub const POINTER_BYTES: usize = TEXT_AT + TEXT_BYTES;

/// A side of the ring, which owns one pointer sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The producer: sector 1, whose flag is `suspend_ack`.
    Producer,
    /// The consumer: sector 2, whose flag is `suspend`.
    Consumer,
}

impl Side {
    /// Returns the index of the pointer sector.
    pub const fn sector(self) -> u64 {
        match self {
            Self::Producer => 1,
            Self::Consumer => 2,
        }
    }

    /// Returns the names of the side and of its flag.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Producer => ("producer", "suspend_ack"),
            Self::Consumer => ("consumer", "suspend"),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.names().0)
    }
}

/// The position and flag of a pointer sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PointerSector {
    /// Everything before it is published (producer) or free (consumer).
    pub position: Position,
    /// `suspend_ack` (producer) or `suspend` (consumer).
    pub flag: bool,
}

/// Sets the flag `suspend` in the consumer's pointer sector, and leaves everything else as it is.
pub fn encode_suspend(sector: &mut [u8], suspend: bool) {
    encode_flag(sector, suspend);
}

fn encode_flag(sector: &mut [u8], flag: bool) {
    sector[FLAG_AT] = if flag { 1 } else { 2 };
}

impl PointerSector {
    /// The pointer sector of a new ring.
    pub const START: Self = Self { position: Position::ZERO, flag: false };

    /// Returns the position that a pointer sector's first eight bytes hold, whatever the rest of it
    /// holds; `None` when that is not a multiple of 4.
    #[doc(hidden)] // for the guard of `vhost-device-blockring`
    pub fn position_in(sector: &[u8]) -> Option<Position> {
        Position::new(u64_at(sector, 0))
    }

    /// Decodes the first nine bytes of a pointer sector.
    ///
    /// # Errors
    /// [`FormatError::Misaligned`] and [`FormatError::Flag`].
    pub fn decode(side: Side, sector: &[u8]) -> Result<Self, FormatError> {
        let position = Self::position_in(sector)
            .ok_or_else(|| FormatError::Misaligned { side, value: u64_at(sector, 0) })?;
        let flag = match sector[FLAG_AT] {
            1 => true,
            2 => false,
            value => return Err(FormatError::Flag { side, value }),
        };
        Ok(Self { position, flag })
    }

    /// Writes position, flag and text into `sector` (a whole one, or its first [`POINTER_BYTES`]),
    /// and leaves the extension area alone. `owner` is the queue's and the client's name; without
    /// it the text is empty, as after `create`.
    pub fn encode(self, side: Side, owner: Option<(&str, &str)>, sector: &mut [u8]) {
        sector[..8].copy_from_slice(&self.position.get().to_le_bytes());
        encode_flag(sector, self.flag);
        let (text, behind) = sector[TEXT_AT..].split_at_mut(TEXT_BYTES);
        behind.fill(0);
        let mut rest = text;
        if let Some((queue, client)) = owner {
            let (name, flag) = side.names();
            let mut digits = itoa::Buffer::new();
            let position = digits.format(self.position.get());
            let set = if self.flag { "true" } else { "false" };
            // Piece by piece: the formatting machinery takes longer than all else that a push does.
            let words =
                [queue, " used by ", client, "; ", name, " = ", position, "; ", flag, " = ", set];
            for word in words {
                // What does not fit is left out.
                let (now, later) = rest.split_at_mut(word.len().min(rest.len()));
                now.copy_from_slice(&word.as_bytes()[..now.len()]);
                rest = later;
            }
        }
        rest.fill(0);
    }
}

/// Returns the text of a pointer sector, made safe to print: a peer wrote it, and may be hostile.
pub fn text_of(sector: &[u8]) -> String {
    let text = &sector[TEXT_AT..TEXT_AT + TEXT_BYTES];
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end])
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}
