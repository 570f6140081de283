//! The device, as a vhost-user front end asks for it: features, configuration space, memory, queue.

use crate::data_path::dirty::{DirtyLog, Log, MAX_REGIONS};
use crate::data_path::empty_kicks::HOW_TO_SHARE;
use crate::data_path::fault::Losses;
use crate::data_path::queue_set::MAX_QUEUES;
use crate::data_path::queue_thread::SharedWorker;
use crate::data_path::request::MAX_SEGMENTS;
use crate::data_path::shared_queue::{Links, Memory, QUEUE_SIZE, SharedQueue};
use crate::data_path::worker::Worker;
use crate::front_end::backing;
use shared_block_ring::device::event::Signaller;
use shared_block_ring::format::Geometry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::Error;
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
use vm_memory::{GuestAddressSpace, GuestMemoryBackend as _};

/// Queues of the device, of which a front end sets up as many as it wants. One thread serves them
/// all, so that judging and copying are one step.
const QUEUES: u16 = 64;
const _: () = assert!(QUEUES as usize == MAX_QUEUES);

/// Bytes of `struct virtio_blk_config` that this device fills (virtio 1.3, 5.2.4); what lies behind
/// reads as zero.
const CONFIG_BYTES: usize = 36;

/// Bytes of the configuration space that a front end may read (vhost-user, "Virtio device config
/// space").
const CONFIG_LIMIT: usize = 256;

/// Byte of `writeback` in the configuration space.
const WRITEBACK_AT: usize = 32;

/// Why a front end fails that has not noticed that the connection is a new one.
const EARLIER_CONNECTION: &str = "it goes on with what it set up on an earlier connection: was the backend replaced while the guest was paused, or \
                                  before its driver used the disk? (QEMU 7.2 cannot do that: end this QEMU and start it again; replace a backend only \
                                  while its guest runs)";

/// The device. Its messages are answered on the front end's thread; the queues are driven by
/// the worker's.
pub struct Backend {
    worker: Arc<SharedWorker>,
    /// The way to interrupt the guest.
    signaller: Arc<Signaller>,
    front_end: Mutex<FrontEnd>,
    losses: Losses,
    config: [u8; CONFIG_BYTES],
    read_only: bool,
    migratable: bool,
}

/// What the present front end has set.
#[derive(Default)]
struct FrontEnd {
    features: u64,
    writeback: bool,
    /// It has sent a message of its handshake.
    heard: bool,
    /// It has asked for the disk's properties, or set something.
    established: bool,
    /// It has said that it owns the device, or asked for the protocol's features, which a front end
    /// does first on a connection that it knows to be new.
    introduced: bool,
    /// The log of the pages of the guest's memory that the device writes to.
    log: DirtyLog,
}

impl FrontEnd {
    fn new() -> Self {
        Self { writeback: true, ..Self::default() }
    }

    /// Whether writes may be answered before they are durable. Virtio 1.3, 5.2.6.2: `writeback`
    /// counts if it was negotiated, else the cache is write-back if FLUSH was.
    fn is_write_back(&self) -> bool {
        let has = |bit: u32| self.features & (1 << bit) != 0;
        if has(VIRTIO_BLK_F_CONFIG_WCE) { self.writeback } else { has(VIRTIO_BLK_F_FLUSH) }
    }
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
        let front_end = Mutex::new(FrontEnd::new());
        let losses = worker.lock().losses().clone();
        Self { worker, signaller, front_end, losses, config, read_only, migratable }
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

