//! Judging a new pointer sector of the guest, but for the items that its position exposes.

use super::walk::{Count, Walk};
use super::{Guard, GuestState, HostState, Reason};
use shared_block_ring::Position;
use shared_block_ring::format::{
    EXTENSION, FLAG_AT, HEADER_BYTES, PointerSector, Side, Tally, following_slot,
};
use shared_block_ring::rules::Mark;

/// A legal change of the guest's pointer sector, but for the items under the new position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    from: Position,
    to: PointerSector,
    /// The end of the published items that the new position may cover.
    published: Position,
    /// The stream before the new position by its slot.
    tally: Option<Tally>,
    /// How the slot's number of items is to be verified.
    count: Option<Count>,
}

impl Move {
    /// The guest's side once the sector is stored.
    pub fn guest(&self) -> GuestState {
        GuestState { pointer: self.to, tally: Mark::new(self.to.position, self.tally).tally }
    }

    /// The walk over the items that remain to be judged.
    pub fn walk(&self) -> Walk {
        Walk::new(self.from, self.to.position, self.published, self.count)
    }
}

impl Guard {
    /// Judges a new pointer sector of the guest. `current` are the bytes that the region holds,
    /// `guest` is what they mean, `requested` are the new bytes.
    ///
    /// # Errors
    ///
    /// The rule that the new sector breaks.
    pub fn judge_pointer(
        &self,
        guest: GuestState,
        host: HostState,
        current: &[u8],
        requested: &[u8],
    ) -> Result<Move, Reason> {
        let to = PointerSector::decode(self.guest, requested).map_err(|_| {
            if matches!(requested[FLAG_AT], 1 | 2) {
                Reason::PointerMisaligned
            } else {
                Reason::PointerFlag
            }
        })?;
        let (producer, consumer) = self.positions(guest.pointer.position, host.position);
        let used = producer.since(consumer).ok_or(Reason::HostCorrupt)?;
        let free = self.geometry.capacity().get().checked_sub(used).ok_or(Reason::HostCorrupt)?;
        let reach = match self.guest {
            Side::Producer => free,
            Side::Consumer => used,
        };
        let from = guest.pointer.position;
        let step = to.position.since(from).ok_or(Reason::PointerBackwards)?;
        if step > reach || to.position > Position::END {
            return Err(Reason::PointerBeyond);
        }
        let published = match self.guest {
            Side::Producer => to.position,
            Side::Consumer => producer,
        };
        let tally = self.judge_slots(current, to.position, requested)?;
        let count = tally.map(|tally| self.count_for(guest, host, to.position, tally));
        Ok(Move { from, to, published, tally, count: count.transpose()?.flatten() })
    }

    /// Judges the slots, and returns the one of the new position. The stream's checksum in it is
    /// the consumer's to verify, once.
    fn judge_slots(
        &self,
        current: &[u8],
        to: Position,
        requested: &[u8],
    ) -> Result<Option<Tally>, Reason> {
        let Some(uuid) = self.uuid else {
            let zero = requested[EXTENSION].iter().all(|&byte| byte == 0);
            return if zero { Ok(None) } else { Err(Reason::PointerExtension) };
        };
        let present =
            PointerSector::decode(self.guest, current).map_err(|_| Reason::HostCorrupt)?;
        let (old, new) = ((current, present.position), (requested, to));
        let slot = following_slot(uuid, self.guest, old, new);
        Ok(slot.map_err(|_| Reason::PointerExtension)?.map(|slot| slot.tally))
    }

    /// Returns how a slot's number of items is verified; `None` where nothing in the region can.
    fn count_for(
        &self,
        guest: GuestState,
        host: HostState,
        to: Position,
        tally: Tally,
    ) -> Result<Option<Count>, Reason> {
        let from = guest.pointer.position;
        if tally.base == guest.tally.base && tally.since_base == guest.tally.since_base {
            let (start, expected) = (guest.tally.items, tally.items);
            return Ok(Some(Count { since: from, start, end: to, expected }));
        }
        if tally.since_base && tally.base >= from && tally.base <= to {
            return Ok(Some(Count { since: tally.base, start: 0, end: to, expected: tally.items }));
        }
        match self.guest {
            Side::Producer => Err(Reason::ItemCount),
            Side::Consumer => count_taken_over(host, to, tally),
        }
    }
}

