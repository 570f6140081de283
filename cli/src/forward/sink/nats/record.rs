//! Headers of a message: where its item lies in its ring. They make the subject's last message the
//! record of what has arrived.

use async_nats::header::HeaderName;
use async_nats::{HeaderMap, HeaderValue};
use shared_block_ring::Position;
use uuid::Uuid;

/// UUID of the ring.
pub const RING: HeaderName = HeaderName::from_static("Blockring-Ring");
/// Position of the item.
pub const POSITION: HeaderName = HeaderName::from_static("Blockring-Position");
/// Position behind the item.
pub const NEXT: HeaderName = HeaderName::from_static("Blockring-Next");
/// Time of the producer, in RFC 3339.
pub const TIME: HeaderName = HeaderName::from_static("Blockring-Time");
/// `N/M`: part N of the M messages that one item was split into.
pub const PART: HeaderName = HeaderName::from_static("Blockring-Part");

/// One of several messages that an item was split into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Number of the part, from 1.
    pub number: usize,
    /// Number of parts.
    pub of: usize,
}

impl Part {
    fn parse(text: &str) -> Option<Self> {
        let (number, of) = text.split_once('/')?;
        let part = Self { number: number.parse().ok()?, of: of.parse().ok()? };
        (1..=part.of).contains(&part.number).then_some(part)
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

/// What a subject's last message says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// Sequence of the message in the stream, which is the fence of the next batch.
    pub sequence: u64,
    /// Item of the message; `None` if the message is not a forwarder's.
    pub record: Option<Record>,
    /// Checksum of the message's payload.
    pub checksum: u32,
}

/// Item of a message, as its headers tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub ring: Uuid,
    pub position: Position,
    pub next: Position,
    pub part: Option<Part>,
}

impl Record {
    /// Reads the headers of a message. They are another program's words: what does not parse is no
    /// record.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let text = |name: HeaderName| headers.get(name).map(HeaderValue::as_str);
        let record = Self {
            ring: text(RING)?.parse().ok()?,
            position: text(POSITION)?.parse().ok()?,
            next: text(NEXT)?.parse().ok()?,
            part: match text(PART) {
                Some(part) => Some(Part::parse(part)?),
                None => None,
            },
        };
        (record.position < record.next).then_some(record)
    }

    /// Writes the headers.
    pub fn write(&self, time: Option<&str>, headers: &mut HeaderMap) {
        let mut text = Uuid::encode_buffer();
        headers.insert(RING, &*self.ring.hyphenated().encode_lower(&mut text));
        headers.insert(POSITION, self.position.to_string());
        headers.insert(NEXT, self.next.to_string());
        if let Some(time) = time {
            headers.insert(TIME, time);
        }
        if let Some(part) = self.part {
            headers.insert(PART, part.to_string());
        }
    }

    /// Whether further parts of the item are missing behind this message.
    pub fn is_unfinished(&self) -> bool {
        self.part.is_some_and(|part| part.number < part.of)
    }

    /// Returns the position before which everything has arrived.
    pub fn arrived(&self) -> Position {
        if self.is_unfinished() { self.position } else { self.next }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn record(part: Option<Part>) -> Record {
        let position = |bytes| Position::new(bytes).unwrap();
        Record { ring: Uuid::from_u128(7), position: position(8), next: position(24), part }
    }

    #[test]
    fn record_is_read_as_it_was_written() {
        for part in [None, Some(Part { number: 1, of: 3 }), Some(Part { number: 3, of: 3 })] {
            let mut headers = HeaderMap::new();
            record(part).write(Some("2026-01-01T00:00:00Z"), &mut headers);
            assert_eq!(Record::read(&headers), Some(record(part)));
        }
    }

    #[test]
    fn record_ends_before_an_item_whose_parts_are_not_all_there() {
        assert_eq!(record(Some(Part { number: 2, of: 3 })).arrived().get(), 8);
        assert_eq!(record(Some(Part { number: 3, of: 3 })).arrived().get(), 24);
        assert_eq!(record(None).arrived().get(), 24);
    }

    #[test]
    fn record_of_another_program_is_none() {
        for (name, value) in [
            (RING, "no uuid"),
            (POSITION, "7"),
            (POSITION, "-8"),
            (NEXT, "8"),
            (NEXT, ""),
            (PART, "0/2"),
            (PART, "3/2"),
            (PART, "1"),
        ] {
            let mut headers = HeaderMap::new();
            record(None).write(None, &mut headers);
            headers.insert(name, value);
            assert_eq!(Record::read(&headers), None, "{headers:?}");
        }
    }
}
