//! Choice of the sector versions that a crash keeps.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Chooses the sector versions that a crash keeps, by a seed, with a preference for harmful ones.
pub struct Adversary {
    random: SmallRng,
    taste: Taste,
    /// The first data sector.
    data: u64,
}

#[derive(Clone, Copy)]
enum Taste {
    Nothing,
    Everything,
    Anything,
    /// Pointer sectors are kept, data sectors are not.
    Pointers,
    /// Data sectors are kept, pointer sectors are not.
    Data,
    /// All but one sector are kept.
    AllButOne,
}

impl Adversary {
    /// Makes the choice of one crash. Sectors from `data` on hold no pointers.
    pub fn new(seed: u64, data: u64) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let taste = match random.random_range(0..8) {
            0 => Taste::Nothing,
            1 => Taste::Everything,
            2 => Taste::Pointers,
            3 => Taste::Data,
            4 => Taste::AllButOne,
            _ => Taste::Anything,
        };
        Self { random, taste, data }
    }

    /// Chooses a version of a sector, for [`Disk::crash`](crate::Disk::crash).
    pub fn choose(&mut self, sector: u64, versions: usize) -> usize {
        let last = versions - 1;
        match self.taste {
            Taste::Nothing => 0,
            Taste::Everything => last,
            Taste::Anything => self.random.random_range(0..versions),
            Taste::Pointers => last * usize::from(sector < self.data),
            Taste::Data => last * usize::from(sector >= self.data),
            Taste::AllButOne => {
                let gone = self.random.random_bool(0.2);
                if gone { self.random.random_range(0..versions) } else { last }
            }
        }
    }
}
