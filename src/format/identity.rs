//! Sector 0: the signature, and the identity that tells this ring from any other.

use super::{FormatError, Geometry, SectorSize, crc32c};
use uuid::Uuid;

/// The first bytes of every ring.
pub const SIGNATURE: &[u8; 30] = b"mirage shared-block-device 1.0";

/// First byte of the identity: behind the signature, in bytes an OCaml peer neither reads nor rewrites.
const IDENTITY_AT: usize = 32;

/// First byte behind the identity.
pub const IDENTITY_END: usize = 84;

const MAGIC: &[u8; 8] = b"sbr-ext1";

/// Feature bits whose meaning must be known to use the ring at all; the upper half is advisory.
const MUST_KNOW: u32 = 0xffff;

/// What a ring was made as. Written once, together with the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Shape of the device at creation.
    pub geometry: Geometry,
    /// Random: tells a re-created ring from the old one.
    pub uuid: Uuid,
    /// Time of creation, nanoseconds since 1970.
    pub created_ns: u64,
}

/// A sector 0 that carries the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signed {
    /// With an identity that fits the device.
    Identified(Identity),
    /// Without: an OCaml peer made it, or `create --plain`. Its size cannot be verified.
    Plain,
}

impl Signed {
    /// The ring's UUID, if it has one.
    pub fn uuid(&self) -> Option<Uuid> {
        match self {
            Self::Identified(identity) => Some(identity.uuid),
            Self::Plain => None,
        }
    }
}

/// Fills `sector` (a whole one) as sector 0.
pub fn encode_sector0(sector: &mut [u8], identity: Option<&Identity>) {
    sector.fill(0);
    sector[..SIGNATURE.len()].copy_from_slice(SIGNATURE);
    let Some(identity) = identity else { return };
    sector[32..40].copy_from_slice(MAGIC);
    sector[40..44].copy_from_slice(&identity.geometry.sector_size().get().to_le_bytes());
    sector[48..56].copy_from_slice(&identity.geometry.sectors().to_le_bytes());
    sector[56..72].copy_from_slice(identity.uuid.as_bytes());
    sector[72..80].copy_from_slice(&identity.created_ns.to_le_bytes());
    let crc = crc32c(&sector[..80]);
    sector[80..IDENTITY_END].copy_from_slice(&crc.to_le_bytes());
}

/// Judges sector 0 (at least its first 512 bytes) of a device shaped like `device`.
pub fn decode_sector0(sector: &[u8], device: Geometry) -> Result<Signed, FormatError> {
    if !sector.starts_with(SIGNATURE) {
        return Err(FormatError::NotARing);
    }
    if sector[IDENTITY_AT..IDENTITY_END].iter().all(|&byte| byte == 0) {
        return Ok(Signed::Plain);
    }
    let (found, computed) = (u32_at(sector, 80), crc32c(&sector[..80]));
    if &sector[32..40] != MAGIC || found != computed {
        return Err(FormatError::IdentityChecksum { found, computed });
    }
    let unknown = u32_at(sector, 44) & MUST_KNOW;
    if unknown != 0 {
        return Err(FormatError::UnknownFeatures(unknown));
    }
    let ring = u32_at(sector, 40);
    if ring != device.sector_size().get() {
        return Err(FormatError::WrongSectorSize { ring, device: device.sector_size().get() });
    }
    let sectors = u64_at(sector, 48);
    if sectors != device.sectors() {
        return Err(FormatError::WrongSize { ring: sectors, device: device.sectors() });
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&sector[56..72]);
    Ok(Signed::Identified(Identity {
        geometry: Geometry::new(SectorSize::new(ring)?, sectors)?,
        uuid: Uuid::from_bytes(uuid),
        created_ns: u64_at(sector, 72),
    }))
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
