//! A new pointer sector of the guest, but for the items that its position covers.

use super::walk::{Count, Walk};
use super::{Guard, Host, Mine, Reason};
use shared_block_ring::Position;
use shared_block_ring::format::{
    EXTENSION, FLAG_AT, HEADER_BYTES, PointerSector, Side, Tally, find_slot, follows,
};
use shared_block_ring::rules::Mark;

/// A legal change of the guest's pointer sector, but for the items it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    from: Position,
    to: PointerSector,
    /// How far items reach that the new position may cover.
    published: Position,
    /// What the slot of the new position says.
    tally: Option<Tally>,
    /// How that is to be verified.
    count: Option<Count>,
}

impl Move {
    /// The guest's side once it is stored.
    pub fn mine(&self) -> Mine {
        Mine { pointer: self.to, tally: Mark::new(self.to.position, self.tally).tally }
    }

    /// What remains to be looked at.
    pub fn walk(&self) -> Walk {
        Walk::new(self.from, self.to.position, self.published, self.count)
    }
}

impl Guard {
    /// Judges the guest's pointer sector: `old` are the bytes that the region holds, `mine` what they say.
    pub fn judge_pointer(
        &self,
        mine: Mine,
        host: Host,
        old: &[u8],
        new: &[u8],
    ) -> Result<Move, Reason> {
        let to = PointerSector::decode(self.guest, new).map_err(|_| {
            if matches!(new[FLAG_AT], 1 | 2) {
                Reason::PointerMisaligned
            } else {
                Reason::PointerFlag
            }
        })?;
        let (producer, consumer) = match self.guest {
            Side::Producer => (mine.pointer.position, host.position),
            Side::Consumer => (host.position, mine.pointer.position),
        };
        let used = producer.since(consumer).ok_or(Reason::HostCorrupt)?;
        let free = self.geometry.capacity().get().checked_sub(used).ok_or(Reason::HostCorrupt)?;
        let reach = match self.guest {
            Side::Producer => free,
            Side::Consumer => used,
        };
        let from = mine.pointer.position;
        let step = to.position.since(from).ok_or(Reason::PointerBackwards)?;
        if step > reach {
            return Err(Reason::PointerBeyond);
        }
        let published = match self.guest {
            Side::Producer => to.position,
            Side::Consumer => producer,
        };
        let tally = self.judge_slots(old, to.position, new)?;
        let count = tally.map(|tally| self.judge_tally(mine, host, to.position, tally));
        Ok(Move { from, to, published, tally, count: count.transpose()?.flatten() })
    }

    /// What the slot of the new position says. Its checksum over the stream is the consumer's to verify, once.
    fn judge_slots(&self, old: &[u8], to: Position, new: &[u8]) -> Result<Option<Tally>, Reason> {
        let Some(uuid) = self.uuid else {
            let zero = new[EXTENSION].iter().all(|&byte| byte == 0);
            return if zero { Ok(None) } else { Err(Reason::PointerExtension) };
        };
        let present = PointerSector::decode(self.guest, old).map_err(|_| Reason::HostCorrupt)?;
        if !follows(uuid, old, present.position, new, to) {
            return Err(Reason::PointerExtension);
        }
        let slot = find_slot(uuid, self.guest, new, to).map_err(|_| Reason::PointerExtension)?;
        Ok(slot.map(|slot| slot.tally))
    }

    /// How the number of items in a slot is verified; `None` where nobody can say.
    fn judge_tally(
        &self,
        mine: Mine,
        host: Host,
        to: Position,
        tally: Tally,
    ) -> Result<Option<Count>, Reason> {
        let from = mine.pointer.position;
        if tally.base == mine.tally.base && tally.since_base == mine.tally.since_base {
            let (start, expected) = (mine.tally.items, tally.items);
            return Ok(Some(Count { since: from, start, end: to, expected }));
        }
        if tally.since_base && tally.base >= from && tally.base <= to {
            return Ok(Some(Count { since: tally.base, start: 0, end: to, expected: tally.items }));
        }
        match self.guest {
            Side::Producer => Err(Reason::ItemCount),
            Side::Consumer => taken_over(host, to, tally),
        }
    }
}

