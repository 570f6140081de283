//! Code of the load programs, in the guest and on the host.
//!
//! `ringload` carries random items once and compares digests. `crashload` is for streams whose ends
//! die again and again: each [`item`] can be judged alone, and a [`log`] outside the ring says what
//! was meant and what was promised.

mod consume;
pub mod item;
mod lives;
pub mod log;
mod produce;
mod random;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use shared_block_ring::device::{DeviceError, Operation, find_by_serial};
use shared_block_ring::format::SectorSize;
use shared_block_ring::handover::Role;
use shared_block_ring::{Error, OpenOptions, RingDevice, UnixDevice};
use virtio_blk_driver::VirtioDevice;
use virtio_blk_driver::pci::ParsePciAddressError;

pub use consume::consume;
pub use lives::{drain, feed};
pub use produce::produce;
pub use random::Random;

/// A device of any kind.
pub type Device = Box<dyn RingDevice>;

/// Bound on a load's wait for the other end of its ring. Guests boot and backends come back
/// meanwhile.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Error that ended a load.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Error of the ring library.
    #[error("{0}")]
    Ring(#[from] Error),
    /// Error of a file beside the ring. What cannot be logged must not happen.
    #[error("a file: {0}")]
    File(#[from] io::Error),
    /// The other end does not move.
    #[error("nothing has moved for {PATIENCE:?}")]
    Stuck,
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        Self::Ring(error.into())
    }
}

/// Pace of an end in one run: if both are quick they meet at the ring's edges; if one is slow the
/// ring is empty, or full, nearly all the time.
#[derive(Debug, Clone, Copy)]
struct Temper {
    /// Steps per pause.
    once_in: u64,
    /// Longest pause.
    micros: u64,
}

impl Temper {
    fn of(random: &mut Random) -> Self {
        if random.one_in(3) {
            Self { once_in: 2, micros: 20_000 }
        } else {
            Self { once_in: 32, micros: 4000 }
        }
    }

    fn pause(self, random: &mut Random) {
        if random.one_in(self.once_in) {
            thread::sleep(Duration::from_micros(random.below(self.micros)));
        }
    }
}

/// Opens a path, serial:NAME, unix:PATH or pci:ADDRESS for `role`.
pub fn open(address: &str, role: Role, sector_size: Option<SectorSize>) -> Result<Device, Error> {
    if let Some(path) = address.strip_prefix("unix:") {
        return Ok(Box::new(UnixDevice::connect(Path::new(path), role)?));
    }
    if let Some(disk) = driven(address)? {
        return Ok(Box::new(disk));
    }
    let options = OpenOptions::default();
    let options = sector_size.map_or(options, |size| options.sector_size(size));
    Ok(Box::new(options.open(path(address)?)?))
}

/// Returns the disk that this process drives itself, if the address is a pci:ADDRESS.
pub fn driven(address: &str) -> Result<Option<VirtioDevice>, Error> {
    let Some(function) = address.strip_prefix("pci:") else { return Ok(None) };
    let function = function.parse().map_err(|e: ParsePciAddressError| {
        let source = io::Error::new(io::ErrorKind::InvalidInput, e);
        DeviceError::new(address, Operation::Take, source)
    })?;
    // SAFETY: the device is QEMU's, the test has taken it from the guest's kernel, and nobody moves
    // the guest's huge pages.
    unsafe { VirtioDevice::open(function, None) }.map(Some)
}

/// Returns the file that a path or serial:NAME means.
pub fn path(address: &str) -> Result<PathBuf, DeviceError> {
    let Some(serial) = address.strip_prefix("serial:") else { return Ok(PathBuf::from(address)) };
    find_by_serial(serial).map_err(|e| DeviceError::new(address, Operation::Open, e))
}
