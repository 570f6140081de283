//! The bytes of a ring: pure functions and newtypes, no I/O and no `unsafe`.
//!
//! `docs/format.md` is the specification. Every other module, the guard of a backend and the tools
//! call these functions: a program that reads or writes the sectors of a ring by itself does so
//! too.
//!
//! ```
//! use shared_block_ring::format::{Geometry, PointerSector, SectorSize, Side, decode_sector0};
//! use shared_block_ring::{OpenOptions, Position, create, make_file};
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path().join("ring");
//!
//! make_file(&path, 1 << 20)?;
//! create(&OpenOptions::default().open(&path)?, Default::default())?;
//!
//! let bytes = std::fs::read(&path)?;
//! let sectors: Vec<&[u8]> = bytes.chunks_exact(SectorSize::DEFAULT.bytes()).collect();
//! let geometry = Geometry::new(SectorSize::DEFAULT, sectors.len() as u64)?;
//! assert!(decode_sector0(sectors[0], geometry)?.uuid().is_some());
//! let pointer = PointerSector::decode(Side::Producer, sectors[1])?;
//! assert_eq!(pointer.position, Position::ZERO);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bytes;
mod checksum;
mod geometry;
mod identity;
mod item;
mod pointer;
mod position;
mod reading;
mod slicing;
mod slot;

pub(crate) use bytes::{u32_at, u64_at};
pub(crate) use checksum::{crc32c, crc32c_append};
pub(crate) use geometry::Lap;
pub use geometry::{Capacity, Extent, Geometry, MIN_SECTORS, SectorSize};
pub(crate) use identity::unverified_identity;
pub use identity::{IDENTITY_END, Identity, SIGNATURE, Signed, decode_sector0, encode_sector0};
pub use item::{HEADER_BYTES, Header, framed_len};
pub use pointer::{
    FLAG_AT, POINTER_BYTES, PointerSector, Side, TEXT_AT, TEXT_BYTES, encode_suspend, text_of,
};
pub use position::{ParsePositionError, Position};
pub use reading::{Reading, SlotSearch};
pub use slot::{
    EXTENSION, SLOT_BYTES, SLOTS_AT, Slot, Tally, find_slot, put_slot, reserved, slots_of,
};
#[doc(hidden)] // for the guard of `vhost-device-blockring`, and the models of the tests
pub use slot::{damaged_slots, following_slot};

