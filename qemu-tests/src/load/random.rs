//! Numbers from a seed.

/// `SplitMix64`: eight bytes a step, the same everywhere for a seed.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// Makes a sequence of numbers from a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Makes a sequence of numbers from a seed and a purpose.
    pub fn of(seed: u64, parts: &[u64]) -> Self {
        let mix = |state, &part| Self(state ^ part).next_u64();
        Self(parts.iter().fold(seed, mix))
    }

    /// Returns the next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `limit`, which is not 0. Small numbers are slightly more likely.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }

    /// Returns a count below `limit`.
    pub fn count(&mut self, limit: usize) -> usize {
        usize::try_from(self.below(limit as u64)).unwrap_or(0)
    }

    /// Returns true once in `times`.
    pub fn one_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let random = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&random[..chunk.len()]);
        }
    }
}
