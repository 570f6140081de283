//! Where an item begins and ends in a byte stream.

use std::io::{self, Write};

/// How items are told apart on standard input and output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Framing {
    /// An item is a line, without its line feed
    Lines,
    /// A u32 (little-endian) in front of each item
    Length,
    /// A zero byte behind each item
    Nul,
    /// All of the input is one item; items are written without anything between
    Whole,
}

/// Why the next item is not there.
#[derive(Debug, PartialEq, Eq)]
pub enum Missing {
    /// Its end has not been read yet.
    More,
    /// The input ends within it.
    Truncated,
    /// It is longer than the ring.
    TooLong(usize),
}

impl Framing {
    /// The item at the start of `input`, and the bytes that it takes there. `Ok(None)` at the end of the input.
    pub fn split(
        self,
        input: &[u8],
        ended: bool,
        max: usize,
    ) -> Result<Option<(&[u8], usize)>, Missing> {
        if input.is_empty() && ended && self != Self::Whole {
            return Ok(None);
        }
        let until = |delimiter: u8| {
            let end = input.iter().position(|&byte| byte == delimiter);
            match end {
                Some(end) if end > max => Err(Missing::TooLong(end)),
                Some(end) => Ok(Some((&input[..end], end + 1))),
                None if input.len() > max => Err(Missing::TooLong(input.len())),
                None if ended => Ok(Some((input, input.len()))),
                None => Err(Missing::More),
            }
        };
        match self {
            Self::Lines => until(b'\n'),
            Self::Nul => until(0),
            Self::Length => {
                let lacking = if ended { Missing::Truncated } else { Missing::More };
                let Some((head, rest)) = input.split_first_chunk::<4>() else {
                    return Err(lacking);
                };
                let length = u32::from_le_bytes(*head) as usize;
                if length > max {
                    return Err(Missing::TooLong(length));
                }
                rest.get(..length).map(|item| Some((item, 4 + length))).ok_or(lacking)
            }
            Self::Whole if input.len() > max => Err(Missing::TooLong(input.len())),
            Self::Whole if ended => Ok(Some((input, input.len()))),
            Self::Whole => Err(Missing::More),
        }
    }

    /// Appends an item as the output has it.
    pub fn join(self, item: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        if self == Self::Length {
            // An item's length is a u32 on the ring.
            output.write_all(&u32::try_from(item.len()).unwrap_or(u32::MAX).to_le_bytes())?;
        }
        output.write_all(item)?;
        match self {
            Self::Lines => output.write_all(b"\n"),
            Self::Nul => output.write_all(b"\0"),
            Self::Length | Self::Whole => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn items_are_told_apart() {
        assert_eq!(Framing::Lines.split(b"a\nb", false, 9), Ok(Some((&b"a"[..], 2))));
        assert_eq!(Framing::Lines.split(b"b", false, 9), Err(Missing::More));
        assert_eq!(Framing::Lines.split(b"b", true, 9), Ok(Some((&b"b"[..], 1))));
        assert_eq!(Framing::Lines.split(b"", true, 9), Ok(None));
        assert_eq!(Framing::Lines.split(b"long", false, 3), Err(Missing::TooLong(4)));
        assert_eq!(Framing::Nul.split(b"\0\n", false, 9), Ok(Some((&b""[..], 1))));
        assert_eq!(Framing::Length.split(b"\x01\0\0\0xy", false, 9), Ok(Some((&b"x"[..], 5))));
        assert_eq!(Framing::Length.split(b"\x02\0\0\0x", true, 9), Err(Missing::Truncated));
        assert_eq!(
            Framing::Length.split(b"\xff\xff\xff\xff", false, 9),
            Err(Missing::TooLong(0xffff_ffff))
        );
        assert_eq!(Framing::Whole.split(b"a\nb", true, 9), Ok(Some((&b"a\nb"[..], 3))));
        assert_eq!(Framing::Whole.split(b"", true, 9), Ok(Some((&b""[..], 0))));
    }

    #[test]
    fn what_is_joined_splits_again() {
        for framing in [Framing::Lines, Framing::Length, Framing::Nul] {
            let mut bytes = Vec::new();
            framing.join(b"item", &mut bytes).unwrap();
            assert_eq!(framing.split(&bytes, false, 9), Ok(Some((&b"item"[..], bytes.len()))));
        }
    }
}
