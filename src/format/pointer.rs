//! Sectors 1 and 2: a position, a flag, and a text for people.

use super::{FormatError, Position};
use std::fmt;

/// The flag's byte: 1 is true, 2 is false.
pub const FLAG_AT: usize = 8;

/// First byte of the text.
pub const TEXT_AT: usize = 128;

/// Bytes of text, whatever the sector size.
pub const TEXT_BYTES: usize = 384;

/// Everything that a pointer sector says: what lies behind it in a larger one is zero.
pub const POINTER_BYTES: usize = TEXT_AT + TEXT_BYTES;

/// Whose pointer sector, and so who may write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Sector 1. Its flag is `suspend_ack`.
    Producer,
    /// Sector 2. Its flag is `suspend`.
    Consumer,
}

impl Side {
    /// Index of the pointer sector.
    pub const fn sector(self) -> u64 {
        match self {
            Self::Producer => 1,
            Self::Consumer => 2,
        }
    }

    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Producer => ("producer", "suspend_ack"),
            Self::Consumer => ("consumer", "suspend"),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words().0)
    }
}

/// What a pointer sector says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointerSector {
    /// Everything before it is published (producer) or free (consumer).
    pub position: Position,
    /// `suspend_ack` (producer) or `suspend` (consumer).
    pub flag: bool,
}

impl PointerSector {
    /// As `create` writes it.
    pub const START: Self = Self { position: Position::ZERO, flag: false };

    /// Judges the first nine bytes of a pointer sector.
    pub fn decode(side: Side, sector: &[u8]) -> Result<Self, FormatError> {
        let mut word = [0; 8];
        word.copy_from_slice(&sector[..8]);
        let value = u64::from_le_bytes(word);
        let position = Position::new(value).ok_or(FormatError::Misaligned { side, value })?;
        let flag = match sector[FLAG_AT] {
            1 => true,
            2 => false,
            value => return Err(FormatError::Flag { side, value }),
        };
        Ok(Self { position, flag })
    }

    /// Writes position, flag and text into `sector` (a whole one, or its first [`POINTER_BYTES`]), and leaves the extension area alone.
    /// `owner` is the queue's and the client's name; without it there is no text, as after `create`.
    pub fn encode(self, side: Side, owner: Option<(&str, &str)>, sector: &mut [u8]) {
        sector[..8].copy_from_slice(&self.position.get().to_le_bytes());
        sector[FLAG_AT] = if self.flag { 1 } else { 2 };
        let (text, behind) = sector[TEXT_AT..].split_at_mut(TEXT_BYTES);
        behind.fill(0);
        let mut rest = text;
        if let Some((queue, client)) = owner {
            let (who, flag) = side.words();
            let mut digits = itoa::Buffer::new();
            let position = digits.format(self.position.get());
            let set = if self.flag { "true" } else { "false" };
            // Piece by piece: the formatting machinery takes longer than all else that a push does.
            let words =
                [queue, " used by ", client, "; ", who, " = ", position, "; ", flag, " = ", set];
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

/// The text of a pointer sector, made safe to print: a peer wrote it, and may be hostile.
pub fn text_of(sector: &[u8]) -> String {
    let text = &sector[TEXT_AT..TEXT_AT + TEXT_BYTES];
    let end = text.iter().position(|&byte| byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(&text[..end])
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}