    /// Gives the worker the queues of a connection.
    pub fn connect(&self, queues: Vec<SharedQueue>) {
        self.worker().connect(queues);
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

    /// Answers nothing any more: the connection is about to be ended by us.
    pub fn close(&self) {
        self.worker().close();
    }

    /// Forgets a front end that is gone.
    pub fn disconnect(&self) {
        self.worker().disconnect();
        let features = self.front_end().features;
        *self.front_end() = FrontEnd { features, ..FrontEnd::new() };
    }

    /// Returns why the library has ended the connection with this error, in words of the VMM's
    /// command line, where they fit. To be called while the front end is connected.
    pub fn misfit(&self, error: &Error) -> Option<String> {
        let introduced = self.front_end().introduced;
        match error {
            Error::InvalidParam => Some(self.refused_message(introduced)),
            Error::InactiveFeature(_) | Error::InactiveOperation(_) if !introduced => {
                Some(EARLIER_CONNECTION.to_owned())
            }
            _ => None,
        }
    }

    /// Returns why a message was refused.
    fn refused_message(&self, introduced: bool) -> String {
        let worker = self.worker();
        match worker.queues().iter().any(SharedQueue::has_size) {
            true if !worker.has_memory() && !introduced => EARLIER_CONNECTION.to_owned(),
            true if !worker.has_memory() => {
                format!("it shares none of the guest's memory ({HOW_TO_SHARE})")
            }
            _ => format!(
                "it asks for what this disk does not offer: a feature, more than {QUEUES} queues (QEMU: num-queues={QUEUES} or less), \
                 or a queue of more than {QUEUE_SIZE} descriptors"
            ),
        }
    }

    /// Whether the front end has sent a message.
    pub fn heard(&self) -> bool {
        let front_end = self.front_end();
        front_end.heard || front_end.introduced || front_end.established
    }

    /// Whether the front end has got beyond the start of its handshake.
    pub fn established(&self) -> bool {
        self.front_end().established
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock()
    }

    fn front_end(&self) -> MutexGuard<'_, FrontEnd> {
        self.front_end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the worker whether each write is durable before it is answered.
    fn apply_cache_mode(&self, front_end: &FrontEnd) {
        self.worker().set_write_through(!front_end.is_write_back());
    }
}

/// The answers to messages, and their effects on the device.
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
        self.front_end().heard = true;
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

    /// Takes note of the features that were negotiated.
    pub fn acked_features(&self, features: u64) {
        let mut front_end = self.front_end();
        front_end.features = features;
        front_end.established = true;
        self.apply_cache_mode(&front_end);
    }

    /// Notes that the front end knows this connection to be a new one.
    pub fn introduce(&self) {
        self.front_end().introduced = true;
    }

    /// The protocol's features that are offered.
    pub fn protocol_features(&self) -> VhostUserProtocolFeatures {
        self.introduce();
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

    /// Stops the device.
    pub fn reset_device(&self) {
        self.worker().stop_all();
    }

    /// Returns a part of the configuration space; nothing if it does not lie there.
    pub fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut space = [0; CONFIG_LIMIT];
        space[..CONFIG_BYTES].copy_from_slice(&self.config);
        let mut front_end = self.front_end();
        front_end.established = true;
        space[WRITEBACK_AT] = u8::from(front_end.writeback);
        drop(front_end);
        let start = offset as usize;
        // An answer of another length than asked for tells the front end of an error.
        start
            .checked_add(size as usize)
            .and_then(|end| space.get(start..end))
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    /// Sets a part of the configuration space.
    ///
    /// # Errors
    ///
    /// It cannot be set.
    pub fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if offset as usize != WRITEBACK_AT || bytes.len() != 1 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only the write-back flag can be set",
            ));
        }
        let mut front_end = self.front_end();
        front_end.writeback = bytes[0] != 0;
        self.apply_cache_mode(&front_end);
        Ok(())
    }

    /// Memory that is shared no longer is unmapped before this returns, when the turn that may be
    /// using it is over. New memory is added to the log before the worker can write to it.
    ///
    /// # Errors
    ///
    /// The memory cannot be used, or the log of dirty pages does not cover it.
    pub fn update_memory(&self, memory: &Memory) -> io::Result<()> {
        self.front_end().heard = true;
        let regions = memory.memory().num_regions();
        if regions > MAX_REGIONS {
            let text =
                format!("{regions} regions of memory are more than the {MAX_REGIONS} offered");
            return Err(io::Error::other(text));
        }
        backing::check(&memory.memory())?;
        self.front_end().log.cover(&memory.memory(), &self.losses)?;
        self.worker().set_memory(memory);
        Ok(())
    }

    /// Marks the pages that are written to from now on in `log`.
    ///
    /// # Errors
    ///
    /// The log does not cover all of the memory.
    pub fn begin_log(&self, memory: &Memory, log: Log) -> io::Result<()> {
        self.front_end().log.begin(&memory.memory(), log, &self.losses)
    }

    /// Stops a queue, at `GET_VRING_BASE`.
    pub fn stop_vring(&self, queue: u32) {
        self.worker().stop(queue as usize);
    }
}
