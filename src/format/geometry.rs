//! The shape of a device, and where the bytes of a stream lie on it.

use super::{FormatError, Position, Side};

/// Sectors of the smallest ring: signature, two pointers, and one sector of data.
pub const MIN_SECTORS: u64 = 4;

/// Sectors in front of the data area.
const HEAD_SECTORS: u64 = 3;

/// The size of a logical sector: a power of two from 512 to 65,536 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SectorSize(u32);

impl SectorSize {
    /// 512 bytes: the size of nearly every disk's sectors, and of a file's unless another one is
    /// chosen.
    pub const DEFAULT: Self = Self(512);

    /// Makes a sector size of a number of bytes. The bound keeps every offset within a sector in 32
    /// bits.
    ///
    /// # Errors
    /// [`FormatError::SectorSize`] for a size that no block device has.
    pub fn new(bytes: u32) -> Result<Self, FormatError> {
        if bytes.is_power_of_two() && (512..=65536).contains(&bytes) {
            Ok(Self(bytes))
        } else {
            Err(FormatError::SectorSize(bytes))
        }
    }

    /// Returns the size in bytes.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the size in bytes, as an index type.
    pub const fn bytes(self) -> usize {
        self.0 as usize
    }
}

impl Default for SectorSize {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for SectorSize {
    type Error = FormatError;

    fn try_from(bytes: u32) -> Result<Self, FormatError> {
        Self::new(bytes)
    }
}

/// The size of the data area: the most bytes that can lie between consumer and producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Capacity(u64);

impl Capacity {
    /// Returns the capacity in bytes.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns the bytes of the longest payload that fits into an empty ring.
    pub fn max_item(self) -> usize {
        let longest = (self.0 - super::HEADER_BYTES).min(u64::from(u32::MAX));
        usize::try_from(longest).unwrap_or(usize::MAX)
    }
}

/// A contiguous run of bytes on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First byte, counted from the device's start.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

/// The shape of a device that can hold a ring: sector size and number of sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    sector_size: SectorSize,
    sectors: u64,
}

impl Geometry {
    /// Makes the shape of a device of `sectors` sectors.
    ///
    /// # Errors
    /// [`FormatError::TooSmall`] for fewer than [`MIN_SECTORS`], [`FormatError::TooLarge`] for more
    /// bytes than an `i64` counts.
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

    /// Returns the sector size.
    pub const fn sector_size(self) -> SectorSize {
        self.sector_size
    }

    /// Returns the number of sectors on the device.
    pub const fn sectors(self) -> u64 {
        self.sectors
    }

    /// Returns the number of bytes on the device.
    pub const fn total_bytes(self) -> u64 {
        self.sectors * self.sector_size.0 as u64
    }

    /// Returns the size of the data area.
    pub const fn capacity(self) -> Capacity {
        Capacity((self.sectors - HEAD_SECTORS) * self.sector_size.0 as u64)
    }

    /// Returns the first byte of the data area.
    pub const fn data_start(self) -> u64 {
        HEAD_SECTORS * self.sector_size.0 as u64
    }

    /// Returns the first byte of a pointer sector.
    pub fn pointer_start(self, side: Side) -> u64 {
        side.sector() * u64::from(self.sector_size.0)
    }

    /// Returns the byte of the data area, counted from its start, that holds stream byte
    /// `position`.
    pub fn data_offset(self, position: u64) -> u64 {
        position % self.capacity().get()
    }

    /// Returns where `len <= capacity` stream bytes from `position` lie: in one run, or in two when
    /// they straddle the wrap point (otherwise the second is empty).
    pub fn extents(self, position: u64, len: u64) -> [Extent; 2] {
        debug_assert!(len <= self.capacity().get());
        let start = self.data_offset(position);
        let first = len.min(self.capacity().get() - start);
        [
            Extent { offset: self.data_start() + start, len: first },
            Extent { offset: self.data_start(), len: len - first },
        ]
    }

    /// Returns the start of the sector that `position` lies in.
    pub fn sector_floor(self, position: u64) -> u64 {
        position - position % u64::from(self.sector_size.0)
    }

    /// Returns the first start of a sector that is not in front of `position`.
    pub fn sector_ceil(self, position: u64) -> u64 {
        position.next_multiple_of(u64::from(self.sector_size.0))
    }
}

/// The lap around the data area that was looked at last. Positions are looked up one after the
/// other, and the division is most of the cost of that.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Lap {
    start: u64,
}

impl Lap {
    /// Returns [`Geometry::data_offset`] of `position`.
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

    /// Returns the end of the bytes of `from..to` that lie in one run with `from`.
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
    fn lap_finds_every_offset_whatever_was_asked_before() {
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
