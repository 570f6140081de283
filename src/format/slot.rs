//! The extension slots of a pointer sector: what the stream was up to a position.
//!
//! Two slots, so that the one that speaks for the present position stays whole while the next one is written. A slot whose
//! first four bytes are zero is absent: an OCaml peer zeroes both.

use super::{FLAG_AT, FormatError, Position, Side, TEXT_AT, crc32c, crc32c_append};
use std::ops::Range;
use uuid::Uuid;

/// First byte of each slot.
pub const SLOTS_AT: [usize; 2] = [16, 64];

/// Bytes in a slot.
pub const SLOT_BYTES: usize = 48;

/// The bytes of a pointer sector that extensions live in; an OCaml peer zeroes them.
pub const EXTENSION: Range<usize> = FLAG_AT + 1..TEXT_AT;

const MAGIC: &[u8; 4] = b"SBR1";

/// Flag bit: items are counted from the base, since what came before is not known.
const SINCE_BASE: u32 = 1;

/// What is known of a stream before a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tally {
    /// Items: since the ring's creation, or since `base`.
    pub items: u64,
    /// Whether they are counted since `base`.
    pub since_base: bool,
    /// Where the checksum starts.
    pub base: Position,
    /// CRC32C of the stream from `base` on, framing and padding included.
    pub crc: u32,
}

impl Tally {
    /// Nothing is known of what lies before `position`.
    pub fn from_here(position: Position) -> Self {
        Self { items: 0, since_base: position != Position::ZERO, base: position, crc: 0 }
    }

    /// After `items` more, which are `bytes` with their framing.
    #[must_use]
    pub fn extend(self, items: u64, bytes: &[u8]) -> Self {
        let crc = crc32c_append(self.crc, bytes);
        Self { items: self.items.saturating_add(items), crc, ..self }
    }
}

/// One slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The position it speaks for.
    pub position: Position,
    /// What is known of the stream before it.
    pub tally: Tally,
    /// Time of the write, nanoseconds since 1970.
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

    /// `None` when its checksum does not hold, or it speaks for what is no position.
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

/// What a slot's checksum is over, in one piece and where words lie as processors take them: half the time of two pieces.
#[repr(align(8))]
struct Sealed([u8; 16 + SLOT_BYTES - 8]);

fn checksum(uuid: Uuid, slot: &[u8]) -> u32 {
    let mut sealed = Sealed([0; 16 + SLOT_BYTES - 8]);
    sealed.0[..16].copy_from_slice(uuid.as_bytes());
    sealed.0[16..].copy_from_slice(&slot[8..SLOT_BYTES]);
    crc32c(&sealed.0)
}

/// Whether a slot is whole and speaks for `position`; that of another position is not worth its checksum.
fn speaks(uuid: Uuid, slot: &[u8], position: Position) -> Option<Slot> {
    if u64_at(slot, 8) == position.get() { Slot::decode(uuid, slot) } else { None }
}

/// One of the two slots of a pointer sector.
fn place(sector: &[u8], index: usize) -> &[u8] {
    &sector[SLOTS_AT[index]..SLOTS_AT[index] + SLOT_BYTES]
}

fn is_absent(slot: &[u8]) -> bool {
    slot[..MAGIC.len()] == [0; MAGIC.len()]
}

