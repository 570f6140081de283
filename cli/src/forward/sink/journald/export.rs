//! The journal export format: an entry is a series of fields, each either a line `NAME=value` or,
//! where the value has a line feed, the name, a line feed, the value's length in 64 bits, least
//! significant byte first, the value, and a line feed. An empty line ends an entry.
//!
//! `systemd-journal-remote` reads the same format as the journal's socket.

use std::io::{self, Write};

/// The longest name of a field that the journal takes, in bytes.
pub const LONGEST_NAME: usize = 64;

/// The largest number of fields of an entry: the journal takes 1,024, some of which the sink adds.
pub const MOST_FIELDS: usize = 1000;

/// A field of an entry. A name may appear more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Capital letters, digits and underscores.
    pub name: &'a str,
    /// Any bytes.
    pub value: &'a [u8],
}

/// Reads one entry, which must take up all of `bytes`; the empty line behind it can be missing.
/// Returns `None` where anything is not as the format has it: then it is no entry.
pub fn parse(bytes: &[u8]) -> Option<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() && rest != b"\n" {
        if fields.len() == MOST_FIELDS {
            return None;
        }
        let (field, behind) = field(rest)?;
        fields.push(field);
        rest = behind;
    }
    (!fields.is_empty()).then_some(fields)
}

/// Reads a field, and returns what is behind it.
fn field(bytes: &[u8]) -> Option<(Field<'_>, &[u8])> {
    // A name that goes on past the limit is none: no search runs over a whole item.
    let end = bytes.iter().take(LONGEST_NAME + 1).position(|byte| matches!(byte, b'=' | b'\n'))?;
    let name = name(&bytes[..end])?;
    let rest = &bytes[end + 1..];
    if bytes[end] == b'=' {
        let end = memchr::memchr(b'\n', rest)?;
        return Some((Field { name, value: &rest[..end] }, &rest[end + 1..]));
    }
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    Some((Field { name, value }, rest.strip_prefix(b"\n")?))
}

fn name(bytes: &[u8]) -> Option<&str> {
    let first = bytes.first()?;
    let is_name = !first.is_ascii_digit()
        && bytes.iter().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || *b == b'_');
    if is_name { std::str::from_utf8(bytes).ok() } else { None }
}

/// Writes a field: as a line where the value has no line feed.
pub fn put(out: &mut impl Write, name: &str, value: &[u8]) -> io::Result<()> {
    out.write_all(name.as_bytes())?;
    if memchr::memchr(b'\n', value).is_none() {
        out.write_all(b"=")?;
    } else {
        out.write_all(b"\n")?;
        out.write_all(&(value.len() as u64).to_le_bytes())?;
    }
    out.write_all(value)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn fields() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
        let value = prop_oneof![vec(any::<u8>(), 0..200), "[a-z \n=]{0,40}".prop_map(Into::into)];
        vec(("[A-Z_][A-Z0-9_]{0,63}", value), 1..20)
    }

    proptest! {
        #[test]
        fn entry_survives_writing_and_reading(fields in fields(), is_ended: bool) {
            let mut bytes = Vec::new();
            for (name, value) in &fields {
                put(&mut bytes, name, value).unwrap();
            }
            if is_ended {
                bytes.push(b'\n');
            }
            let read = parse(&bytes).unwrap();
            let read: Vec<_> =
                read.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
            prop_assert_eq!(read, fields);
        }

        #[test]
        fn part_of_an_entry_is_none(fields in fields(), cut: prop::sample::Index) {
            let mut bytes = Vec::new();
            let mut ends = vec![0];
            for (name, value) in &fields {
                put(&mut bytes, name, value).unwrap();
                ends.push(bytes.len());
            }
            let cut = cut.index(bytes.len());
            prop_assert_eq!(parse(&bytes[..cut]).is_some(), cut > 0 && ends.contains(&cut));
        }

        #[test]
        fn foreign_bytes_do_no_harm(bytes in vec(prop_oneof![Just(b'A'), Just(b'='), Just(b'\n'), Just(0), any::<u8>()], 0..100)) {
            parse(&bytes);
        }
    }

    #[test]
    fn what_is_not_quite_an_entry_is_none() {
        let long = [&[b'A'; LONGEST_NAME + 1][..], b"=\n"].concat();
        let many = b"A=\n".repeat(MOST_FIELDS + 1);
        for bytes in [
            &b""[..],
            b"\n",
            b"A=1",
            b"a=1\n",
            b"1A=1\n",
            b"=1\n",
            b" A=1\n",
            b"A B=1\n",
            b"A=1\n\n\n",
            b"A=1\n\nB=2\n",
            b"\nA=1\n",
            b"A\n\x01\0\0\0\0\0\0\0x",
            b"A\n\x01\0\0\0\0\0\0\0xy\n",
            b"A\n\xff\xff\xff\xff\xff\xff\xff\xffx\n",
            b"A\n\x01\0\0\0",
            &long,
            &many,
        ] {
            assert_eq!(parse(bytes), None, "{}", bytes.escape_ascii());
        }
        assert_eq!(parse(&long[1..]).unwrap().len(), 1);
        assert_eq!(parse(&many[3..]).unwrap().len(), MOST_FIELDS);
    }
}
