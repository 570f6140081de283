//! A place in the stream of a ring.

use std::fmt;
use std::str::FromStr;

/// Bytes since the ring was created: a multiple of 4 that only ever grows.
///
/// Its text form is the plain decimal number, so that a position survives a log line or a database.
///
/// ```
/// use shared_block_ring::Position;
/// let position: Position = "61992".parse()?;
/// assert_eq!(position.to_string(), "61992");
/// assert!("61993".parse::<Position>().is_err());
/// # Ok::<(), shared_block_ring::format::ParsePositionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// Where every stream starts.
    pub const ZERO: Self = Self(0);

    /// `None` when `bytes` is not a multiple of 4.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_multiple_of(4) { Some(Self(bytes)) } else { None }
    }

    /// Bytes since the ring was created.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `bytes` (a multiple of 4) further on; `None` past the end of the 64-bit stream.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).and_then(Self::new)
    }

    /// Bytes from `earlier` to `self`; `None` when `earlier` is later.
    pub fn since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text is not a position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a position: a decimal multiple of 4 is")]
pub struct ParsePositionError(String);

impl FromStr for Position {
    type Err = ParsePositionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| ParsePositionError(text.to_owned()))
    }
}

impl serde::Serialize for Position {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}
