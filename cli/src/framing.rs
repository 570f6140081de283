//! How items are separated in a stream of bytes.

use super::journald::Scan;

/// How items are separated on standard input and standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Framing {
    /// Each line is an item, without its line feed (a carriage return before that is part of the
    /// item)
    Lines,
    /// Each item follows its length in bytes, a little-endian 32-bit number
    Length,
    /// Each item ends with a zero byte, which is not part of it
    Nul,
    /// The whole input is one item, even if it is empty; items are written with nothing between
    /// them
    Whole,
    /// Each item is an entry of the journal in the export format of journalctl, with the empty line
    /// that ends it; items are written with nothing between them
    Export,
}

/// What `consume` does with an item that contains the byte that ends items in the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnSeparator {
    /// End with an error, and leave the item in the ring
    Fail,
    /// Write that byte as \n (lines) or \0 (nul), and each backslash, in all items, as \\
    Escape,
}

/// An item that cannot be written in a framing, because a reader would see two items.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguous {
    #[error("it contains a {name}, which ends an item with --framing {framing}")]
    Separator { name: &'static str, framing: &'static str },
    #[error("it is not an entry of the journal, as --framing export has them")]
    NoEntry,
}

impl Ambiguous {
    /// Returns how the item can be written.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Separator { .. } => "choose --framing length, or --on-separator escape",
            Self::NoEntry => "choose --framing length",
        }
    }
}

impl Framing {
    /// Returns the byte that ends an item, if the framing has one.
    pub fn delimiter(self) -> Option<u8> {
        match self {
            Self::Lines => Some(b'\n'),
            Self::Nul => Some(0),
            Self::Length | Self::Whole | Self::Export => None,
        }
    }

    /// Appends an item and its framing to the output.
    ///
    /// # Errors
    /// The item contains the separator, and `on_separator` is `Fail`, or it is not one entry.
    /// Nothing was appended.
    pub fn join(
        self,
        item: &[u8],
        on_separator: OnSeparator,
        output: &mut Vec<u8>,
    ) -> Result<(), Ambiguous> {
        let Some(separator) = self.delimiter() else {
            self.verify(item)?;
            output.extend_from_slice(&self.head(item.len() as u64));
            output.extend_from_slice(item);
            return Ok(());
        };
        match on_separator {
            OnSeparator::Fail => {
                self.verify(item)?;
                output.extend_from_slice(item);
            }
            OnSeparator::Escape => escape(item, separator, output),
        }
        output.push(separator);
        Ok(())
    }

    /// Verifies that a reader takes the bytes of an item for one item.
    ///
    /// # Errors
    /// The bytes contain the separator, or are not one entry.
    pub fn verify(self, bytes: &[u8]) -> Result<(), Ambiguous> {
        let found = |separator| memchr::memchr(separator, bytes).is_some();
        match self {
            Self::Lines if found(b'\n') => {
                Err(Ambiguous::Separator { name: "line feed", framing: "lines" })
            }
            Self::Nul if found(0) => {
                Err(Ambiguous::Separator { name: "zero byte", framing: "nul" })
            }
            Self::Export if Scan::default().end_in(bytes) != Some(bytes.len()) => {
                Err(Ambiguous::NoEntry)
            }
            _ => Ok(()),
        }
    }

    /// Returns the framing in front of an item of `length` bytes.
    pub fn head(self, length: u64) -> Vec<u8> {
        match self {
            // The length of an item is a u32 in the ring and in the input.
            Self::Length => u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes().to_vec(),
            Self::Lines | Self::Nul | Self::Whole | Self::Export => Vec::new(),
        }
    }
}

/// Appends `item` with escapes in the place of `separator` and of backslashes, so that it can be
/// read back.
fn escape(item: &[u8], separator: u8, output: &mut Vec<u8>) {
    let letter = if separator == 0 { b'0' } else { b'n' };
    for &byte in item {
        if byte == separator {
            output.extend_from_slice(&[b'\\', letter]);
        } else if byte == b'\\' {
            output.extend_from_slice(b"\\\\");
        } else {
            output.push(byte);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn joined(framing: Framing, how: OnSeparator, item: &[u8]) -> Result<Vec<u8>, Ambiguous> {
        let mut bytes = Vec::new();
        framing.join(item, how, &mut bytes).map(|()| bytes)
    }

    #[test]
    fn join_refuses_items_that_a_reader_would_take_for_two() {
        for (framing, item) in [(Framing::Lines, &b"a\nb"[..]), (Framing::Nul, b"a\0b")] {
            assert!(joined(framing, OnSeparator::Fail, item).is_err());
        }
        for (framing, item) in [(Framing::Nul, &b"a\nb"[..]), (Framing::Lines, b"a\0b\r")] {
            let expected = [item, &[framing.delimiter().unwrap()]].concat();
            assert_eq!(joined(framing, OnSeparator::Fail, item), Ok(expected));
        }
        let item = b"\n\0";
        assert_eq!(joined(Framing::Whole, OnSeparator::Fail, item), Ok(item.to_vec()));
        assert_eq!(joined(Framing::Length, OnSeparator::Fail, item).unwrap(), b"\x02\0\0\0\n\0");
        let entry = b"A=1\nB\n\x01\0\0\0\0\0\0\0\n\n\n".to_vec();
        assert_eq!(joined(Framing::Export, OnSeparator::Fail, &entry), Ok(entry.clone()));
        for item in [&entry[6..], &entry[..entry.len() - 1], &entry.repeat(2), b""] {
            let refused = joined(Framing::Export, OnSeparator::Escape, item);
            assert_eq!(refused, Err(Ambiguous::NoEntry));
        }
    }

    #[test]
    fn escaped_items_have_no_separator_and_differ_where_the_items_do() {
        let lines = |item| joined(Framing::Lines, OnSeparator::Escape, item).unwrap();
        assert_eq!(lines(b"a\nb"), b"a\\nb\n");
        assert_eq!(lines(b"a\\nb"), b"a\\\\nb\n");
        assert_eq!(joined(Framing::Nul, OnSeparator::Escape, b"\0\\\n").unwrap(), b"\\0\\\\\n\0");
    }
}
