//! Making a ring.

use crate::device::{AlignedBuf, BlockDevice};
use crate::error::Result;
use crate::format::{Identity, PointerSector, SIGNATURE, Side, encode_sector0};
use std::io::{IoSlice, IoSliceMut};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// How to make a ring.
#[derive(Debug, Clone, Copy, Default)]
pub struct CreateOptions {
    /// Without identity, byte for byte as the OCaml library does it.
    pub plain: bool,
}

/// What [`create`] found to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// An empty ring is there now.
    New,
    /// A ring was there already and is untouched.
    Existed,
}

/// Makes an empty ring, unless one is there already.
///
/// The signature is written last: a crash in between leaves a device that is not a ring, never half of one.
pub fn create<D: BlockDevice + ?Sized>(device: &D, options: CreateOptions) -> Result<Created> {
    let geometry = device.geometry();
    let mut sector = AlignedBuf::zeroed(geometry.sector_size().bytes());
    device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
    if sector.starts_with(SIGNATURE) {
        return Ok(Created::Existed);
    }
    for side in [Side::Producer, Side::Consumer] {
        PointerSector::START.encode(side, None, &mut sector);
        device.write(side.sector(), &[IoSlice::new(&sector)])?;
    }
    device.flush()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let identity = Identity {
        geometry,
        uuid: Uuid::new_v4(),
        // Nanoseconds since 1970 fit 64 bits until the year 2554.
        created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
    };
    encode_sector0(&mut sector, (!options.plain).then_some(&identity));
    device.write(0, &[IoSlice::new(&sector)])?;
    device.flush()?;
    Ok(Created::New)
}
