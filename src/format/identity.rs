//! Sector 0: the signature, and the identity that tells this ring from any other.

use super::{FormatError, Geometry, SectorSize, crc32c, u32_at, u64_at};
use std::ops::Range;
use uuid::Uuid;

/// The first bytes of every ring.
pub const SIGNATURE: &[u8; 30] = b"mirage shared-block-device 1.0";

/// First byte of the identity: behind the signature, in bytes that an OCaml peer neither reads nor
/// rewrites.
const IDENTITY_AT: usize = 32;

/// The identity's fields, as bytes of sector 0.
const MAGIC_AT: Range<usize> = IDENTITY_AT..40;
const SECTOR_SIZE_AT: Range<usize> = 40..44;
const FEATURES_AT: usize = 44;
const SECTORS_AT: Range<usize> = 48..56;
const UUID_AT: Range<usize> = 56..72;
const CREATED_AT: Range<usize> = 72..CHECKSUM_AT;

/// The checksum covers everything in front of it, the signature included.
const CHECKSUM_AT: usize = 80;

/// The byte behind the identity.
pub const IDENTITY_END: usize = 84;

const MAGIC: &[u8; 8] = b"sbr-ext1";

/// Feature bits whose meaning must be known to use the ring at all; the upper half is advisory.
const MUST_KNOW: u32 = 0xffff;

/// The facts that a ring is created with. They are written once, together with the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The device's shape at creation.
    pub geometry: Geometry,
    /// A random number that tells a re-created ring from the old one.
    pub uuid: Uuid,
    /// Time of creation, in nanoseconds since 1970.
    pub created_ns: u64,
}

/// A sector 0 that carries the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signed {
    /// With an identity that fits the device.
    Identified(Identity),
    /// Without one: an OCaml peer made the ring, or `create --plain`. Its size cannot be verified.
    Plain,
}

impl Signed {
    /// Returns the ring's UUID, if it has one.
    pub fn uuid(&self) -> Option<Uuid> {
        match self {
            Self::Identified(identity) => Some(identity.uuid),
            Self::Plain => None,
        }
    }
}

/// Fills `sector`, which is a whole one, as sector 0.
pub fn encode_sector0(sector: &mut [u8], identity: Option<&Identity>) {
    sector.fill(0);
    sector[..SIGNATURE.len()].copy_from_slice(SIGNATURE);
    let Some(identity) = identity else { return };
    sector[MAGIC_AT].copy_from_slice(MAGIC);
    sector[SECTOR_SIZE_AT].copy_from_slice(&identity.geometry.sector_size().get().to_le_bytes());
    sector[SECTORS_AT].copy_from_slice(&identity.geometry.sectors().to_le_bytes());
    sector[UUID_AT].copy_from_slice(identity.uuid.as_bytes());
    sector[CREATED_AT].copy_from_slice(&identity.created_ns.to_le_bytes());
    let crc = crc32c(&sector[..CHECKSUM_AT]);
    sector[CHECKSUM_AT..IDENTITY_END].copy_from_slice(&crc.to_le_bytes());
}

/// Decodes sector 0 of a device of the shape `device`: at least its first 512 bytes.
///
/// # Errors
/// The bytes are not a ring's, are damaged, or belong to a device of another shape.
pub fn decode_sector0(sector: &[u8], device: Geometry) -> Result<Signed, FormatError> {
    if !sector.starts_with(SIGNATURE) {
        return Err(FormatError::NotARing);
    }
    if sector[IDENTITY_AT..IDENTITY_END].iter().all(|&byte| byte == 0) {
        return Ok(Signed::Plain);
    }
    let (found, computed) = (u32_at(sector, CHECKSUM_AT), crc32c(&sector[..CHECKSUM_AT]));
    if &sector[MAGIC_AT] != MAGIC || found != computed {
        return Err(FormatError::IdentityChecksum { found, computed });
    }
    let unknown = u32_at(sector, FEATURES_AT) & MUST_KNOW;
    if unknown != 0 {
        return Err(FormatError::UnknownFeatures(unknown));
    }
    let ring = u32_at(sector, SECTOR_SIZE_AT.start);
    if ring != device.sector_size().get() {
        return Err(FormatError::WrongSectorSize { ring, device: device.sector_size().get() });
    }
    let sectors = u64_at(sector, SECTORS_AT.start);
    if sectors != device.sectors() {
        return Err(FormatError::WrongSize { ring: sectors, device: device.sectors() });
    }
    let geometry = Geometry::new(SectorSize::new(ring)?, sectors)?;
    Ok(Signed::Identified(unverified_identity(sector, geometry)))
}

/// Returns the identity that sector 0 of a device shaped like `geometry` holds, without checking
/// anything: what a repair starts from.
pub fn unverified_identity(sector: &[u8], geometry: Geometry) -> Identity {
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&sector[UUID_AT]);
    let created_ns = u64_at(sector, CREATED_AT.start);
    Identity { geometry, uuid: Uuid::from_bytes(uuid), created_ns }
}
