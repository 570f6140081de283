//! The common configuration: the way from a device that was left by anybody to one whose queue runs (virtio 1.3, 3.1.1 and 4.1.4.3).

use super::registers::Registers;
use crate::virtqueue::{DmaMemory, Layout};
use std::io;
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

/// What is read where there is no device any more.
const GONE: u8 = 0xff;

/// How long a device may take to reset: it has to finish or to give up what is in flight.
const RESET_PATIENCE: Duration = Duration::from_secs(5);

#[expect(clippy::cast_possible_truncation, reason = "the status has 8 bits")]
const fn status(bit: u32) -> u8 {
    bit as u8
}

fn refused(words: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, words)
}

/// The structure.
#[derive(Debug)]
pub struct Common(Registers);

impl Common {
    /// Over its registers.
    pub fn new(registers: Registers) -> Self {
        Self(registers)
    }

    /// Has the device forget all that it was told. It does not touch memory any more when this returns.
    pub fn reset(&self) -> io::Result<()> {
        self.0.write(DEVICE_STATUS, 0_u8);
        let patience = Instant::now() + RESET_PATIENCE;
        // 4.1.4.3.2: only when it reads zero the reset is done.
        loop {
            match self.0.read(DEVICE_STATUS) {
                0_u8 => return Ok(()),
                GONE => return Err(gone()),
                _ if Instant::now() > patience => {
                    let words = "the device does not reset";
                    return Err(io::Error::new(io::ErrorKind::TimedOut, words));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Agrees with a device that was reset on those of the `wanted` features that it has.
    pub fn negotiate(&self, wanted: u64) -> io::Result<u64> {
        self.0.write(DEVICE_STATUS, ACKNOWLEDGE);
        self.0.write(DEVICE_STATUS, DRIVER);
        let half = |select: u32| {
            self.0.write(DEVICE_FEATURE_SELECT, select);
            u64::from(self.0.read::<u32>(DEVICE_FEATURE))
        };
        let offered = half(0) | half(1) << 32;
        if offered & 1 << VIRTIO_F_ACCESS_PLATFORM != 0 {
            return Err(refused(
                "the device reaches memory through an IOMMU only, which a vhost-user backend cannot translate for (leave out iommu_platform=on)",
            ));
        }
        if offered & 1 << VIRTIO_F_VERSION_1 == 0 {
            return Err(refused("the device has no virtio 1 (leave out disable-modern=on)"));
        }
        let features = offered & wanted;
        for (select, half) in (0_u32..).zip([features, features >> 32]) {
            self.0.write(DRIVER_FEATURE_SELECT, select);
            self.0.write(DRIVER_FEATURE, low(half));
        }
        self.0.write(DEVICE_STATUS, FEATURES_OK);
        if self.0.read::<u8>(DEVICE_STATUS) & FEATURES_OK != FEATURES_OK {
            return Err(refused("the device does not work with the features that we know"));
        }
        Ok(features)
    }

    /// What `read` gets out of the device's configuration while that does not change (4.1.4.3.1).
    pub fn steadily<T>(&self, read: impl Fn() -> T) -> io::Result<T> {
        const TRIES: u32 = 100;
        for _ in 0..TRIES {
            let before: u8 = self.0.read(CONFIG_GENERATION);
            let found = read();
            if self.0.read::<u8>(CONFIG_GENERATION) == before {
                return Ok(found);
            }
        }
        Err(refused("the device's configuration changes all the time"))
    }

    /// Tells the device where a queue lies, and starts it. `vector` is the message that it interrupts by. The queue's notification offset.
    pub fn start(
        &self,
        queue: u16,
        memory: &DmaMemory,
        layout: Layout,
        vector: u16,
    ) -> io::Result<u16> {
        self.0.write(QUEUE_SELECT, queue);
        let most: u16 = self.0.read(QUEUE_SIZE);
        if most < layout.size {
            return Err(refused(&format!(
                "the device's queue holds {most} descriptors, and {} are needed (queue-size={})",
                layout.size, layout.size
            )));
        }
        self.0.write(QUEUE_SIZE, layout.size);
        self.0.write(QUEUE_MSIX_VECTOR, vector);
        if self.0.read::<u16>(QUEUE_MSIX_VECTOR) != vector {
            return Err(refused("the device has no interrupt for its queue"));
        }
        let notify = self.0.read(QUEUE_NOTIFY_OFF);
        for (register, offset) in [
            (QUEUE_DESC, layout.descriptors),
            (QUEUE_DRIVER, layout.available),
            (QUEUE_DEVICE, layout.used),
        ] {
            let address = memory.device_address(offset);
            // In halves, as every device takes it (4.1.3.1).
            self.0.write(register, low(address));
            self.0.write(register + 4, low(address >> 32));
        }
        self.0.write(QUEUE_ENABLE, 1_u16);
        self.0.write(DEVICE_STATUS, DRIVER_OK);
        Ok(notify)
    }

    /// Whether the device is there, and in order.
    pub fn present(&self) -> io::Result<()> {
        match self.0.read::<u8>(DEVICE_STATUS) {
            GONE => Err(gone()),
            status if status & NEEDS_RESET != 0 => {
                Err(io::Error::other("the device has met an error that only a reset ends"))
            }
            // It is kept from memory, as before it is unplugged, or was reset past us.
            status if status & DRIVER_OK != DRIVER_OK => Err(gone()),
            _ => Ok(()),
        }
    }
}

/// It is not there any more.
pub fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the device is gone")
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is what is meant")]
fn low(value: u64) -> u32 {
    value as u32
}
