//! Sector 0 of an open ring: what it was when the ring was opened, and whether it still is that.

use crate::device::{AlignedBuf, DeviceError, Displaced, RingDevice};
use crate::format::SIGNATURE;
use std::io::IoSliceMut;

/// The bytes of sector 0 when the ring was opened. They are written once, when the ring is made,
/// and tell it from any other ring: an identity has a UUID. Two plain rings of the OCaml library
/// have the same sector 0, and cannot be told apart by it.
#[derive(Debug, Clone)]
pub(crate) struct Sector0(Box<[u8]>);

impl Sector0 {
    /// Reads sector 0 of a device that is being opened.
    pub fn read<D: RingDevice + ?Sized>(device: &D) -> Result<Self, DeviceError> {
        let mut sector = AlignedBuf::zeroed(device.geometry().sector_size().bytes());
        device.read(0, &mut [IoSliceMut::new(&mut sector)])?;
        Ok(Self(Box::from(&sector[..])))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Checks that the device is still there, see [`RingDevice::check_presence`], and that sector 0
    /// is what it was: a file can be overwritten in place, with another ring or with anything else.
    ///
    /// A sector 0 that cannot be read counts as unchanged: the next operation on the ring meets the
    /// same error, and reports it.
    pub fn check_presence<D: RingDevice + ?Sized>(&self, device: &D) -> Result<(), DeviceError> {
        device.check_presence()?;
        match Self::read(device) {
            Ok(now) if now.0 != self.0 => {
                let is_ring = now.0.starts_with(SIGNATURE);
                Err(Displaced::Overwritten { is_ring }.error(device.name()))
            }
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
