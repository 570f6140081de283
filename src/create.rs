//! Creation of a ring.

use crate::device::{AlignedBuf, BlockDevice, DeviceError};
use crate::error::Result;
use crate::format::{Identity, PointerSector, SIGNATURE, Side, encode_sector0};
use std::io::{IoSlice, IoSliceMut};
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::{Builder, Uuid};

/// Options of [`create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct CreateOptions {
    plain: bool,
}

impl CreateOptions {
    /// Makes the default options: a ring with an identity, whose pointers have checksums.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether the ring has no identity, byte for byte as the OCaml library does.
    #[must_use]
    pub fn plain(mut self, plain: bool) -> Self {
        self.plain = plain;
        self
    }
}

/// The outcome of [`create`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Created {
    /// An empty ring was made.
    New,
    /// A ring was there already, and is untouched.
    Existed,
}

/// Makes an empty ring on `device`, unless a ring is there already.
///
/// **Anything else on the device is overwritten.** Call it for a new file
/// ([`make_file`](crate::make_file)), or where [`first_used_byte`] finds nothing.
///
/// The signature is written last: a crash in between leaves a device that is not a ring, never half
/// of one.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// use shared_block_ring::{CreateOptions, Created, OpenOptions, create, make_file};
///
/// make_file(&path, 1 << 20)?;
/// let device = OpenOptions::default().open(&path)?;
/// assert_eq!(create(&device, CreateOptions::new())?, Created::New);
/// assert_eq!(create(&device, CreateOptions::new())?, Created::Existed);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The device's.
pub fn create<D: BlockDevice + ?Sized>(device: &D, options: CreateOptions) -> Result<Created> {
    let geometry = device.geometry();
    let mut sector = AlignedBuf::zeroed(geometry.sector_size().bytes());
    device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
    if sector.starts_with(SIGNATURE) {
        // The process that wrote it may have died before it was durable.
        device.flush()?;
        return Ok(Created::Existed);
    }
    for side in [Side::Producer, Side::Consumer] {
        sector.fill(0);
        PointerSector::START.encode(side, None, &mut sector);
        device.write(side.sector(), &[IoSlice::new(&sector)])?;
    }
    device.flush()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let identity = Identity {
        geometry,
        uuid: new_uuid(),
        // Nanoseconds since 1970 fit 64 bits until the year 2554.
        created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
    };
    encode_sector0(&mut sector, (!options.plain).then_some(&identity));
    device.write(0, &[IoSlice::new(&sector)])?;
    device.flush()?;
    Ok(Created::New)
}

/// Sectors that are read at a time.
const SCAN_SECTORS: u64 = 2048;

/// The largest device, in bytes, that is read as a whole. Of a larger one only the first and last
/// MiB are read, where file systems, partition tables and volume managers keep their marks.
const WHOLE_SCAN: u64 = 1 << 30;

/// Returns the first byte of a device that is not zero. The sectors that a [`create`] has left
/// which was cut off before its end count as zeros: it can be begun again.
///
/// ```
/// use shared_block_ring::{OpenOptions, create, first_used_byte};
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("ring");
/// # shared_block_ring::make_file(&path, 1 << 20)?;
///
/// let device = OpenOptions::default().open(&path)?;
/// if let Some(byte) = first_used_byte(&device)? {
///     return Err(format!("the device is in use: byte {byte} is not zero").into());
/// }
/// create(&device, Default::default())?;
/// assert_eq!(first_used_byte(&device)?, Some(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// The device's.
pub fn first_used_byte<D: BlockDevice + ?Sized>(
    device: &D,
) -> std::result::Result<Option<u64>, DeviceError> {
    let geometry = device.geometry();
    let whole = geometry.total_bytes() <= WHOLE_SCAN;
    let last = geometry.sectors().saturating_sub(SCAN_SECTORS);
    let size = geometry.sector_size().bytes();
    let mut at = 0;
    while at < geometry.sectors() {
        let sectors = SCAN_SECTORS.min(geometry.sectors() - at);
        let mut chunk = AlignedBuf::zeroed(usize::try_from(sectors).unwrap_or(0) * size);
        device.read(at, &mut [IoSliceMut::new(&mut chunk)])?;
        if at == 0 {
            overlook_pointers(&mut chunk, size);
        }
        if let Some(byte) = chunk.iter().position(|&byte| byte != 0) {
            return Ok(Some(at * size as u64 + byte as u64));
        }
        at += sectors;
        if !whole && at < last {
            at = last;
        }
    }
    Ok(None)
}

/// Clears the pointer sectors of an empty ring that has no signature yet.
fn overlook_pointers(start: &mut [u8], size: usize) {
    let mut expected = vec![0; size];
    for (side, index) in [(Side::Producer, 1), (Side::Consumer, 2)] {
        expected.fill(0);
        PointerSector::START.encode(side, None, &mut expected);
        let sector = &mut start[index * size..][..size];
        if *sector == *expected {
            sector.fill(0);
        }
    }
}

/// Makes a random UUID (version 4).
pub(crate) fn new_uuid() -> Uuid {
    Builder::from_random_bytes(ring_os::random_bytes()).into_uuid()
}
