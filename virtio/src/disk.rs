//! What a block device says of itself (virtio 1.3, 5.2.3 and 5.2.4), whatever the way to it.

use crate::bytes::word;
use crate::{Error, Refusal};
use std::fmt;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// Bytes of `struct virtio_blk_config`, up to the number of queues.
pub const CONFIG_BYTES: u32 = 36;

/// The start of a device's configuration space.
pub type Config = [u8; CONFIG_BYTES as usize];

/// Features that are used where the device has them.
pub const WANTED: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_RO;

/// What a block device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Disk {
    /// Bytes of the whole device.
    pub bytes: u64,
    /// Bytes in a sector.
    pub sector_size: u32,
    /// Whether the device refuses writes.
    pub read_only: bool,
    /// Whether writes are durable only after a flush.
    pub flush: bool,
    /// Whether chains may be indirect.
    pub indirect: bool,
    /// Whether notifications and interrupts go by index.
    pub event_idx: bool,
}

impl Disk {
    /// Reads the features that were agreed on, and the start of the configuration space.
    ///
    /// # Errors
    /// [`Refusal::Legacy`].
    pub(super) fn new(features: u64, config: &Config) -> Result<Self, Error> {
        let has = |bit: u32| features & (1 << bit) != 0;
        if !has(VIRTIO_F_VERSION_1) {
            return Err(Refusal::Legacy.into());
        }
        // In units of 512 bytes, whatever the block size.
        let capacity = u64::from(word(config, 0)) | u64::from(word(config, 4)) << 32;
        Ok(Self {
            bytes: capacity.saturating_mul(512),
            sector_size: if has(VIRTIO_BLK_F_BLK_SIZE) { word(config, 20) } else { 512 },
            read_only: has(VIRTIO_BLK_F_RO),
            flush: has(VIRTIO_BLK_F_FLUSH),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
        })
    }
    /// Returns why a queue that was made for this disk cannot go on with `other`, if that is so.
    pub(super) fn difference(self, other: Self) -> Option<Difference> {
        if other.bytes != self.bytes {
            Some(Difference::Bytes { before: self.bytes, now: other.bytes })
        } else if other.sector_size != self.sector_size {
            Some(Difference::SectorSize { before: self.sector_size, now: other.sector_size })
        } else if other.read_only != self.read_only {
            Some(Difference::ReadOnly { now: other.read_only })
        } else if other != self {
            Some(Difference::Features)
        } else {
            None
        }
    }
}

/// How the disk of a device that came back differs from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Difference {
    /// The number of bytes.
    Bytes {
        /// Bytes of the disk before.
        before: u64,
        /// Bytes of the disk now.
        now: u64,
    },
    /// The number of bytes in a sector.
    SectorSize {
        /// Bytes in a sector of the disk before.
        before: u32,
        /// Bytes in a sector of the disk now.
        now: u32,
    },
    /// Whether writes are refused.
    ReadOnly {
        /// Whether they are now.
        now: bool,
    },
    /// A feature that the queue uses is missing.
    Features,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes { before, now } => write!(f, "{now} bytes instead of {before}"),
            Self::SectorSize { before, now } => {
                write!(f, "sectors of {now} bytes instead of {before}")
            }
            Self::ReadOnly { now: true } => write!(f, "it is read-only"),
            Self::ReadOnly { now: false } => write!(f, "it is no longer read-only"),
            Self::Features => write!(
                f,
                "it lacks a feature that is in use (flush, indirect descriptors or event indices)"
            ),
        }
    }
}
