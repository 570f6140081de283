//! A device whose every access goes through a test's hook: to count it, fail it, or let something
//! happen before it or after it.

use shared_block_ring::device::{DeviceError, HeldReads, Sleep};
use shared_block_ring::format::Geometry;
use shared_block_ring::{BlockDevice, RingDevice};
use std::io::{IoSlice, IoSliceMut};

/// One access to a device.
#[derive(Debug)]
pub enum Access<'a, 'b> {
    /// A read from sector `first` on.
    Read {
        /// The first sector.
        first: u64,
        /// The buffers that are filled.
        bufs: &'a mut [IoSliceMut<'b>],
    },
    /// A write to sector `first` and on.
    Write {
        /// The first sector.
        first: u64,
        /// The bytes.
        bufs: &'a [IoSlice<'b>],
    },
    /// A flush.
    Flush,
}

impl Access<'_, '_> {
    /// Carries the access out on `device`.
    ///
    /// # Errors
    /// The device's.
    pub fn carry_out(&mut self, device: &impl BlockDevice) -> Result<(), DeviceError> {
        match self {
            Self::Read { first, bufs } => device.read(*first, bufs),
            Self::Write { first, bufs } => device.write(*first, bufs),
            Self::Flush => device.flush(),
        }
    }

    /// Whether it is a write that begins with this sector.
    pub fn writes(&self, sector: u64) -> bool {
        matches!(self, Self::Write { first, .. } if *first == sector)
    }

    /// Bytes that it transfers.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Read { bufs, .. } => bufs.iter().map(|buf| buf.len()).sum(),
            Self::Write { bufs, .. } => bufs.iter().map(|buf| buf.len()).sum(),
            Self::Flush => 0,
        }
    }
}

/// What a test does at the accesses to a device, and how its users can wait.
pub trait Hook<D: RingDevice>: Send {
    /// Called with each access. The default carries it out.
    ///
    /// # Errors
    /// Whatever the device's user is to be given.
    fn access(&self, device: &D, access: &mut Access<'_, '_>) -> Result<(), DeviceError> {
        access.carry_out(device)
    }

    /// See [`RingDevice::reads_are_free`].
    fn reads_are_free(&self, device: &D) -> bool {
        device.reads_are_free()
    }

    /// See [`RingDevice::sleeper`].
    fn sleeper(&self) -> Option<&dyn Sleep> {
        None
    }

    /// See [`RingDevice::held_reads`].
    fn held_reads(&self) -> Option<&dyn HeldReads> {
        None
    }
}

/// No hook.
impl<D: RingDevice> Hook<D> for () {}

impl<D: RingDevice, F> Hook<D> for F
where
    F: Fn(&D, &mut Access<'_, '_>) -> Result<(), DeviceError> + Send,
{
    fn access(&self, device: &D, access: &mut Access<'_, '_>) -> Result<(), DeviceError> {
        self(device, access)
    }
}

/// A device with a hook. Of the device itself only its sectors are left: it has no locks, lends
/// nothing, and a pointer sector is read, changed and written as a whole.
#[derive(Debug)]
pub struct Hooked<D, H> {
    device: D,
    /// What happens at each access.
    pub hook: H,
}

impl<D: RingDevice, H: Hook<D>> Hooked<D, H> {
    /// Puts `hook` in front of `device`.
    pub fn new(device: D, hook: H) -> Self {
        Self { device, hook }
    }
}

/// Has `hook` called with each access to `device`.
pub fn hooked<D: RingDevice, F>(device: D, hook: F) -> Hooked<D, F>
where
    F: Fn(&D, &mut Access<'_, '_>) -> Result<(), DeviceError> + Send,
{
    Hooked::new(device, hook)
}

/// Takes everything but its sectors away from `device`, the locks above all: a second producer or
/// consumer can be attached to its ring.
pub fn unlocked<D: RingDevice>(device: D) -> Hooked<D, ()> {
    Hooked::new(device, ())
}

impl<D: RingDevice, H: Hook<D>> BlockDevice for Hooked<D, H> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn geometry(&self) -> Geometry {
        self.device.geometry()
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.hook.access(&self.device, &mut Access::Read { first, bufs })
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        self.hook.access(&self.device, &mut Access::Write { first, bufs })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.hook.access(&self.device, &mut Access::Flush)
    }
}

impl<D: RingDevice, H: Hook<D>> RingDevice for Hooked<D, H> {
    fn reads_are_free(&self) -> bool {
        self.hook.reads_are_free(&self.device)
    }

    fn sleeper(&self) -> Option<&dyn Sleep> {
        self.hook.sleeper()
    }

    fn held_reads(&self) -> Option<&dyn HeldReads> {
        self.hook.held_reads()
    }
}
