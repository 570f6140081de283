//! Required outcome of a write, and its record.

use std::io;

use nix::errno::Errno;
use vhost_device_blockring::data_path::guard::Reason;

use super::{Failure, Raid, ensure};

impl Raid {
    /// Records a write that must have been refused for `reason`.
    pub fn refused(&mut self, reason: Reason, outcome: io::Result<()>) -> Result<(), Failure> {
        *self.report.refused.entry(reason.to_string()).or_default() += 1;
        match outcome {
            Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => Ok(()),
            other => Err(Failure::Unsound(format!("{other:?} where {reason} was to be"))),
        }
    }

    /// Returns whether the write was carried out; otherwise it must have been refused.
    pub fn by_chance(&mut self, outcome: io::Result<()>) -> Result<bool, Failure> {
        match outcome {
            Ok(()) => self.report.passed += 1,
            Err(e) if e.raw_os_error() == Some(Errno::EIO as i32) => {
                self.report.by_chance += 1;
                return Ok(false);
            }
            Err(e) => return Err(e.into()),
        }
        Ok(true)
    }

    /// Records a write that must have been carried out.
    pub fn passed(&mut self, outcome: io::Result<()>) -> Result<(), Failure> {
        self.report.passed += 1;
        Ok(outcome?)
    }

    /// Writes to one sector, which must be refused and keep its content.
    pub fn refused_write(
        &mut self,
        reason: Reason,
        sector: u64,
        bytes: &[u8],
    ) -> Result<(), Failure> {
        let count = bytes.len() / self.geometry().sector_size().bytes();
        let before = self.read(sector, count)?;
        let outcome = self.write(sector, bytes);
        self.refused(reason, outcome)?;
        let after = self.read(sector, count)?;
        ensure(before[..] == after[..], || format!("{reason}: sector {sector} has changed"))
    }

    /// Records a request that the kernel must have refused by itself.
    pub fn barred<T: std::fmt::Debug>(
        &mut self,
        errors: &[Errno],
        outcome: io::Result<T>,
    ) -> Result<(), Failure> {
        self.report.barred += 1;
        match outcome {
            Err(e) if errors.iter().any(|&own| Some(own as i32) == e.raw_os_error()) => Ok(()),
            other => Err(Failure::Unsound(format!("{other:?} where {errors:?} was to be"))),
        }
    }
}
