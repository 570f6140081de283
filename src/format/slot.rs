//! The extension slots of a pointer sector: item count and checksum of the stream before a
//! position.
//!
//! There are two, so that the slot of the present position stays whole while the next one is
//! written. A slot whose first four bytes are zero is absent: an OCaml peer zeroes both.

use super::{FLAG_AT, FormatError, Position, Side, TEXT_AT, crc32c, crc32c_append, u32_at, u64_at};
use std::ops::Range;
use uuid::Uuid;

/// The first byte of each slot.
pub const SLOTS_AT: [usize; 2] = [16, 64];

/// Bytes in a slot.
pub const SLOT_BYTES: usize = 48;

/// The bytes of a pointer sector that are for extensions; an OCaml peer zeroes them.
pub const EXTENSION: Range<usize> = FLAG_AT + 1..TEXT_AT;

const MAGIC: &[u8; 4] = b"SBR1";

/// Flag bit of a slot: items are counted from the base, since the count before it is not known.
const SINCE_BASE: u32 = 1;

/// A tally: item count and checksum of a stream up to a position, as far as they are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tally {
    /// Items since the ring's creation, or since `base`.
    pub items: u64,
    /// Whether items are counted since `base`.
    pub since_base: bool,
    /// The position at which the checksum starts.
    pub base: Position,
    /// CRC32C of the stream from `base` on, framing and padding included.
    pub crc: u32,
}

impl Tally {
    /// Makes the tally at a `position` before which nothing is known.
    pub fn from_here(position: Position) -> Self {
        Self { items: 0, since_base: position != Position::ZERO, base: position, crc: 0 }
    }

    /// Returns the tally after `items` more items, which are `bytes` with their framing.
    #[must_use]
    pub fn extend(self, items: u64, bytes: &[u8]) -> Self {
        let crc = crc32c_append(self.crc, bytes);
        Self { items: self.items.saturating_add(items), crc, ..self }
    }
}

/// A slot: the tally of one position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Slot {
    /// The position that the slot is for.
    pub position: Position,
    /// The tally of the stream before that position.
    pub tally: Tally,
    /// Time of the write, in nanoseconds since 1970.
    pub time_ns: u64,
}

impl Slot {
    fn encode(&self, uuid: Uuid) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[8..16].copy_from_slice(&self.position.get().to_le_bytes());
        bytes[16..24].copy_from_slice(&self.tally.items.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.tally.base.get().to_le_bytes());
        bytes[32..36].copy_from_slice(&self.tally.crc.to_le_bytes());
        let flags = if self.tally.since_base { SINCE_BASE } else { 0 };
        bytes[36..40].copy_from_slice(&flags.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.time_ns.to_le_bytes());
        let crc = checksum(uuid, &bytes);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Returns `None` when the checksum does not hold, or a number that must be a position is none.
    fn decode(uuid: Uuid, bytes: &[u8]) -> Option<Self> {
        if !bytes.starts_with(MAGIC) || u32_at(bytes, 4) != checksum(uuid, bytes) {
            return None;
        }
        Some(Self {
            position: Position::new(u64_at(bytes, 8))?,
            tally: Tally {
                items: u64_at(bytes, 16),
                since_base: u32_at(bytes, 36) & SINCE_BASE != 0,
                base: Position::new(u64_at(bytes, 24))?,
                crc: u32_at(bytes, 32),
            },
            time_ns: u64_at(bytes, 40),
        })
    }
}

/// The bytes that a slot's checksum is over. In one aligned piece they take half the time of two.
#[repr(align(8))]
struct Sealed([u8; 16 + SLOT_BYTES - 8]);

fn checksum(uuid: Uuid, slot: &[u8]) -> u32 {
    let mut sealed = Sealed([0; 16 + SLOT_BYTES - 8]);
    sealed.0[..16].copy_from_slice(uuid.as_bytes());
    sealed.0[16..].copy_from_slice(&slot[8..SLOT_BYTES]);
    crc32c(&sealed.0)
}

/// Decodes a slot if it is for `position`: the checksum of another one is not computed.
fn slot_for(uuid: Uuid, slot: &[u8], position: Position) -> Option<Slot> {
    if u64_at(slot, 8) == position.get() { Slot::decode(uuid, slot) } else { None }
}

/// Returns the bytes of one of the two slots of a pointer sector.
fn slot_bytes(sector: &[u8], index: usize) -> &[u8] {
    &sector[SLOTS_AT[index]..SLOTS_AT[index] + SLOT_BYTES]
}

fn is_absent(slot: &[u8]) -> bool {
    slot[..MAGIC.len()] == [0; MAGIC.len()]
}

