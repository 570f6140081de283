//! The common configuration: the way from a device that was left by anybody to one whose queue runs
//! (virtio 1.3, 3.1.1 and 4.1.4.3).

use super::registers::Registers;
use crate::memory::DeviceRange;
use crate::{Error, Refusal};
use std::time::{Duration, Instant};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_ACCESS_PLATFORM,
    VIRTIO_F_VERSION_1,
};

/// Offsets in `struct virtio_pci_common_cfg`.
const DEVICE_FEATURE_SELECT: u32 = 0;
const DEVICE_FEATURE: u32 = 4;
const DRIVER_FEATURE_SELECT: u32 = 8;
const DRIVER_FEATURE: u32 = 12;
const DEVICE_STATUS: u32 = 20;
const CONFIG_GENERATION: u32 = 21;
const QUEUE_SELECT: u32 = 22;
const QUEUE_SIZE: u32 = 24;
const QUEUE_MSIX_VECTOR: u32 = 26;
const QUEUE_ENABLE: u32 = 28;
const QUEUE_NOTIFY_OFF: u32 = 30;
const QUEUE_DESC: u32 = 32;
const QUEUE_DRIVER: u32 = 40;
const QUEUE_DEVICE: u32 = 48;

/// `VIRTIO_MSI_NO_VECTOR`.
pub const NO_VECTOR: u16 = 0xffff;

const ACKNOWLEDGE: u8 = status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
const DRIVER: u8 = ACKNOWLEDGE | status(VIRTIO_CONFIG_S_DRIVER);
const FEATURES_OK: u8 = DRIVER | status(VIRTIO_CONFIG_S_FEATURES_OK);
const DRIVER_OK: u8 = FEATURES_OK | status(VIRTIO_CONFIG_S_DRIVER_OK);
const NEEDS_RESET: u8 = status(VIRTIO_CONFIG_S_NEEDS_RESET);

/// Value of the status register where there is no device any more.
const GONE: u8 = 0xff;

/// How long a device may take to reset: it has to finish or to give up what is in flight.
const RESET_PATIENCE: Duration = Duration::from_secs(5);

#[expect(clippy::cast_possible_truncation, reason = "the status has 8 bits")]
const fn status(bit: u32) -> u8 {
    bit as u8
}

/// The common configuration structure.
#[derive(Debug)]
pub struct Common(Registers);

impl Common {
    /// Works with these registers.
    pub fn new(registers: Registers) -> Self {
        Self(registers)
    }

    /// Has the device forget all that it was told. It does not touch memory any more when this
    /// returns `Ok`.
    pub fn reset(&self) -> Result<(), Error> {
        self.0.write(DEVICE_STATUS, 0_u8);
        let patience = Instant::now() + RESET_PATIENCE;
        // 4.1.4.3.2: only when it reads zero the reset is done.
        loop {
            match self.0.read(DEVICE_STATUS) {
                0_u8 => return Ok(()),
                GONE => return Err(Error::Gone),
                _ if Instant::now() > patience => return Err(Error::NoReset),
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Agrees with a device that was reset on those of the `wanted` features that it has.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, Refusal> {
        self.0.write(DEVICE_STATUS, ACKNOWLEDGE);
        self.0.write(DEVICE_STATUS, DRIVER);
        let half = |select: u32| {
            self.0.write(DEVICE_FEATURE_SELECT, select);
            u64::from(self.0.read::<u32>(DEVICE_FEATURE))
        };
        let offered = half(0) | half(1) << 32;
        if offered & 1 << VIRTIO_F_ACCESS_PLATFORM != 0 {
            return Err(Refusal::Translated);
        }
        if offered & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(Refusal::Legacy);
        }
        let features = offered & wanted;
        for (select, half) in (0_u32..).zip([features, features >> 32]) {
            self.0.write(DRIVER_FEATURE_SELECT, select);
            self.0.write(DRIVER_FEATURE, low(half));
        }
        self.0.write(DEVICE_STATUS, FEATURES_OK);
        if self.0.read::<u8>(DEVICE_STATUS) & FEATURES_OK != FEATURES_OK {
            return Err(Refusal::Features);
        }
        Ok(features)
    }

    /// Returns what `read` gets out of the device's configuration while that does not change
    /// (4.1.4.3.1).
    pub fn steadily<T>(&self, read: impl Fn() -> T) -> Result<T, Refusal> {
        const TRIES: u32 = 100;
        for _ in 0..TRIES {
            let before: u8 = self.0.read(CONFIG_GENERATION);
            let found = read();
            if self.0.read::<u8>(CONFIG_GENERATION) == before {
                return Ok(found);
            }
        }
        Err(Refusal::Unsteady)
    }

    /// Tells the device where a queue of `size` descriptors lies: descriptor table, available ring
    /// and used ring; and starts it. `vector` is the message that it interrupts by. Returns the
    /// queue's notification offset.
    ///
    /// # Safety
    /// The ranges are those of a queue in memory as
    /// [`Link::start`](crate::transport::Link::start) wants it.
    pub unsafe fn start(
        &self,
        queue: u16,
        size: u16,
        ranges: [DeviceRange; 3],
        vector: u16,
    ) -> Result<u16, Refusal> {
        self.0.write(QUEUE_SELECT, queue);
        let most: u16 = self.0.read(QUEUE_SIZE);
        if most < size {
            return Err(Refusal::QueueSize { most, needed: size });
        }
        self.0.write(QUEUE_SIZE, size);
        self.0.write(QUEUE_MSIX_VECTOR, vector);
        if self.0.read::<u16>(QUEUE_MSIX_VECTOR) != vector {
            return Err(Refusal::NoInterrupt);
        }
        let notify = self.0.read(QUEUE_NOTIFY_OFF);
        for (register, range) in [QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE].into_iter().zip(ranges) {
            // In halves, as every device takes it (4.1.3.1).
            self.0.write(register, low(range.address()));
            self.0.write(register + 4, low(range.address() >> 32));
        }
        self.0.write(QUEUE_ENABLE, 1_u16);
        self.0.write(DEVICE_STATUS, DRIVER_OK);
        Ok(notify)
    }

    /// Checks that the device is there, and in order.
    pub fn present(&self) -> Result<(), Error> {
        match self.0.read::<u8>(DEVICE_STATUS) {
            GONE => Err(Error::Gone),
            status if status & NEEDS_RESET != 0 => Err(Error::NeedsReset),
            // It is kept from memory, as before it is unplugged, or was reset past this driver.
            status if status & DRIVER_OK != DRIVER_OK => Err(Error::Gone),
            _ => Ok(()),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is meant")]
fn low(value: u64) -> u32 {
    value as u32
}
