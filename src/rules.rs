//! What a producer, a consumer or a guard may do next: pure decisions over format types.

use crate::format::{Capacity, FormatError, Geometry, HEADER_BYTES, Position, framed_len};

/// Refuses a consumer that has more than a whole ring in front of it.
///
/// A consumer ahead of the producer passes: power can fail between the flushes of the two pointers and keep only the
/// consumer's. The ring is empty then, and the next producer starts at the consumer's position.
pub fn plausible(
    producer: Position,
    consumer: Position,
    geometry: Geometry,
) -> Result<(), FormatError> {
    let capacity = geometry.capacity().get();
    match producer.since(consumer) {
        Some(used) if used > capacity => {
            Err(FormatError::Pointers { consumer, producer, capacity })
        }
        _ => Ok(()),
    }
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
