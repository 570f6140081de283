//! What a vhost-user front end asks of the device, and the thread that drives its queue.

use crate::dirty::Dirty;
use crate::notifier::consume;
use crate::request::MAX_SEGMENTS;
use crate::vring::{self, Claims, Memory, Vring};
use crate::worker::{Rest, Worker};
use shared_block_ring::format::Geometry;
use shared_block_ring::wait::wait_readable;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost_user_backend::VhostUserBackend;
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vmm_sys_util::epoll::EventSet;

/// One queue: it is served by one thread in any case, so that judging and copying are one step.
const QUEUES: u16 = 1;

/// Descriptors in a queue at most.
const QUEUE_SIZE: usize = 256;

/// Bytes of `struct virtio_blk_config` that this device fills (virtio 1.3, 5.2.4); what lies behind reads as zero.
const CONFIG_BYTES: usize = 36;

/// The most that a front end may read of the configuration space (vhost-user, "Virtio device config space").
const CONFIG_LIMIT: usize = 256;

/// Where `writeback` lies in it.
const WRITEBACK_AT: usize = 32;

/// After a wait that has failed.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The device, shared by the thread that answers the front end and the one that drives the queue.
pub struct Backend {
    worker: Mutex<Worker>,
    /// Of those who wait for the worker, or for its queue.
    claims: Claims,
    /// Readable when a flush has finished, and when the host has moved while a read is held.
    heard: [OwnedFd; 2],
    over: AtomicBool,
    control: Mutex<Control>,
    config: [u8; CONFIG_BYTES],
    read_only: bool,
    migratable: bool,
}

/// What the front end has set.
#[derive(Default)]
struct Control {
    features: u64,
    writeback: bool,
    /// It has asked for the disk's properties, or set something.
    established: bool,
}

impl Backend {
    /// For a ring shaped so.
    pub fn new(
        worker: Worker,
        geometry: Geometry,
        read_only: bool,
        migratable: bool,
    ) -> io::Result<Self> {
        let mut config = [0; CONFIG_BYTES];
        // Capacity is in units of 512 bytes, whatever the block size.
        config[..8].copy_from_slice(&(geometry.total_bytes() / 512).to_le_bytes());
        config[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        config[20..24].copy_from_slice(&geometry.sector_size().get().to_le_bytes());
        config[34..36].copy_from_slice(&QUEUES.to_le_bytes());
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
        let heard = [own(worker.flusher().event())?, own(worker.bell().fd())?];
        Ok(Self {
            worker: Mutex::new(worker),
            claims: Claims::new()?,
            heard,
            over: AtomicBool::new(false),
            control: Mutex::new(Control { writeback: true, ..Control::default() }),
            config,
            read_only,
            migratable,
        })
    }

    /// Drives the queues of one front end after the other, on this thread, until [`finish`](Self::finish).
    pub fn drive(&self) {
        while !self.over.load(Ordering::Acquire) {
            self.claims.give_way();
            let mut worker = self.lock();
            let rest = worker.turn(&self.claims);
            let kick = worker.kick();
            drop(worker);
            if let Rest::Sleep(until) = rest
                && let Err(e) = self.sleep(kick.as_deref(), until)
            {
                log::error!("cannot wait for the guest: {e}");
                std::thread::sleep(RETRY_PAUSE);
            }
        }
    }

    /// Ends [`drive`](Self::drive), whenever that is.
    pub fn finish(&self) {
        self.over.store(true, Ordering::Release);
        drop(self.claims.claim());
    }

    /// Until something is to be heard, or this time.
    fn sleep(&self, kick: Option<&File>, until: Option<Instant>) -> io::Result<()> {
        let [flushed, moved] = &self.heard;
        let mut heard = vec![self.claims.changed(), flushed.as_fd(), moved.as_fd()];
        heard.extend(kick.map(AsFd::as_fd));
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        if let Some(first) = wait_readable(&heard, timeout)? {
            // Of more than one the next sleep tells. What they are about is looked at after this.
            consume(heard[first])?;
        }
        Ok(())
    }

    /// Makes what the library needs to serve a front end, with a queue that is driven by us.
    pub fn connect<T>(&self, make: impl FnOnce() -> T) -> T {
        let (value, vrings) = vring::making(&self.claims, make);
        for vring in vrings {
            self.worker().connect(vring);
        }
        value
    }

    /// The connection is about to be ended by us: nothing is answered any more.
    pub fn close(&self) {
        self.worker().close();
    }

    /// The front end is gone.
    pub fn disconnect(&self) {
        self.worker().disconnect();
        let mut control = self.control();
        control.writeback = true;
        control.established = false;
    }

    /// Whether the front end has got beyond the start of its handshake.
    pub fn established(&self) -> bool {
        self.control().established
    }

    /// For whoever does not drive the queue.
    fn worker(&self) -> MutexGuard<'_, Worker> {
        let _claim = self.claims.claim();
        self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Worker> {
        // A panic while a request was carried out leaves the region as it is, which is judged afresh at every request.
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Virtio 1.3, 5.2.6.2: `writeback` counts if it was negotiated, else the cache is write-back if FLUSH was.
    fn settle_cache(&self, control: &Control) {
        let has = |bit: u32| control.features & (1 << bit) != 0;
        let write_back =
            if has(VIRTIO_BLK_F_CONFIG_WCE) { control.writeback } else { has(VIRTIO_BLK_F_FLUSH) };
        self.worker().set_write_through(!write_back);
    }
}

impl VhostUserBackend for Backend {
    type Bitmap = Dirty;
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        QUEUES.into()
    }

    fn max_queue_size(&self) -> usize {
        QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        let read_only = if self.read_only { 1 << VIRTIO_BLK_F_RO } else { 0 };
        // QEMU migrates and saves no guest whose backend cannot log what it writes to the guest's memory.
        let log = if self.migratable { VhostUserVirtioFeatures::LOG_ALL.bits() } else { 0 };
        read_only
            | log
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_CONFIG_WCE
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        let mut control = self.control();
        control.features = features;
        control.established = true;
        self.settle_cache(&control);
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let log = if self.migratable {
            VhostUserProtocolFeatures::LOG_SHMFD
        } else {
            VhostUserProtocolFeatures::empty()
        };
        log | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn reset_device(&self) {
        self.worker().stop();
    }

    /// The queue itself has been told.
    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut space = [0; CONFIG_LIMIT];
        space[..CONFIG_BYTES].copy_from_slice(&self.config);
        let mut control = self.control();
        control.established = true;
        space[WRITEBACK_AT] = u8::from(control.writeback);
        drop(control);
        let start = offset as usize;
        // An answer of another length than asked for is the front end's error.
        start
            .checked_add(size as usize)
            .and_then(|end| space.get(start..end))
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    fn set_config(&self, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if offset as usize != WRITEBACK_AT || bytes.len() != 1 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only the write-back flag can be set",
            ));
        }
        let mut control = self.control();
        control.writeback = bytes[0] != 0;
        self.settle_cache(&control);
        Ok(())
    }

    /// What is shared no longer is unmapped when the turn that may be using it is over, so before this returns.
    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.worker().set_memory(memory);
        Ok(())
    }

    /// No event loop of the library's: our own thread drives the queue.
    fn queues_per_thread(&self) -> Vec<u64> {
        Vec::new()
    }

    fn stop_vring(&self, _queue_index: u32) -> io::Result<()> {
        self.worker().stop();
        Ok(())
    }

    /// Not called, for lack of such a loop.
    fn handle_event(&self, _: u16, _: EventSet, _: &[Vring], _: usize) -> io::Result<()> {
        Ok(())
    }
}