/// Finds the slot for `position`; `None` when the sector has no slots.
///
/// A slot for a later position beside an absent one was left by a writer that died before it stored
/// the position: it counts as none.
///
/// # Errors
/// [`FormatError::Slots`] when slots are present and none is for `position`.
pub fn find_slot(
    uuid: Uuid,
    side: Side,
    sector: &[u8],
    position: Position,
) -> Result<Option<Slot>, FormatError> {
    let slots = [0, 1].map(|index| slot_bytes(sector, index));
    if let Some(slot) = slots.iter().find_map(|bytes| slot_for(uuid, bytes, position)) {
        return Ok(Some(slot));
    }
    let (mut absent, mut later) = (0, 0);
    for bytes in slots {
        match Slot::decode(uuid, bytes) {
            Some(slot) => later += u32::from(slot.position > position),
            None => absent += u32::from(is_absent(bytes)),
        }
    }
    if absent == 2 || (absent == 1 && later == 1) {
        Ok(None)
    } else {
        Err(FormatError::Slots { side, position })
    }
}

/// Decodes the two slots of a pointer sector; `None` for one that is absent or damaged.
pub fn slots_of(uuid: Uuid, sector: &[u8]) -> [Option<Slot>; 2] {
    [0, 1].map(|index| Slot::decode(uuid, slot_bytes(sector, index)))
}

/// Returns the number of slots of a pointer sector that are neither whole nor absent.
pub fn damaged_slots(uuid: Uuid, sector: &[u8]) -> usize {
    let damaged = |index: &usize| {
        let bytes = slot_bytes(sector, *index);
        !is_absent(bytes) && Slot::decode(uuid, bytes).is_none()
    };
    (0..SLOTS_AT.len()).filter(damaged).count()
}

/// Returns the bytes of a pointer sector that must be zero: those around the slots and, in a ring
/// without an identity, the slots' own.
pub fn reserved(uuid: Option<Uuid>) -> [Range<usize>; 2] {
    match uuid {
        Some(_) => [EXTENSION.start..SLOTS_AT[0], SLOTS_AT[1] + SLOT_BYTES..EXTENSION.end],
        None => [EXTENSION, 0..0],
    }
}

/// Writes `slot` over the slot that is not for the sector's present position.
pub fn put_slot(uuid: Uuid, sector: &mut [u8], present: Position, slot: &Slot) {
    let index = usize::from(slot_for(uuid, slot_bytes(sector, 0), present).is_some());
    sector[SLOTS_AT[index]..SLOTS_AT[index] + SLOT_BYTES].copy_from_slice(&slot.encode(uuid));
}