/// Returns how a number of items is verified that a guest consumer has copied from the producer's
/// slot, for a position that was published when the guest read it.
///
/// The producer may have gone on since, and have overwritten its slot for that position. If it
/// still counts from the same base, its present count is compared with the items in between. If it
/// does not, or if it has no slot now (another producer, which writes none, has attached), nothing
/// can contradict the number, now or later: a producer's base lies at or behind what was published
/// when it attached. The number is then the consumer's own claim, bounded by the bytes that items
/// take.
fn count_taken_over(host: HostState, to: Position, tally: Tally) -> Result<Option<Count>, Reason> {
    let origin = if tally.since_base { tally.base } else { Position::ZERO };
    let most = to.since(origin).map(|bytes| bytes / HEADER_BYTES);
    if tally.base > to || most.is_none_or(|most| tally.items > most) {
        return Err(Reason::ItemCount);
    }
    match host.tally? {
        Some(host) if host.base == tally.base && host.since_base != tally.since_base => {
            Err(Reason::ItemCount)
        }
        Some(present)
            if present.base == tally.base || !(present.since_base || tally.since_base) =>
        {
            let (start, expected) = (tally.items, present.items);
            Ok(Some(Count { since: to, start, end: host.position, expected }))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::tests::{RING, at, guard, pointer, sector};
    use super::super::walk::Progress;
    use super::*;
    use shared_block_ring::format::{Slot, put_slot};

    /// Judges a sector that follows one without slots.
    fn judge(guest: Side, from: u64, host: u64, requested: &[u8]) -> Result<Move, Reason> {
        let state = GuestState { pointer: pointer(from), tally: Tally::from_here(at(from)) };
        let host = HostState { position: at(host), tally: Ok(None) };
        guard(guest).judge_pointer(state, host, &sector(guest, state.pointer), requested)
    }

    #[test]
    fn pointer_moves_forward_within_the_ring() {
        let judge = |host, new: &[u8]| judge(Side::Producer, 100, host, new);
        let to = |to| judge(40, &sector(Side::Producer, pointer(to)));
        assert!(to(100).is_ok() && to(1064).is_ok());
        assert_eq!(to(1068), Err(Reason::PointerBeyond));
        assert_eq!(to(96), Err(Reason::PointerBackwards));
        let mut bytes = sector(Side::Producer, pointer(104));
        bytes[0] += 2;
        assert_eq!(judge(40, &bytes), Err(Reason::PointerMisaligned));
        bytes[0] -= 2;
        bytes[8] = 3;
        assert_eq!(judge(40, &bytes), Err(Reason::PointerFlag));
        bytes[8] = 1;
        bytes[16] = 1;
        assert_eq!(judge(40, &bytes), Err(Reason::PointerExtension));
        let new = sector(Side::Producer, pointer(104));
        assert_eq!(judge(104, &new), Err(Reason::HostCorrupt));
    }

    #[test]
    fn guest_consumer_stays_behind_the_producer() {
        let to = |to| judge(Side::Consumer, 40, 100, &sector(Side::Consumer, pointer(to)));
        assert!(to(100).is_ok());
        assert_eq!(to(104), Err(Reason::PointerBeyond));
        assert_eq!(to(36), Err(Reason::PointerBackwards));
    }

    /// Judges a move from position 40 to 64 with `tally` in its slot. Items of 12 bytes each lie at
    /// 40, 52, 64 and 76.
    fn counted(guest: Side, host: HostState, tally: Tally) -> Result<Progress, Reason> {
        let guard = guard(guest);
        let known = Tally { items: 5, since_base: true, base: at(20), crc: 1 };
        let state = GuestState { pointer: pointer(40), tally: known };
        let old = sector(guest, state.pointer);
        let mut new = sector(guest, pointer(64));
        put_slot(RING, &mut new, at(40), &Slot { position: at(64), tally, time_ns: 0 });
        let change = guard.judge_pointer(state, host, &old, &new)?;
        change.walk().step(guard.geometry(), 9, |_| 8u32.to_le_bytes())
    }

    #[test]
    fn slot_with_a_wrong_number_of_items_is_refused() {
        for (guest, position) in [(Side::Producer, 0), (Side::Consumer, 88)] {
            let host = HostState { position: at(position), tally: Ok(None) };
            let count = |since_base, base, items| {
                counted(guest, host, Tally { items, since_base, base: at(base), crc: 77 })
            };
            assert_eq!(
                count(true, 20, 7),
                Ok(Progress::Sound),
                "the checksum is the consumer's to verify"
            );
            assert_eq!(count(true, 20, 8), Err(Reason::ItemCount));
            let since = |base, items| count(true, base, items);
            assert_eq!([since(40, 2), since(52, 1), since(64, 0)], [Ok(Progress::Sound); 3]);
            assert_eq!([since(40, 1), since(56, 1), since(68, 0)], [Err(Reason::ItemCount); 3]);
        }
    }

    #[test]
    fn consumer_may_copy_the_producers_count_of_a_position_that_the_producer_has_left() {
        let counting = |position, items| {
            let tally = Tally { items, since_base: false, base: Position::ZERO, crc: 0 };
            (HostState { position: at(position), tally: Ok(Some(tally)) }, tally)
        };
        let (_, claim) = counting(64, 9);
        for (position, items) in [(64, 9), (76, 10), (88, 11)] {
            let (host, _) = counting(position, items);
            assert_eq!(counted(Side::Consumer, host, claim), Ok(Progress::Sound));
            let producer = HostState { position: at(0), ..host };
            assert_eq!(counted(Side::Producer, producer, claim), Err(Reason::ItemCount));
            let (host, _) = counting(position, items + 1);
            assert_eq!(counted(Side::Consumer, host, claim), Err(Reason::ItemCount));
            let moved = Tally { base: at(4), ..claim };
            assert_eq!(counted(Side::Consumer, host, moved), Err(Reason::ItemCount));
            let otherwise = Tally { since_base: true, ..claim };
            assert_eq!(counted(Side::Consumer, host, otherwise), Err(Reason::ItemCount));
        }
        // Another producer has attached: it writes no slots, or began to count at 76.
        let later = Tally { items: 1, since_base: true, base: at(76), crc: 0 };
        for tally in [None, Some(later)] {
            let host = HostState { position: at(88), tally: Ok(tally) };
            assert_eq!(counted(Side::Consumer, host, claim), Ok(Progress::Sound));
            let most = |items| counted(Side::Consumer, host, Tally { items, ..claim });
            assert_eq!([most(16), most(17)], [Ok(Progress::Sound), Err(Reason::ItemCount)]);
        }
        let unreadable = HostState { position: at(88), tally: Err(Reason::HostCorrupt) };
        assert_eq!(counted(Side::Consumer, unreadable, claim), Err(Reason::HostCorrupt));
    }
}