/// Judges what a guest consumer has taken over from the host: the producer's own word of a position that it had published when the guest looked.
///
/// The producer may have gone on since, and its slot for that position be overwritten. If it still counts from the same place, its present
/// count is held against the items in between. If not, or if it says nothing now (its place was taken by one that writes no slots),
/// nothing contradicts the claim, now or later: where a producer begins to count lies at or behind what was published when it attached. It
/// remains the consumer's own word, bounded by the bytes that items take.
fn taken_over(host: Host, to: Position, tally: Tally) -> Result<Option<Count>, Reason> {
    let origin = if tally.since_base { tally.base } else { Position::ZERO };
    let most = to.since(origin).map(|bytes| bytes / HEADER_BYTES);
    if tally.base > to || most.is_none_or(|most| tally.items > most) {
        return Err(Reason::ItemCount);
    }
    match host.tally? {
        Some(host) if host.base == tally.base && host.since_base != tally.since_base => {
            Err(Reason::ItemCount)
        }
        Some(told) if told.base == tally.base || !(told.since_base || tally.since_base) => {
            let (start, expected) = (tally.items, told.items);
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

    /// Judges what follows a sector without slots.
    fn judge(guest: Side, mine: u64, host: u64, new: &[u8]) -> Result<Move, Reason> {
        let mine = Mine { pointer: pointer(mine), tally: Tally::from_here(at(mine)) };
        let host = Host { position: at(host), tally: Ok(None) };
        guard(guest).judge_pointer(mine, host, &sector(guest, mine.pointer), new)
    }

    #[test]
    fn a_pointer_moves_forward_within_the_ring() {
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
    fn a_guest_consumer_stays_behind_the_producer() {
        let to = |to| judge(Side::Consumer, 40, 100, &sector(Side::Consumer, pointer(to)));
        assert!(to(100).is_ok());
        assert_eq!(to(104), Err(Reason::PointerBeyond));
        assert_eq!(to(36), Err(Reason::PointerBackwards));
    }

    /// What a slot for position 64 must be, with two items of 12 bytes each in front of it and two behind it.
    fn counted(guest: Side, host: Host, tally: Tally) -> Result<Progress, Reason> {
        let guard = guard(guest);
        let known = Tally { items: 5, since_base: true, base: at(20), crc: 1 };
        let mine = Mine { pointer: pointer(40), tally: known };
        let old = sector(guest, mine.pointer);
        let mut new = sector(guest, pointer(64));
        put_slot(RING, &mut new, at(40), &Slot { position: at(64), tally, time_ns: 0 });
        let change = guard.judge_pointer(mine, host, &old, &new)?;
        change.walk().step(guard.geometry(), 9, |_| 8u32.to_le_bytes())
    }

    #[test]
    fn a_slot_counts_what_there_is() {
        for (guest, position) in [(Side::Producer, 0), (Side::Consumer, 88)] {
            let host = Host { position: at(position), tally: Ok(None) };
            let count = |since_base, base, items| {
                counted(guest, host, Tally { items, since_base, base: at(base), crc: 77 })
            };
            assert_eq!(count(true, 20, 7), Ok(Progress::Sound), "its checksum is the reader's");
            assert_eq!(count(true, 20, 8), Err(Reason::ItemCount));
            let since = |base, items| count(true, base, items);
            assert_eq!([since(40, 2), since(52, 1), since(64, 0)], [Ok(Progress::Sound); 3]);
            assert_eq!([since(40, 1), since(56, 1), since(68, 0)], [Err(Reason::ItemCount); 3]);
        }
    }

    #[test]
    fn a_consumer_may_take_over_what_the_producer_said_of_a_position_that_it_has_left() {
        let told = |position, items| {
            let tally = Tally { items, since_base: false, base: Position::ZERO, crc: 0 };
            (Host { position: at(position), tally: Ok(Some(tally)) }, tally)
        };
        let (_, claim) = told(64, 9);
        for (position, items) in [(64, 9), (76, 10), (88, 11)] {
            let (host, _) = told(position, items);
            assert_eq!(counted(Side::Consumer, host, claim), Ok(Progress::Sound));
            let producer = Host { position: at(0), ..host };
            assert_eq!(counted(Side::Producer, producer, claim), Err(Reason::ItemCount));
            let (host, _) = told(position, items + 1);
            assert_eq!(counted(Side::Consumer, host, claim), Err(Reason::ItemCount));
            let moved = Tally { base: at(4), ..claim };
            assert_eq!(counted(Side::Consumer, host, moved), Err(Reason::ItemCount));
            let otherwise = Tally { since_base: true, ..claim };
            assert_eq!(counted(Side::Consumer, host, otherwise), Err(Reason::ItemCount));
        }
        // Another producer has taken the place, one that writes no slots or began to count at 76.
        let later = Tally { items: 1, since_base: true, base: at(76), crc: 0 };
        for tally in [None, Some(later)] {
            let host = Host { position: at(88), tally: Ok(tally) };
            assert_eq!(counted(Side::Consumer, host, claim), Ok(Progress::Sound));
            let most = |items| counted(Side::Consumer, host, Tally { items, ..claim });
            assert_eq!([most(16), most(17)], [Ok(Progress::Sound), Err(Reason::ItemCount)]);
        }
        let unreadable = Host { position: at(88), tally: Err(Reason::HostCorrupt) };
        assert_eq!(counted(Side::Consumer, unreadable, claim), Err(Reason::HostCorrupt));
    }
}
