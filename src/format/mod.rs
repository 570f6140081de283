//! The bytes of a ring: pure functions and newtypes, no I/O and no `unsafe`.
//!
//! `docs/format.md` is the specification; every other module, on either side of the virtual machine border,
//! calls what stands here.

mod checksum;
mod geometry;
mod identity;
mod item;
mod pointer;
mod position;
mod slicing;
mod slot;

pub(crate) use checksum::{crc32c, crc32c_append};
pub use geometry::{Capacity, Extent, Geometry, Lap, MIN_SECTORS, SectorSize};
pub use identity::{IDENTITY_END, Identity, SIGNATURE, Signed, decode_sector0, encode_sector0};
pub use item::{HEADER_BYTES, Header, framed_len};
pub use pointer::{FLAG_AT, POINTER_BYTES, PointerSector, Side, TEXT_AT, TEXT_BYTES, text_of};
pub use position::{ParsePositionError, Position};
pub use slot::{
    EXTENSION, SLOT_BYTES, SLOTS_AT, Slot, Tally, damaged_slots, find_slot, follows, put_slot,
    slots_of,
};

/// Why bytes of a device are not a ring, or not the ring they should be. Each names the field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Sector 0 does not start with [`SIGNATURE`].
    #[error("not a ring: sector 0 lacks the signature \"mirage shared-block-device 1.0\"")]
    NotARing,
    /// The device has fewer than [`MIN_SECTORS`] sectors.
    #[error(
        "device too small: {sectors} sectors of {sector_size} bytes, a ring needs at least {MIN_SECTORS}"
    )]
    TooSmall {
        /// Whole sectors on the device.
        sectors: u64,
        /// Bytes in a sector.
        sector_size: u32,
    },
    /// The device has more bytes than a stream offset can address.
    #[error("device too large: {sectors} sectors of {sector_size} bytes")]
    TooLarge {
        /// Whole sectors on the device.
        sectors: u64,
        /// Bytes in a sector.
        sector_size: u32,
    },
    /// A sector size that no block device has.
    #[error("sector size {0} is not a power of two from 512 to 65536")]
    SectorSize(u32),
    /// The identity says another sector size than the device has.
    #[error(
        "wrong sector size: the ring was made with {ring}-byte sectors and is opened with {device} (for a file: --sector-size {ring})"
    )]
    WrongSectorSize {
        /// As the identity says.
        ring: u32,
        /// As the device is opened.
        device: u32,
    },
    /// The identity says another number of sectors than the device has.
    #[error("the ring was made on a device of {ring} sectors, this one has {device}: it was {} since (restore its size, or create a new ring)", if device > ring { "grown" } else { "shrunk" })]
    WrongSize {
        /// As the identity says.
        ring: u64,
        /// As the device is.
        device: u64,
    },
    /// The identity's own checksum does not hold.
    #[error(
        "identity in sector 0 is corrupt: its CRC32C is {found:#010x}, the bytes give {computed:#010x}"
    )]
    IdentityChecksum {
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The identity asks for a feature that this version lacks.
    #[error("the ring uses features {0:#x} that this version does not know: use a newer one")]
    UnknownFeatures(u32),
    /// A pointer that is not a multiple of four.
    #[error("{side} pointer {value} is not a multiple of 4")]
    Misaligned {
        /// Whose pointer sector.
        side: Side,
        /// As stored.
        value: u64,
    },
    /// A flag byte other than 1 or 2.
    #[error(
        "{side} sector: flag byte is {value}, must be 1 or 2 (was the ring made with another sector size? then --sector-size)"
    )]
    Flag {
        /// Whose pointer sector.
        side: Side,
        /// As stored.
        value: u8,
    },
    /// Neither slot of a pointer sector speaks for its position.
    #[error("{side} sector: neither slot is whole and speaks for position {position}")]
    Slots {
        /// Whose pointer sector.
        side: Side,
        /// As stored.
        position: Position,
    },
    /// What lies between two positions is not what the producer wrote.
    #[error(
        "items from position {from} to {to} are corrupt: the stream's CRC32C is {computed:#010x} there, the producer's slot says {found:#010x}"
    )]
    Span {
        /// Where it starts.
        from: Position,
        /// Where it ends: advance to there to skip it.
        to: Position,
        /// As stored.
        found: u32,
        /// As computed.
        computed: u32,
    },
    /// The slots' item counts contradict the items.
    #[error("{counted} items lie before position {position}, the producer's slot says {found}")]
    Count {
        /// Where the counting ended.
        position: Position,
        /// As stored.
        found: u64,
        /// As counted.
        counted: u64,
    },
    /// `consumer <= producer <= consumer + capacity` does not hold.
    #[error(
        "pointers contradict each other: consumer {consumer}, producer {producer}, capacity {capacity}"
    )]
    Pointers {
        /// Consumer position.
        consumer: Position,
        /// Producer position.
        producer: Position,
        /// Bytes in the data area.
        capacity: u64,
    },
    /// An item's length does not fit what the producer published.
    #[error(
        "item at position {at}: length {length} reaches beyond the producer's position {producer}"
    )]
    ItemLength {
        /// Where the item starts.
        at: Position,
        /// Its length as stored.
        length: u32,
        /// The producer's position.
        producer: Position,
    },
}
