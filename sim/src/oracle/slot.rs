//! The slots of a pointer sector.

use super::number;

/// A slot's claim about the stream before its position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Number of items.
    pub items: u64,
    /// Whether items are counted from `base` on instead of from the ring's creation.
    pub since_base: bool,
    /// The position where the checksum starts.
    pub base: u64,
    /// Checksum of the stream from `base` on.
    pub crc: u32,
}

/// A pointer sector's statement about a position.
pub enum Found {
    /// A claim.
    Slot(Claim),
    /// No slot for the position.
    Nothing,
    /// A slot that no writer leaves behind.
    Broken,
}

impl Claim {
    /// Returns the claim of a writer that has counted nothing.
    pub fn from_here(position: u64) -> Self {
        Self { items: 0, since_base: position > 0, base: position, crc: 0 }
    }

    /// An item takes four bytes at least.
    pub fn possible(self, position: u64) -> bool {
        let origin = if self.since_base { self.base } else { 0 };
        self.base <= position && self.items <= (position - origin) / 4
    }

    /// Returns whether both claims count from the ring's creation.
    pub fn base_free(self, other: Self) -> bool {
        !self.since_base && !other.since_base
    }
}

/// Returns the checksum that a slot should have.
pub fn crc(uuid: [u8; 16], slot: &[u8]) -> u64 {
    let mut bytes = uuid.to_vec();
    bytes.extend(&slot[8..48]);
    u64::from(crc32c::crc32c(&bytes))
}

/// Returns a slot's bytes.
pub fn encode(uuid: [u8; 16], position: u64, claim: Claim) -> [u8; 48] {
    let mut slot = [0; 48];
    slot[..4].copy_from_slice(b"SBR1");
    slot[8..16].copy_from_slice(&position.to_le_bytes());
    slot[16..24].copy_from_slice(&claim.items.to_le_bytes());
    slot[24..32].copy_from_slice(&claim.base.to_le_bytes());
    slot[32..36].copy_from_slice(&claim.crc.to_le_bytes());
    slot[36] = u8::from(claim.since_base);
    let crc = crc(uuid, &slot).to_le_bytes();
    slot[4..8].copy_from_slice(&crc[..4]);
    slot
}

/// Returns the position of a slot, and its claim.
pub fn decode(uuid: [u8; 16], slot: &[u8]) -> Option<(u64, Claim)> {
    let claim = Claim {
        items: number(&slot[16..24]),
        since_base: slot[36] & 1 == 1,
        base: number(&slot[24..32]),
        crc: u32::try_from(number(&slot[32..36])).unwrap(),
    };
    let position = number(&slot[8..16]);
    let whole = &slot[..4] == b"SBR1" && number(&slot[4..8]) == crc(uuid, slot);
    (whole && position.is_multiple_of(4) && claim.base.is_multiple_of(4))
        .then_some((position, claim))
}

/// Returns the pointer sector's statement about `position`.
pub fn find(uuid: [u8; 16], sector: &[u8], position: u64) -> Found {
    let slots = [&sector[16..64], &sector[64..112]];
    let decoded = slots.map(|slot| decode(uuid, slot));
    for slot in decoded.into_iter().flatten() {
        if slot.0 == position {
            return Found::Slot(slot.1);
        }
    }
    let absent = slots.map(|slot| slot[..4] == [0; 4]);
    let later = decoded.map(|slot| slot.is_some_and(|(of, _)| of > position));
    match (absent, later) {
        // Left by a writer that died before it stored its first position.
        ([true, true], _) | ([true, false], [_, true]) | ([false, true], [true, _]) => {
            Found::Nothing
        }
        _ => Found::Broken,
    }
}
