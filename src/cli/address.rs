//! Where a ring is.

use super::failure::Failure;
use shared_block_ring::device::{DeviceError, find_by_serial};
use shared_block_ring::format::SectorSize;
use shared_block_ring::{FileDevice, OpenOptions};
use std::path::PathBuf;

/// The arguments that name a ring.
#[derive(clap::Args)]
pub struct Address {
    /// Path of a file or block device, or serial:NAME
    address: String,
    /// Bytes in a sector of a file that was not made with 512
    #[arg(long, value_name = "N", value_parser = sector_size)]
    sector_size: Option<SectorSize>,
}

impl Address {
    pub fn open(&self) -> Result<FileDevice, Failure> {
        self.open_as(self.options())
    }

    pub fn open_read_only(&self) -> Result<FileDevice, Failure> {
        self.open_as(self.options().read_only())
    }

    fn open_as(&self, options: OpenOptions) -> Result<FileDevice, Failure> {
        let path = match self.address.strip_prefix("serial:") {
            None => PathBuf::from(&self.address),
            Some(serial) => find_by_serial(serial).map_err(|source| {
                let name = self.address.clone();
                Failure::Ring(DeviceError { name, operation: "open", sector: None, source }.into())
            })?,
        };
        let named = |source| Failure::During { what: self.address.clone(), source };
        options.open(&path).map_err(|e| {
            if matches!(e, shared_block_ring::Error::Device(_)) { e.into() } else { named(e) }
        })
    }

    fn options(&self) -> OpenOptions {
        self.sector_size
            .map_or_else(OpenOptions::default, |size| OpenOptions::default().sector_size(size))
    }

    pub fn name(&self) -> &str {
        &self.address
    }
}

pub fn sector_size(text: &str) -> Result<SectorSize, String> {
    let bytes = text.parse().map_err(|_| "not a number of bytes".to_owned())?;
    SectorSize::new(bytes).map_err(|e| e.to_string())
}

/// A number of seconds: whole, or with a fraction.
pub fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    std::time::Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}
