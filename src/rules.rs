//! The rules of a ring: what a producer, a consumer or a guard may do next. Pure decisions over
//! format types.

use crate::format::{
    Capacity, FormatError, Geometry, HEADER_BYTES, Position, Side, Tally, framed_len,
};

/// A mark: a position, with the tally of the stream before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The position.
    pub position: Position,
    /// The tally of everything before it.
    pub tally: Tally,
}

impl Mark {
    /// Makes the mark at `position`, whose slot held `tally`, if it has one.
    pub fn new(position: Position, tally: Option<Tally>) -> Self {
        Self { position, tally: tally.unwrap_or_else(|| Tally::from_here(position)) }
    }

    /// Returns the mark at which a producer that attaches goes on.
    ///
    /// Power can fail between the flushes of the two pointers and keep only the consumer's: what it
    /// consumed was published.
    pub fn resumed(producer: Self, consumer: Self) -> Self {
        if consumer.position > producer.position { consumer } else { producer }
    }
}

/// Returns the position from which the stream up to `to` can be verified against the producer's
/// tally there, and the checksum up to that position. No checksum covers the bytes between `from`
/// and it: an OCaml peer wrote them.
pub fn verifiable(from: Mark, to: Mark) -> (Position, u32) {
    let claim = to.tally;
    if claim.base == from.tally.base {
        (from.position, from.tally.crc)
    } else if claim.base >= from.position {
        (claim.base.min(to.position), 0)
    } else {
        (to.position, claim.crc)
    }
}

/// Refuses pointers that are more than a whole ring apart, or beyond the end of every stream.
///
/// A consumer ahead of the producer passes: power can fail between the flushes of the two pointers
/// and keep only the consumer's. The ring is empty then, and the next producer starts at the
/// consumer's position.
///
/// # Errors
/// [`FormatError::BeyondEnd`] and [`FormatError::Pointers`].
pub fn plausible(
    producer: Position,
    consumer: Position,
    geometry: Geometry,
) -> Result<(), FormatError> {
    for (side, position) in [(Side::Producer, producer), (Side::Consumer, consumer)] {
        if position > Position::END {
            return Err(FormatError::BeyondEnd { side, position });
        }
    }
    let capacity = geometry.capacity().get();
    if producer.get().abs_diff(consumer.get()) > capacity {
        return Err(FormatError::Pointers { consumer, producer, capacity });
    }
    Ok(())
}

/// The time at which bytes fit into a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// Now: there is room.
    Now,
    /// Once the consumer has advanced.
    Later,
    /// Never: not even an empty ring holds them.
    Never,
}

/// Returns when `unpadded` bytes, framing included, fit behind `pushed`, with everything from
/// `consumer` on kept.
pub fn fit(pushed: Position, consumer: Position, capacity: Capacity, unpadded: u64) -> Fit {
    let capacity = capacity.get();
    if unpadded > capacity {
        return Fit::Never;
    }
    let used = pushed.get().saturating_sub(consumer.get());
    if unpadded <= capacity.saturating_sub(used) { Fit::Now } else { Fit::Later }
}

/// Returns the bytes that payloads of `lengths` take in a row, without the padding behind the last.
pub fn batch_len(lengths: &[u32]) -> u64 {
    let Some((last, others)) = lengths.split_last() else { return 0 };
    let others: u64 = others.iter().map(|&length| framed_len(length)).sum();
    others + u64::from(*last) + HEADER_BYTES
}

/// Returns how many payloads of `lengths`, from the first on, fit now.
pub fn fitting(pushed: Position, consumer: Position, capacity: Capacity, lengths: &[u32]) -> usize {
    let mut before = 0;
    let too_much = |&length: &u32| {
        let unpadded = before + u64::from(length) + HEADER_BYTES;
        before += framed_len(length);
        fit(pushed, consumer, capacity, unpadded) != Fit::Now
    };
    lengths.iter().position(too_much).unwrap_or(lengths.len())
}
