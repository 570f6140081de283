//! A position in the stream of a ring.

use std::fmt;
use std::str::FromStr;

/// A position in a ring's stream: bytes since the ring was created, a multiple of 4 that only
/// grows.
///
/// Its text form is the plain decimal number and its serialised form that number, so that a
/// position survives a log line or a database.
///
/// ```
/// use shared_block_ring::Position;
/// let position: Position = "61992".parse()?;
/// assert_eq!(position.to_string(), "61992");
/// assert!("61993".parse::<Position>().is_err());
/// assert_eq!(Position::try_from(61992), Ok(position));
/// # Ok::<(), shared_block_ring::format::ParsePositionError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position(u64);

impl Position {
    /// The position at which every stream starts.
    pub const ZERO: Self = Self(0);

    /// The position at which every stream ends: 2^63, since an OCaml peer's positions are signed.
    /// No ring gets there by use, which takes 292 years at a gigabyte a second; a pointer beyond it
    /// is damaged. No place in a ring is so far behind it that the sum of the two overflows.
    pub const END: Self = Self(1 << 63);

    /// Makes a position of a number of bytes; `None` when that is not a multiple of 4.
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_multiple_of(4) { Some(Self(bytes)) } else { None }
    }

    /// Returns the bytes since the ring was created.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the position `bytes` (a multiple of 4) further on; `None` past [`END`](Self::END).
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).and_then(Self::new).filter(|&position| position <= Self::END)
    }

    /// Returns the bytes from `earlier` to `self`; `None` when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Option<u64> {
        self.0.checked_sub(earlier.0)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<Position> for u64 {
    fn from(position: Position) -> Self {
        position.0
    }
}

impl TryFrom<u64> for Position {
    type Error = ParsePositionError;

    fn try_from(bytes: u64) -> Result<Self, ParsePositionError> {
        Self::new(bytes).ok_or_else(|| ParsePositionError(bytes.to_string()))
    }
}

/// The error of a text or number that is not a position.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
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

impl<'de> serde::Deserialize<'de> for Position {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = u64::deserialize(deserializer)?;
        Self::new(bytes).ok_or_else(|| {
            let unexpected = serde::de::Unexpected::Unsigned(bytes);
            serde::de::Error::invalid_value(unexpected, &"a multiple of 4")
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn position_survives_serialisation_and_refuses_what_is_none() {
        let position = Position::new(61992).unwrap();
        let text = serde_json::to_string(&position).unwrap();
        assert_eq!(text, "61992");
        assert_eq!(serde_json::from_str::<Position>(&text).unwrap(), position);
        for wrong in ["61993", "-4", "\"61992\"", "4.0"] {
            assert!(serde_json::from_str::<Position>(wrong).is_err(), "{wrong}");
        }
    }
}
