//! Which bytes of a write to the data area may be stored.

use super::{Guard, Reason};
use shared_block_ring::Position;
use shared_block_ring::format::{Extent, Side};
use std::ops::Range;

/// A write to the data area, cut into what is stored and what is compared. Ranges are of device
/// bytes, and may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pieces {
    /// The bytes in the free part.
    pub stored: [Range<u64>; 3],
    /// The bytes that must be what the region holds already, or the write is refused for `reason`.
    pub compared: [Range<u64>; 2],
    /// Why the guest may not change what is compared.
    pub reason: Reason,
}

impl Pieces {
    /// The pieces of a write that ends in front of the data area.
    pub const NONE: Self =
        Self { stored: [0..0, 0..0, 0..0], compared: [0..0, 0..0], reason: Reason::PublishedData };
}

/// The published bytes for one pair of positions. Kept from one write to the next, since computing
/// them takes divisions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    producer: Position,
    consumer: Position,
    /// Device bytes, in ascending order.
    parts: [Range<u64>; 2],
}

impl Guard {
    /// Cuts a write of device bytes `range`, all in the data area, into pieces.
    ///
    /// # Errors
    ///
    /// [`Reason::HostCorrupt`] if the two positions contradict each other.
    pub fn data_pieces(
        &self,
        range: &Range<u64>,
        producer: Position,
        consumer: Position,
    ) -> Result<Pieces, Reason> {
        if self.guest == Side::Consumer {
            let compared = [range.clone(), range.end..range.end];
            return Ok(Pieces { compared, reason: Reason::ForeignData, ..Pieces::NONE });
        }
        let [first, second] = &self.published(producer, consumer)?.parts;
        let first = within(first, range.start..range.end);
        let second = within(second, first.end..range.end);
        let stored = [range.start..first.start, first.end..second.start, second.end..range.end];
        Ok(Pieces { stored, compared: [first, second], reason: Reason::PublishedData })
    }

    /// Returns whether a write of device bytes `range`, all in the data area, touches free bytes
    /// alone: [`data_pieces`](Self::data_pieces) would then store all of it. `known` is what this
    /// was answered from for the write before.
    #[inline]
    pub fn is_free(
        &self,
        range: &Range<u64>,
        producer: Position,
        consumer: Position,
        known: &mut Option<Published>,
    ) -> bool {
        let published = match known {
            Some(known) if (known.producer, known.consumer) == (producer, consumer) => known,
            _ => match self.published(producer, consumer) {
                Ok(published) => known.insert(published),
                Err(_) => return false,
            },
        };
        let beside = |part: &Range<u64>| {
            part.is_empty() || range.end <= part.start || part.end <= range.start
        };
        self.guest == Side::Producer && published.parts.iter().all(beside)
    }

    fn published(&self, producer: Position, consumer: Position) -> Result<Published, Reason> {
        let capacity = self.geometry.capacity().get();
        let used =
            producer.since(consumer).filter(|&used| used <= capacity).ok_or(Reason::HostCorrupt)?;
        let parts = sorted(self.geometry.extents(consumer.get(), used));
        Ok(Published { producer, consumer, parts })
    }
}

fn sorted(extents: [Extent; 2]) -> [Range<u64>; 2] {
    let [first, second] = extents.map(|extent| extent.offset..extent.offset + extent.len);
    if first.start <= second.start { [first, second] } else { [second, first] }
}

fn within(part: &Range<u64>, whole: Range<u64>) -> Range<u64> {
    let start = part.start.clamp(whole.start, whole.end);
    start..part.end.clamp(start, whole.end)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{START, at, guard};
    use super::*;

    /// Compares every byte of a small ring's data area, for every pair of positions over two laps,
    /// with the definition.
    #[test]
    fn free_bytes_alone_are_stored() {
        let guard = guard(Side::Producer);
        let (capacity, mut known) = (1024, None);
        for consumer in (0..2048).step_by(36) {
            for used in (0..=capacity).step_by(28) {
                let mut free = vec![true; 1024];
                (consumer..consumer + used)
                    .for_each(|o| free[usize::try_from(o % capacity).unwrap()] = false);
                for range in [0..1024, 0..512, 512..1024] {
                    let device = START + range.start..START + range.end;
                    let pieces =
                        guard.data_pieces(&device, at(consumer + used), at(consumer)).unwrap();
                    assert_eq!(pieces.reason, Reason::PublishedData);
                    assert_eq!(
                        guard.is_free(&device, at(consumer + used), at(consumer), &mut known),
                        pieces.compared.iter().all(Range::is_empty)
                    );
                    let mut next = device.start;
                    let (stored, compared) = (pieces.stored.iter(), pieces.compared.iter());
                    let mut all: Vec<_> =
                        stored.map(|p| (p, true)).chain(compared.map(|p| (p, false))).collect();
                    all.sort_by_key(|(piece, _)| (piece.start, piece.end));
                    for (piece, stored) in all {
                        assert_eq!(piece.start, next);
                        assert!(
                            piece
                                .clone()
                                .all(|b| free[usize::try_from(b - START).unwrap()] == stored)
                        );
                        next = piece.end;
                    }
                    assert_eq!(next, device.end);
                }
            }
        }
    }

    #[test]
    fn nothing_is_free_where_positions_contradict_each_other() {
        let (guard, range) = (guard(Side::Producer), START..START + 512);
        let mut known = None;
        assert!(guard.is_free(&range, at(40), at(40), &mut known));
        assert!(!guard.is_free(&range, at(40), at(44), &mut known));
        assert!(!guard.is_free(&range, at(2000), at(40), &mut known));
    }

    #[test]
    fn guest_consumer_stores_no_data() {
        let range = START..START + 512;
        assert!(!guard(Side::Consumer).is_free(&range, at(40), at(40), &mut None));
        let pieces = guard(Side::Consumer).data_pieces(&range, at(100), at(40)).unwrap();
        assert!(pieces.stored.iter().all(Range::is_empty));
        assert_eq!((pieces.compared[0].clone(), pieces.reason), (range, Reason::ForeignData));
    }
}