/// Returns the slot for the position `to` in the pointer sector `new`; `None` if that sector has no
/// slots. `new` has to be a sector that may be written over `old`, for the position `present`, by the
/// rules for slots: at most one slot changes, it becomes the slot for `to`, and it was not the slot
/// for `present`; the bytes around the slots are zero. Or both slots are absent.
///
/// No slot has to change if one is for `to` already: a writer that died before it stored the
/// position left it, and its successor writes the same once more.
///
/// # Errors
/// [`FormatError::Slots`] if the sector may not be written.
pub fn following_slot(
    uuid: Uuid,
    side: Side,
    (old, present): (&[u8], Position),
    (new, to): (&[u8], Position),
) -> Result<Option<Slot>, FormatError> {
    let refused = Err(FormatError::Slots { side, position: to });
    if new[EXTENSION].iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let zero = |range: Range<usize>| new[range].iter().all(|&byte| byte == 0);
    if !reserved(Some(uuid)).into_iter().all(zero) {
        return refused;
    }
    let [before, after] = [old, new].map(|sector| [0, 1].map(|index| slot_bytes(sector, index)));
    let (index, other) = match (before[0] != after[0], before[1] != after[1]) {
        (true, true) => return refused,
        (true, false) => (0, 1),
        (false, true) => (1, 0),
        (false, false) => {
            let slot = find_slot(uuid, side, new, to)?;
            return if slot.is_some() || to == present { Ok(slot) } else { refused };
        }
    };
    if slot_for(uuid, before[index], present).is_some() {
        return refused;
    }
    match slot_for(uuid, after[index], to) {
        // A reader takes the first of two slots for one position.
        Some(slot) if index > other => Ok(slot_for(uuid, after[other], to).or(Some(slot))),
        Some(slot) => Ok(Some(slot)),
        None => refused,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const RING: Uuid = Uuid::from_u128(0x1234_5678);

    fn at(bytes: u64) -> Position {
        Position::new(bytes).unwrap()
    }

    fn slot(position: u64) -> Slot {
        let tally = Tally { items: 3, since_base: false, base: Position::ZERO, crc: 0xdead_beef };
        Slot { position: at(position), tally, time_ns: 17 }
    }

    fn find(sector: &[u8], position: u64) -> Result<Option<Slot>, FormatError> {
        find_slot(RING, Side::Producer, sector, at(position))
    }

    fn follow(old: (&[u8], Position), new: (&[u8], Position)) -> Result<Option<Slot>, FormatError> {
        following_slot(RING, Side::Producer, old, new)
    }

    #[test]
    fn put_slot_keeps_the_slot_of_the_present_position() {
        let mut sector = [0; 512];
        assert_eq!(find(&sector, 0), Ok(None));
        for step in 1..if cfg!(miri) { 6 } else { 20 } {
            let (present, next) = (at((step - 1) * 4), step * 4);
            let before = sector;
            put_slot(RING, &mut sector, present, &slot(next));
            let followed = follow((&before, present), (&sector, at(next)));
            assert_eq!(followed, Ok(Some(slot(next))));
            if step > 1 {
                assert_eq!(find(&sector, present.get()), Ok(Some(slot(present.get()))));
            }
            assert_eq!(find(&sector, next), Ok(Some(slot(next))));
        }
    }

    #[test]
    fn find_slot_overlooks_the_first_slot_of_a_writer_that_died() {
        let mut sector = [0; 512];
        put_slot(RING, &mut sector, at(8), &slot(12));
        assert_eq!(find(&sector, 8), Ok(None));
        assert!(find(&sector, 16).is_err(), "positions only grow");
        put_slot(RING, &mut sector, at(8), &slot(16));
        assert_eq!(find(&sector, 16), Ok(Some(slot(16))));
        put_slot(RING, &mut sector, at(16), &slot(20));
        assert_eq!(
            find(&sector, 24),
            Err(FormatError::Slots { side: Side::Producer, position: at(24) })
        );
    }

    #[test]
    fn find_slot_refuses_a_flipped_bit_and_the_slot_of_another_ring() {
        let mut sector = [0; 512];
        put_slot(RING, &mut sector, at(0), &slot(8));
        put_slot(RING, &mut sector, at(8), &slot(12));
        let other = find_slot(Uuid::from_u128(1), Side::Producer, &sector, at(12));
        assert!(other.is_err());
        // An interpreter (Miri) takes a second for three of them.
        let step = if cfg!(miri) { 11 } else { 1 };
        for byte in (SLOTS_AT[1]..SLOTS_AT[1] + SLOT_BYTES).step_by(step) {
            let mut damaged = sector;
            damaged[byte] ^= 1;
            assert!(find(&damaged, 12).is_err(), "byte {byte}");
            assert_eq!(find(&damaged, 8), Ok(Some(slot(8))));
        }
    }

    #[test]
    fn sector_may_change_only_the_slot_of_the_new_position() {
        let mut old = [0; 512];
        put_slot(RING, &mut old, at(0), &slot(8));
        put_slot(RING, &mut old, at(8), &slot(12));
        let mut next = old;
        put_slot(RING, &mut next, at(12), &slot(16));
        let after = |bytes: &[usize], to| {
            let mut new = next;
            for &byte in bytes {
                new[byte] ^= 1;
            }
            follow((&old, at(12)), (&new, at(to)))
        };
        assert_eq!(after(&[], 16), Ok(Some(slot(16))));
        assert_eq!(follow((&old, at(12)), (&old, at(12))), Ok(Some(slot(12))));
        assert!(after(&[], 20).is_err() && follow((&old, at(12)), (&old, at(16))).is_err());
        assert!(after(&[SLOTS_AT[0]], 16).is_err() && after(&[SLOTS_AT[1]], 16).is_err());
        assert!(after(&[9], 16).is_err() && after(&[127], 16).is_err());
        assert_eq!(follow((&old, at(12)), (&[0; 512], at(16))), Ok(None));
        let left = |to| follow((&next, at(12)), (&next, at(to)));
        assert_eq!(left(16), Ok(Some(slot(16))));
        assert!(left(20).is_err() && left(8).is_err());
    }

    #[test]
    fn first_of_two_slots_for_the_new_position_counts() {
        // The first one was left by a writer that died, and says something else.
        let mut old = [0; 512];
        let other = Slot { time_ns: 99, ..slot(16) };
        old[SLOTS_AT[0]..SLOTS_AT[0] + SLOT_BYTES].copy_from_slice(&other.encode(RING));
        let mut new = old;
        new[SLOTS_AT[1]..SLOTS_AT[1] + SLOT_BYTES].copy_from_slice(&slot(16).encode(RING));
        assert_eq!(follow((&old, at(12)), (&new, at(16))), Ok(Some(other)));
        assert_eq!(find(&new, 16), Ok(Some(other)));
    }
}