/// The slot that speaks for `position`; `None` when the sector has no slots.
///
/// A slot that speaks for a later position beside an absent one is left by a writer that died before it stored the position:
/// as good as none.
pub fn find_slot(
    uuid: Uuid,
    side: Side,
    sector: &[u8],
    position: Position,
) -> Result<Option<Slot>, FormatError> {
    let places = [0, 1].map(|index| place(sector, index));
    if let Some(slot) = places.iter().find_map(|bytes| speaks(uuid, bytes, position)) {
        return Ok(Some(slot));
    }
    let (mut absent, mut later) = (0, 0);
    for bytes in places {
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

/// What is whole of the two slots of a pointer sector.
pub fn slots_of(uuid: Uuid, sector: &[u8]) -> [Option<Slot>; 2] {
    [0, 1].map(|index| Slot::decode(uuid, place(sector, index)))
}

/// How many of the two slots of a pointer sector are neither whole nor absent.
pub fn damaged_slots(uuid: Uuid, sector: &[u8]) -> usize {
    let damaged = |index: &usize| {
        let bytes = place(sector, *index);
        !is_absent(bytes) && Slot::decode(uuid, bytes).is_none()
    };
    (0..SLOTS_AT.len()).filter(damaged).count()
}

/// Writes `slot` over one that does not speak for the sector's present position.
pub fn put_slot(uuid: Uuid, sector: &mut [u8], present: Position, slot: &Slot) {
    let index = usize::from(speaks(uuid, place(sector, 0), present).is_some());
    sector[SLOTS_AT[index]..SLOTS_AT[index] + SLOT_BYTES].copy_from_slice(&slot.encode(uuid));
}

/// Whether a pointer sector that is to follow `old` keeps to the rules of writing slots: at most one of them changes, to one that speaks
/// for the new position, and not the one that speaks for the present one; the bytes around them are zero. Or there are none any more.
///
/// None has to change if one speaks for the new position already: it was left by a writer that died before it stored the position, and
/// whoever comes after it writes the same once more.
pub fn follows(uuid: Uuid, old: &[u8], present: Position, new: &[u8], to: Position) -> bool {
    if new[EXTENSION].iter().all(|&byte| byte == 0) {
        return true;
    }
    let left = |index| speaks(uuid, place(new, index), to).is_some();
    let mut spoken = to == present || (0..SLOTS_AT.len()).any(left);
    let mut changed = 0;
    for index in 0..SLOTS_AT.len() {
        let (before, after) = (place(old, index), place(new, index));
        if before == after {
            continue;
        }
        changed += 1;
        spoken = speaks(uuid, after, to).is_some() && speaks(uuid, before, present).is_none();
    }
    let around = [EXTENSION.start..SLOTS_AT[0], SLOTS_AT[1] + SLOT_BYTES..EXTENSION.end];
    let clear = around.iter().all(|range| new[range.clone()].iter().all(|&byte| byte == 0));
    spoken && changed <= 1 && clear
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
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

    #[test]
    fn the_slot_of_the_present_position_stays_while_the_next_is_written() {
        let mut sector = [0; 512];
        assert_eq!(find(&sector, 0), Ok(None));
        for step in 1..20 {
            let (present, next) = (at((step - 1) * 4), step * 4);
            let before = sector;
            put_slot(RING, &mut sector, present, &slot(next));
            assert!(follows(RING, &before, present, &sector, at(next)));
            if step > 1 {
                assert_eq!(find(&sector, present.get()), Ok(Some(slot(present.get()))));
            }
            assert_eq!(find(&sector, next), Ok(Some(slot(next))));
        }
    }

    #[test]
    fn a_slot_of_a_writer_that_died_while_it_wrote_its_first_counts_for_nothing() {
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
    fn a_flipped_bit_or_another_ring_is_no_slot() {
        let mut sector = [0; 512];
        put_slot(RING, &mut sector, at(0), &slot(8));
        put_slot(RING, &mut sector, at(8), &slot(12));
        let other = find_slot(Uuid::from_u128(1), Side::Producer, &sector, at(12));
        assert!(other.is_err());
        for byte in SLOTS_AT[1]..SLOTS_AT[1] + SLOT_BYTES {
            let mut damaged = sector;
            damaged[byte] ^= 1;
            assert!(find(&damaged, 12).is_err(), "byte {byte}");
            assert_eq!(find(&damaged, 8), Ok(Some(slot(8))));
        }
    }

    #[test]
    fn only_the_next_slot_follows() {
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
            follows(RING, &old, at(12), &new, at(to))
        };
        assert!(after(&[], 16) && follows(RING, &old, at(12), &old, at(12)));
        assert!(!after(&[], 20) && !follows(RING, &old, at(12), &old, at(16)));
        assert!(!after(&[SLOTS_AT[0]], 16) && !after(&[SLOTS_AT[1]], 16));
        assert!(!after(&[9], 16) && !after(&[127], 16));
        assert!(follows(RING, &old, at(12), &[0; 512], at(16)));
        let left = |to| follows(RING, &next, at(12), &next, at(to));
        assert!(left(16) && !left(20) && !left(8));
    }
}