/// The error of bytes that are not a ring's, or not those of the ring that they should be. Each
/// variant names the field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Sector 0 does not start with [`SIGNATURE`].
    #[error("not a ring: sector 0 lacks the signature \"mirage shared-block-device 1.0\"")]
    NotARing,
    /// The device has fewer than [`MIN_SECTORS`] sectors.
    #[error(
        "too small for a ring: it has {sectors} sector{} of {sector_size} bytes, and a ring takes at least {MIN_SECTORS}",
        if *sectors == 1 { "" } else { "s" }
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
    /// The sector size is one that no block device has.
    #[error("sector size {0} is not a power of two from 512 to 65536")]
    SectorSize(u32),
    /// The identity holds another sector size than the device has.
    #[error(
        "wrong sector size: the ring was made with {ring}-byte sectors and is opened with {device} (for a file: --sector-size {ring})"
    )]
    WrongSectorSize {
        /// The value in the identity.
        ring: u32,
        /// The value of the device as it is opened.
        device: u32,
    },
    /// Another sector size was asked for than the device has.
    #[error(
        "the device has sectors of {device} bytes, not of {asked} (leave out --sector-size: it is for files)"
    )]
    DeviceSectorSize {
        /// The size as asked for.
        asked: u32,
        /// The device's own.
        device: u32,
    },
    /// The identity holds another number of sectors than the device has.
    #[error("the ring was made on a device of {ring} sectors, this one has {device}: it was {} since (restore its size, or create a new ring)", if device > ring { "grown" } else { "shrunk" })]
    WrongSize {
        /// The value in the identity.
        ring: u64,
        /// The value of the device.
        device: u64,
    },
    /// The identity's checksum does not match its bytes.
    #[error(
        "identity in sector 0 is corrupt: its CRC32C is {found:#010x}, the bytes give {computed:#010x}"
    )]
    IdentityChecksum {
        /// The value as stored.
        found: u32,
        /// The value as computed.
        computed: u32,
    },
    /// The identity asks for features that this version lacks.
    #[error("the ring uses features {0:#x} that this version does not know: use a newer one")]
    UnknownFeatures(u32),
    /// A pointer is not a multiple of 4.
    #[error("{side} pointer {value} is not a multiple of 4")]
    Misaligned {
        /// The side whose pointer sector it is.
        side: Side,
        /// The value as stored.
        value: u64,
    },
    /// A flag byte is neither 1 nor 2.
    #[error(
        "{side} sector: flag byte is {value}, must be 1 or 2 (was the ring made with another sector size? then --sector-size)"
    )]
    Flag {
        /// The side whose pointer sector it is.
        side: Side,
        /// The value as stored.
        value: u8,
    },
    /// Neither slot of a pointer sector is for its position.
    #[error("{side} sector: neither slot is whole and speaks for position {position}")]
    Slots {
        /// The side whose pointer sector it is.
        side: Side,
        /// The value as stored.
        position: Position,
    },
    /// The bytes between two positions are not what the producer wrote.
    #[error(
        "items from position {from} to {to} are corrupt: the stream's CRC32C is {computed:#010x} there, the producer's slot says {found:#010x}"
    )]
    Span {
        /// The start of the damaged items.
        from: Position,
        /// The end of the damaged items: advance to it to skip them.
        to: Position,
        /// The value as stored.
        found: u32,
        /// The value as computed.
        computed: u32,
    },
    /// The slots' item counts contradict the items.
    #[error("{counted} items lie before position {position}, the producer's slot says {found}")]
    Count {
        /// The position up to which items were counted.
        position: Position,
        /// The value as stored.
        found: u64,
        /// The items as counted.
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
    /// A pointer is beyond the end of every stream.
    #[error(
        "{side} position {position} lies beyond the end of a stream, {}, where no ring gets by use: it is damaged (blockring repair)",
        Position::END
    )]
    BeyondEnd {
        /// The side whose pointer sector it is.
        side: Side,
        /// The value as stored.
        position: Position,
    },
    /// The stream is too near its end for the items that were to be pushed.
    #[error(
        "the ring's stream is at position {position} and ends at {}: it does not take {needed} bytes more (consume what it holds, then create a new ring)",
        Position::END
    )]
    Exhausted {
        /// The end of what the producer has pushed.
        position: Position,
        /// Bytes with framing.
        needed: u64,
    },
    /// Reserved bytes of a pointer sector, which every writer leaves zero, are not.
    #[error(
        "{side} sector: bytes that are reserved are not zero, for which a backend refuses what a guest writes there (blockring repair)"
    )]
    Reserved {
        /// The side whose pointer sector it is.
        side: Side,
    },
    /// The slots of both sides are for one position, and of different streams.
    #[error(
        "the slots contradict each other: the stream before position {position} has CRC32C {producer:#010x} by the producer's and {consumer:#010x} by the consumer's, so that what comes next would be reported as corrupt (blockring repair)"
    )]
    Streams {
        /// The position of both pointers.
        position: Position,
        /// The checksum in the producer's slot.
        producer: u32,
        /// The checksum in the consumer's slot.
        consumer: u32,
    },
    /// An item's length does not fit what the producer published.
    #[error(
        "item at position {at}: length {length} reaches beyond the producer's position {producer}"
    )]
    ItemLength {
        /// The item's position.
        at: Position,
        /// The item's length as stored.
        length: u32,
        /// The producer's position.
        producer: Position,
    },
}
