//! What a block device says of itself (virtio 1.3, 5.2.3 and 5.2.4), however one gets to it.

use std::io;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// Of `struct virtio_blk_config`, up to the number of queues.
pub(super) const CONFIG_BYTES: u32 = 36;

/// The bytes themselves.
pub(super) type Config = [u8; CONFIG_BYTES as usize];

/// What is used of a device where it has it.
pub(super) const WANTED: u64 = 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_RO;

/// What a device says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes in a sector.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Writes are durable only after a flush.
    pub flush: bool,
    /// Chains may be indirect.
    pub indirect: bool,
    /// Notifications and interrupts by index.
    pub event_idx: bool,
}

impl Disk {
    /// By the features that were agreed on, and the start of the configuration space.
    pub(super) fn new(features: u64, config: &Config) -> io::Result<Self> {
        let has = |bit: u32| features & (1 << bit) != 0;
        if !has(VIRTIO_F_VERSION_1) {
            let words = "a device from before virtio 1";
            return Err(io::Error::new(io::ErrorKind::Unsupported, words));
        }
        let mut capacity = [0; 8];
        capacity.copy_from_slice(&config[..8]);
        let mut block = [0; 4];
        block.copy_from_slice(&config[20..24]);
        Ok(Self {
            // In units of 512 bytes, whatever the block size.
            bytes: u64::from_le_bytes(capacity).saturating_mul(512),
            sector_size: if has(VIRTIO_BLK_F_BLK_SIZE) { u32::from_le_bytes(block) } else { 512 },
            read_only: has(VIRTIO_BLK_F_RO),
            flush: has(VIRTIO_BLK_F_FLUSH),
            indirect: has(VIRTIO_RING_F_INDIRECT_DESC),
            event_idx: has(VIRTIO_RING_F_EVENT_IDX),
        })
    }
}
