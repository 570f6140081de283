//! What a producer, a consumer or a guard may do next: pure decisions over format types.

use crate::format::{Capacity, FormatError, Geometry, HEADER_BYTES, Position, Tally, framed_len};

/// A place in a stream, and what is known of the stream before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The place.
    pub position: Position,
    /// Of everything before it.
    pub tally: Tally,
}

impl Mark {
    /// At `position`, whose slot said `tally`, or nothing.
    pub fn new(position: Position, tally: Option<Tally>) -> Self {
        Self { position, tally: tally.unwrap_or_else(|| Tally::from_here(position)) }
    }

    /// Where a producer that attaches goes on.
    ///
    /// Power can fail between the two pointers' flushes and keep only the consumer's: what it consumed was published.
    pub fn resumed(producer: Self, consumer: Self) -> Self {
        if consumer.position > producer.position { consumer } else { producer }
    }
}

/// From where on, and with which checksum so far, the stream up to `to` can be verified against the producer's `claim`. What lies
/// between `from` and there is known to nobody: an OCaml peer wrote it.
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

/// Refuses pointers that are more than a whole ring apart.
///
/// A consumer ahead of the producer passes: power can fail between the flushes of the two pointers and keep only the
/// consumer's. The ring is empty then, and the next producer starts at the consumer's position.
pub fn plausible(
    producer: Position,
    consumer: Position,
    geometry: Geometry,
) -> Result<(), FormatError> {
    let capacity = geometry.capacity().get();
    if producer.get().abs_diff(consumer.get()) > capacity {
        return Err(FormatError::Pointers { consumer, producer, capacity });
    }
    Ok(())
}

/// Whether bytes fit into a ring now, later, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// There is room.
    Now,
    /// There will be room once the consumer has advanced.
    Later,
    /// Not even an empty ring holds them.
    Never,
}

/// Whether `unpadded` bytes of framing fit behind `pushed`, with everything from `consumer` on kept.
pub fn fit(pushed: Position, consumer: Position, capacity: Capacity, unpadded: u64) -> Fit {
    let capacity = capacity.get();
    if unpadded > capacity {
        return Fit::Never;
    }
    let used = pushed.get().saturating_sub(consumer.get());
    if unpadded <= capacity.saturating_sub(used) { Fit::Now } else { Fit::Later }
}

/// Bytes that payloads of `lengths` take in a row, without the padding behind the last one.
pub fn batch_len(lengths: &[u32]) -> u64 {
    let Some((last, others)) = lengths.split_last() else { return 0 };
    let others: u64 = others.iter().map(|&length| framed_len(length)).sum();
    others + u64::from(*last) + HEADER_BYTES
}

/// How many payloads of `lengths`, from the first on, fit now.
pub fn fitting(pushed: Position, consumer: Position, capacity: Capacity, lengths: &[u32]) -> usize {
    let mut before = 0;
    let too_much = |&length: &u32| {
        let unpadded = before + u64::from(length) + HEADER_BYTES;
        before += framed_len(length);
        fit(pushed, consumer, capacity, unpadded) != Fit::Now
    };
    lengths.iter().position(too_much).unwrap_or(lengths.len())
}
