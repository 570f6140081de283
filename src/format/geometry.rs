//! Where the bytes of a stream lie on a device.

use super::{FormatError, Position, Side};

/// Signature, two pointers, and one sector of data.
pub const MIN_SECTORS: u64 = 4;

/// Sectors in front of the data area.
const HEAD_SECTORS: u64 = 3;

/// Bytes in a logical sector: a power of two from 512 to 65,536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SectorSize(u32);

impl SectorSize {
    /// What nearly every disk, and a regular file unless told otherwise, has.
    pub const DEFAULT: Self = Self(512);

    /// Refuses what no block device has: the bound also keeps every offset within a sector in 32 bits.
    pub fn new(bytes: u32) -> Result<Self, FormatError> {
        if bytes.is_power_of_two() && (512..=65536).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(FormatError::SectorSize(bytes))
        }
    }

    /// In bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// In bytes, as an index type.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }
}

/// Bytes in the data area: what can lie between consumer and producer at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Capacity(u64);

impl Capacity {
    /// In bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The longest payload that can ever fit.
    pub fn max_item(self) -> usize {
        let longest = (self.0 - super::HEADER_BYTES).min(u64::from(u32::MAX));
        usize::try_from(longest).unwrap_or(usize::MAX)
    }
}

/// A contiguous run of bytes on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First byte, counted from the device's start.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

/// A device's shape, known to hold a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    sector_size: SectorSize,
    sectors: u64,
}

impl Geometry {
    /// Refuses a device too small for a ring, or one whose bytes a `u64` (with room to add to) cannot count.
    pub fn new(sector_size: SectorSize, sectors: u64) -> Result<Self, FormatError> {
        let shape = (sectors, sector_size.get());
        if sectors < MIN_SECTORS {
            return Err(FormatError::TooSmall { sectors: shape.0, sector_size: shape.1 });
        }
        match sectors.checked_mul(u64::from(sector_size.get())) {
            Some(bytes) if i64::try_from(bytes).is_ok() => Ok(Self { sector_size, sectors }),
            _ => Err(FormatError::TooLarge { sectors: shape.0, sector_size: shape.1 }),
        }
    }

    /// Bytes in a sector.
    pub const fn sector_size(self) -> SectorSize {
        self.sector_size
    }

    /// Sectors on the device.
    pub const fn sectors(self) -> u64 {
        self.sectors
    }

    /// Bytes on the device.
    pub const fn total_bytes(self) -> u64 {
        self.sectors * self.sector_size.0 as u64
    }

    /// Bytes in the data area.
    pub const fn capacity(self) -> Capacity {
        Capacity((self.sectors - HEAD_SECTORS) * self.sector_size.0 as u64)
    }

    /// First byte of the data area.
    pub const fn data_start(self) -> u64 {
        HEAD_SECTORS * self.sector_size.0 as u64
    }

    /// First byte of a pointer sector.
    pub fn pointer_start(self, side: Side) -> u64 {
        side.sector() * u64::from(self.sector_size.0)
    }

    /// The byte of the data area that holds stream byte `position`, counted from the area's start.
    pub fn data_offset(self, position: u64) -> u64 {
        position % self.capacity().get()
    }

    /// Where `len <= capacity` stream bytes from `position` lie: one run, or two when they straddle the wrap point
    /// (the second is empty otherwise).
    pub fn extents(self, position: u64, len: u64) -> [Extent; 2] {
        debug_assert!(len <= self.capacity().get());
        let start = self.data_offset(position);
        let first = len.min(self.capacity().get() - start);
        [
            Extent { offset: self.data_start() + start, len: first },
            Extent { offset: self.data_start(), len: len - first },
        ]
    }

    /// `position` moved back to the start of its sector.
    pub fn sector_floor(self, position: u64) -> u64 {
        position - position % u64::from(self.sector_size.0)
    }

    /// `position` moved on to the next start of a sector, itself if it is one.
    pub fn sector_ceil(self, position: u64) -> u64 {
        position.next_multiple_of(u64::from(self.sector_size.0))
    }
}

/// The lap around the data area that was looked at last: positions are looked up one after the other, and the division is most of what that
/// costs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lap {
    start: u64,
}

impl Lap {
    /// [`Geometry::data_offset`].
    pub fn data_offset(&mut self, geometry: Geometry, position: Position) -> u64 {
        let position = position.get();
        match position.checked_sub(self.start) {
            Some(offset) if offset < geometry.capacity().get() => offset,
            _ => {
                let offset = geometry.data_offset(position);
                self.start = position - offset;
                offset
            }
        }
    }

    /// The end of what lies in one run with `from`, of the stream bytes `from..to`.
    pub fn run(&mut self, geometry: Geometry, from: Position, to: Position) -> Position {
        let left = geometry.capacity().get() - self.data_offset(geometry, from);
        from.checked_add(left).map_or(to, |wrap| wrap.min(to))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_lap_knows_every_offset_whatever_was_asked_before() {
        let geometry = Geometry::new(SectorSize::DEFAULT, MIN_SECTORS + 2).unwrap();
        let at = |bytes| Position::new(bytes).unwrap();
        let mut lap = Lap::default();
        for position in [0, 4, 1532, 1536, 1540, 1 << 40, 8, (1 << 40) + 1536, u64::MAX - 3, 0] {
            let offset = geometry.data_offset(position);
            assert_eq!(lap.data_offset(geometry, at(position)), offset);
            let end = lap.run(geometry, at(position), at(u64::MAX - 3));
            assert_eq!(end.get(), (u64::MAX - 3).min(position.saturating_add(1536 - offset)));
        }
    }
}
