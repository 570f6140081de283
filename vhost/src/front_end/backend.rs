//! The device of one ring, as every front end is told of it: features, configuration space, queues.

use crate::data_path::fault::Losses;
use crate::data_path::queue_set::MAX_QUEUES;
use crate::data_path::queue_thread::SharedWorker;
use crate::data_path::request::MAX_SEGMENTS;
use crate::data_path::shared_queue::{Links, QUEUE_SIZE};
use crate::data_path::worker::Worker;
use crate::front_end::seat::Seat;
use shared_block_ring::device::event::Signaller;
use shared_block_ring::format::Geometry;
use std::sync::{Arc, MutexGuard};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// Queues of the device, of which a front end sets up as many as it wants. One thread serves them
/// all, so that judging and copying are one step.
const QUEUES: u16 = 64;
const _: () = assert!(QUEUES as usize == MAX_QUEUES);

/// Bytes of `struct virtio_blk_config` that this device fills (virtio 1.3, 5.2.4); what lies behind
/// reads as zero.
const CONFIG_BYTES: usize = 36;

/// Bytes of the configuration space that a front end may read (vhost-user, "Virtio device config
/// space").
pub(super) const CONFIG_LIMIT: usize = 256;

/// Byte of `writeback` in the configuration space.
pub(super) const WRITEBACK_AT: usize = 32;

/// The device. What one front end sets of it is its [`Tenant`](super::tenant::Tenant)'s; the queues
/// are driven by the worker's thread.
pub struct Backend {
    worker: Arc<SharedWorker>,
    /// The way to interrupt the guest.
    signaller: Arc<Signaller>,
    seat: Seat,
    losses: Losses,
    config: [u8; CONFIG_BYTES],
    read_only: bool,
    migratable: bool,
}

impl Backend {
    /// Makes the device for the ring that `worker` serves.
    pub fn new(
        worker: Arc<SharedWorker>,
        geometry: Geometry,
        read_only: bool,
        migratable: bool,
        signaller: Arc<Signaller>,
    ) -> Self {
        let mut config = [0; CONFIG_BYTES];
        // Capacity is in units of 512 bytes, whatever the block size.
        config[..8].copy_from_slice(&(geometry.total_bytes() / 512).to_le_bytes());
        config[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        config[20..24].copy_from_slice(&geometry.sector_size().get().to_le_bytes());
        config[34..36].copy_from_slice(&QUEUES.to_le_bytes());
        let losses = worker.lock().losses().clone();
        Self { worker, signaller, seat: Seat::default(), losses, config, read_only, migratable }
    }

    /// How many front ends may be connected at a time. A VMM to which a guest is migrated connects
    /// while the one that the guest leaves is still served.
    pub fn most_front_ends(&self) -> usize {
        if self.migratable { 2 } else { 1 }
    }

    /// The losses of the ring's memory, and of its front end's.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The seat of the front end whose queues the worker serves.
    pub(super) fn seat(&self) -> &Seat {
        &self.seat
    }

    /// What the queues of a connection need so that they can be served.
    pub fn links(&self) -> Links {
        self.worker.links(&self.signaller)
    }

    /// Gives back what the kernel would wait for when this process exits, while its queues are
    /// still served: a guest waits for the next backend from the end of its connection on.
    pub fn retire_signals(&self) {
        self.signaller.retire();
    }

    /// Sets `suspend` in sector 2 on behalf of a process without a role. A held read is answered:
    /// the worker looks for news when it has its lock again. Returns false where another process
    /// edits that sector: to be tried again.
    ///
    /// # Errors
    ///
    /// Why the sector cannot be changed, in words.
    pub fn suspend(&self, suspend: bool) -> Result<bool, String> {
        if self.losses.region_lost() {
            return Err("the ring's file was truncated, or its medium cannot be read".to_owned());
        }
        self.worker().suspend(suspend).map_err(|e| e.to_string())
    }

    pub(super) fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock()
    }
}

/// What every front end is told of the device.
impl Backend {
    /// Number of the device's queues.
    pub fn num_queues(&self) -> usize {
        QUEUES.into()
    }

    /// The most descriptors in a queue.
    pub fn max_queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    /// The features that are offered.
    pub fn features(&self) -> u64 {
        let read_only = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        // QEMU migrates or saves a guest only if its backend can log the pages that it writes to.
        let log = if self.migratable { VhostUserVirtioFeatures::LOG_ALL.bits() } else { 0 };
        read_only
            | log
            | 1 << VIRTIO_F_VERSION_1
            // Each queue completes in order in any case (virtio 1.3, 2.7.9). A front end that sees
            // the driver take this resumes a queue from the used index.
            | 1 << VIRTIO_F_IN_ORDER
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_CONFIG_WCE
            | 1 << VIRTIO_BLK_F_MQ
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// The protocol's features that are offered.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let log = if self.migratable {
            VhostUserProtocolFeatures::LOG_SHMFD
        } else {
            VhostUserProtocolFeatures::empty()
        };
        log | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    /// The configuration space, with this write-back flag.
    pub(super) fn config(&self, writeback: bool) -> [u8; CONFIG_LIMIT] {
        let mut space = [0; CONFIG_LIMIT];
        space[..CONFIG_BYTES].copy_from_slice(&self.config);
        space[WRITEBACK_AT] = u8::from(writeback);
        space
    }
}
