//! Reading a pointer sector while its writer may be changing it.
//!
//! A reading can meet a write halfway: a slot that is being overwritten has no valid checksum, and
//! the slot of the position that was read can already be gone when the writer is two positions
//! further on. So a slot that is for the position is final at once, and everything else only
//! when repeated readings show the same bytes.

use super::{FormatError, Position, Side, Slot, find_slot};
use uuid::Uuid;

/// Readings in succession that repeat the bytes of the one before them, after which slots that
/// contradict the position are damage and no write under way.
const MAX_REPEATS: u32 = 4;

/// Readings in all: more than a writer can disturb by chance.
const MAX_READINGS: u32 = 1000;

/// The search for the slot for a pointer sector's position, over repeated readings of
/// that sector: a state machine without I/O. The caller reads, [`SlotSearch::observe`] decides.
#[derive(Debug)]
pub struct SlotSearch<'a> {
    uuid: Uuid,
    side: Side,
    previous: &'a mut Vec<u8>,
    repeats: u32,
    readings: u32,
}

/// The result of one reading of a pointer sector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reading {
    /// The reading is consistent. The slot for its position, or `None` where the sector
    /// has no slots.
    Final(Option<Slot>),
    /// The writer may be halfway: the sector has to be read again.
    Again,
}

impl<'a> SlotSearch<'a> {
    /// Begins a search in `side`'s pointer sector. `previous` is memory for a copy of the sector;
    /// it is cleared, and allocated only if a first reading is not final.
    pub fn new(uuid: Uuid, side: Side, previous: &'a mut Vec<u8>) -> Self {
        previous.clear();
        Self { uuid, side, previous, repeats: 0, readings: 0 }
    }

    /// Judges a reading of the whole sector, whose position is `position`.
    ///
    /// # Errors
    ///
    /// [`FormatError::Slots`] when no slot is for the position although the sector has slots,
    /// in several readings that are the same, or in too many that are not.
    pub fn observe(&mut self, sector: &[u8], position: Position) -> Result<Reading, FormatError> {
        let found = find_slot(self.uuid, self.side, sector, position);
        if let Ok(Some(slot)) = found {
            return Ok(Reading::Final(Some(slot)));
        }
        let repeated = *self.previous == sector;
        self.repeats = if repeated { self.repeats + 1 } else { 0 };
        self.readings += 1;
        // At the very start of a stream there is nothing to say. Elsewhere one reading does not
        // show that there are no slots: see above.
        let has_no_slots = found.is_ok() && (repeated || position == Position::ZERO);
        if has_no_slots {
            return Ok(Reading::Final(None));
        }
        if self.repeats == MAX_REPEATS || self.readings == MAX_READINGS {
            return Err(FormatError::Slots { side: self.side, position });
        }
        self.previous.clear();
        self.previous.extend_from_slice(sector);
        Ok(Reading::Again)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{SLOTS_AT, Tally, put_slot};
    use super::*;

    const RING: Uuid = Uuid::from_u128(7);

    fn at(bytes: u64) -> Position {
        Position::new(bytes).unwrap()
    }

    fn slot(position: u64) -> Slot {
        let tally = Tally { items: 3, since_base: false, base: Position::ZERO, crc: 1 };
        Slot { position: at(position), tally, time_ns: 17 }
    }

    /// A sector with slots for positions 8 and 12.
    fn sector() -> [u8; 512] {
        let mut sector = [0; 512];
        put_slot(RING, &mut sector, at(0), &slot(8));
        put_slot(RING, &mut sector, at(8), &slot(12));
        sector
    }

    #[test]
    fn search_ends_at_the_first_reading_with_a_slot_for_the_position() {
        let mut previous = Vec::new();
        let mut search = SlotSearch::new(RING, Side::Consumer, &mut previous);
        let mut halfway = sector();
        halfway[SLOTS_AT[1] + 8] ^= 1;
        assert_eq!(search.observe(&halfway, at(12)), Ok(Reading::Again));
        assert_eq!(search.observe(&sector(), at(12)), Ok(Reading::Final(Some(slot(12)))));
    }

    #[test]
    fn search_reports_no_slots_only_when_a_reading_repeats() {
        let mut previous = vec![1; 512];
        let mut search = SlotSearch::new(RING, Side::Producer, &mut previous);
        let (blank, mut other) = ([0; 512], [0; 512]);
        other[200] = 1;
        assert_eq!(search.observe(&blank, at(12)), Ok(Reading::Again));
        assert_eq!(search.observe(&other, at(12)), Ok(Reading::Again));
        assert_eq!(search.observe(&other, at(12)), Ok(Reading::Final(None)));
        let mut start = SlotSearch::new(RING, Side::Producer, &mut previous);
        assert_eq!(start.observe(&blank, Position::ZERO), Ok(Reading::Final(None)));
    }

    #[test]
    fn search_fails_after_repeated_readings_or_too_many() {
        let mut previous = Vec::new();
        let damaged = Err(FormatError::Slots { side: Side::Producer, position: at(16) });
        let mut search = SlotSearch::new(RING, Side::Producer, &mut previous);
        for _ in 0..MAX_REPEATS {
            assert_eq!(search.observe(&sector(), at(16)), Ok(Reading::Again));
        }
        assert_eq!(search.observe(&sector(), at(16)), damaged);
        let mut search = SlotSearch::new(RING, Side::Producer, &mut previous);
        let mut changing = sector();
        for _ in 1..MAX_READINGS {
            assert_eq!(search.observe(&changing, at(16)), Ok(Reading::Again));
            changing[300] ^= 1;
        }
        assert_eq!(search.observe(&changing, at(16)), damaged);
    }
}
