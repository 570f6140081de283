//! The end of an entry in the journal export format: the empty line behind its fields. A field is a
//! line `NAME=value`, or a name alone, and behind it the value's length in eight bytes, the value,
//! which can have line feeds, and a line feed.

/// A search for the end of an entry that arrives, and is taken, in pieces. Each byte is looked at
/// once.
#[derive(Default)]
pub struct Scan {
    /// Bytes that were looked at, from the first one that was not taken.
    seen: usize,
    state: State,
    /// Whether those bytes end with the entry.
    is_over: bool,
}

/// The place of the next byte.
enum State {
    /// In a line, behind this many of its bytes, one of which may have been the sign of equality.
    Line { length: u64, has_value: bool },
    /// In the length of a value, behind these bytes.
    Length { bytes: [u8; 8], count: usize },
    /// In a value, in front of this many bytes of it and its line feed.
    Value { left: u64 },
}

impl Default for State {
    fn default() -> Self {
        Self::Line { length: 0, has_value: false }
    }
}

impl Scan {
    /// Returns the number of bytes up to the end of the entry, if `bytes` has it.
    pub fn end_in(&mut self, bytes: &[u8]) -> Option<usize> {
        while !self.is_over {
            let rest = bytes.get(self.seen..).filter(|rest| !rest.is_empty())?;
            let (used, is_end) = self.state.step(rest);
            self.seen += used;
            self.is_over = is_end;
        }
        Some(self.seen)
    }

    /// Notes that the first bytes of the entry were taken, and not all.
    pub fn pass(&mut self, count: usize) {
        self.seen = self.seen.saturating_sub(count);
    }
}

impl State {
    /// Looks at the next bytes, of which there is one at least, and returns how many that were, and
    /// whether the entry ends with them.
    fn step(&mut self, rest: &[u8]) -> (usize, bool) {
        match self {
            Self::Line { length, has_value } => {
                let end = memchr::memchr(b'\n', rest);
                let part = &rest[..end.unwrap_or(rest.len())];
                *length += part.len() as u64;
                *has_value |= memchr::memchr(b'=', part).is_some();
                if end.is_none() {
                    return (part.len(), false);
                }
                let is_end = *length == 0;
                *self = if is_end || *has_value {
                    Self::default()
                } else {
                    Self::Length { bytes: [0; 8], count: 0 }
                };
                (part.len() + 1, is_end)
            }
            Self::Length { bytes, count } => {
                bytes[*count] = rest[0];
                *count += 1;
                if *count == bytes.len() {
                    *self = Self::Value { left: u64::from_le_bytes(*bytes).saturating_add(1) };
                }
                (1, false)
            }
            Self::Value { left } => {
                let used = usize::try_from(*left).map_or(rest.len(), |left| left.min(rest.len()));
                *left -= used as u64;
                if *left == 0 {
                    *self = Self::default();
                }
                (used, false)
            }
        }
    }
}
