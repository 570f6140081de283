//! Items that can be judged alone: a stamp, and a body of random length that follows from it.

use super::Random;

/// Bytes of a stamp in front of the body.
const STAMP_BYTES: usize = 20;

/// Largest number of items in a batch.
pub const MAX_BATCH: u32 = 8;

/// Largest size of an item in bytes. A whole batch fits into the rings of the campaigns.
pub const MAX_ITEM: usize = 6000;

/// Stamp of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The producer's run.
    pub run: u32,
    /// The batch within the run, from 0.
    pub batch: u32,
    /// The item within the batch, from 0.
    pub index: u32,
    /// Items in the batch.
    pub size: u32,
    /// The item within the run, from 0.
    pub number: u32,
}

impl Stamp {
    /// Returns the stamp that an item claims to have.
    pub fn of(item: &[u8]) -> Option<Self> {
        let word = |at: usize| {
            let bytes = item.get(at * 4..at * 4 + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        Some(Self {
            run: word(0)?,
            batch: word(1)?,
            index: word(2)?,
            size: word(3)?,
            number: word(4)?,
        })
    }

    /// Returns whether another one follows in the same batch.
    pub fn has_next(self) -> bool {
        self.index + 1 < self.size
    }
}

/// Maker of a campaign's items.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recipe {
    /// Seed of all items.
    pub seed: u64,
}

impl Recipe {
    /// Items in a batch.
    pub fn batch_size(self, run: u32, batch: u32) -> u32 {
        let mut random = Random::of(self.seed, &[1, run.into(), batch.into()]);
        // Below MAX_BATCH.
        1 + u32::try_from(random.below(MAX_BATCH.into())).unwrap_or(0)
    }

    /// Returns the item with this stamp: the same bytes for everybody who knows the seed.
    pub fn item(self, stamp: Stamp) -> Vec<u8> {
        let parts = [2, stamp.run.into(), stamp.batch.into(), stamp.index.into()];
        let mut random = Random::of(self.seed, &parts);
        // With its header of 4 bytes, the sector's boundary is met from both sides.
        let near_a_sector = (1 + random.count(4)) * 512 - STAMP_BYTES - 12 + random.count(16);
        let body = match random.below(4) {
            0 => near_a_sector,
            1 => random.count(MAX_ITEM - STAMP_BYTES),
            _ => random.count(200),
        };
        let mut item = vec![0; STAMP_BYTES + body];
        random.fill(&mut item[STAMP_BYTES..]);
        let words = [stamp.run, stamp.batch, stamp.index, stamp.size, stamp.number];
        for (bytes, word) in item.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        item
    }
}

/// FNV-1a: any changed byte shows, and it has nothing in common with the ring's own checksum.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_follows_from_its_stamp_and_carries_it() {
        let recipe = Recipe { seed: 7 };
        let mut lengths = Vec::new();
        for batch in 0..1000 {
            let size = recipe.batch_size(3, batch);
            assert!((1..=MAX_BATCH).contains(&size));
            let stamp = Stamp { run: 3, batch, index: size - 1, size, number: batch };
            let item = recipe.item(stamp);
            assert_eq!(Stamp::of(&item), Some(stamp));
            assert!(item.len() <= MAX_ITEM);
            assert_eq!(item, recipe.item(stamp));
            lengths.push(item.len());
        }
        lengths.sort_unstable();
        assert!(lengths[100] < 200 && lengths[900] > 1000, "short ones and long ones");
        assert_eq!(Stamp::of(&[0; STAMP_BYTES - 1]), None);
        assert_ne!(hash(&recipe.item(Stamp { run: 0, batch: 0, index: 0, size: 1, number: 0 })), 0);
    }
}
