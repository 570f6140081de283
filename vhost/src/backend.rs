//! What a vhost-user front end asks of the device, and the events of its thread.

use crate::dirty::Dirty;
use crate::request::MAX_SEGMENTS;
use crate::vring::{Claims, Memory, Vring};
use crate::worker::Worker;
use shared_block_ring::format::Geometry;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use vhost_user_backend::{VhostUserBackend, VringEpollHandler};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

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

/// Events of the thread beside the queue's (0) and the exit event (1).
#[derive(Clone, Copy)]
enum Event {
    Flushed = 2,
    Bell = 3,
    Timer = 4,
    Again = 5,
}

/// The device, shared by the thread that answers the front end and the one that drives the queue.
pub struct Backend {
    worker: Mutex<Worker>,
    /// Of those who wait for the worker.
    claims: Claims,
    control: Mutex<Control>,
    config: [u8; CONFIG_BYTES],
    read_only: bool,
    migratable: bool,
}

/// What the front end has set.
#[derive(Default)]
struct Control {
    memory: Option<Memory>,
    features: u64,
    writeback: bool,
    /// It has asked for the disk's properties, or set something.
    established: bool,
    /// The crate's event loop leaves the exit event that it was given open when it ends.
    exit: Option<RawFd>,
}

impl Backend {
    /// For a ring shaped so.
    pub fn new(worker: Worker, geometry: Geometry, read_only: bool, migratable: bool) -> Self {
        let mut config = [0; CONFIG_BYTES];
        // Capacity is in units of 512 bytes, whatever the block size.
        config[..8].copy_from_slice(&(geometry.total_bytes() / 512).to_le_bytes());
        config[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        config[20..24].copy_from_slice(&geometry.sector_size().get().to_le_bytes());
        config[34..36].copy_from_slice(&QUEUES.to_le_bytes());
        let control = Control { writeback: true, ..Control::default() };
        Self {
            worker: Mutex::new(worker),
            claims: Claims::default(),
            control: Mutex::new(control),
            config,
            read_only,
            migratable,
        }
    }

    /// Has the thread of a new connection listen to our events too.
    pub fn listen(&self, handler: &VringEpollHandler<Arc<Self>>) -> io::Result<()> {
        let worker = self.worker();
        for (fd, event) in [
            (worker.flush_event().as_raw_fd(), Event::Flushed),
            (worker.bell().fd().as_raw_fd(), Event::Bell),
            (worker.timer().as_fd().as_raw_fd(), Event::Timer),
            (worker.again_event().as_raw_fd(), Event::Again),
        ] {
            handler.register_listener(fd, EventSet::IN, event as u64)?;
        }
        Ok(())
    }

    /// The front end is gone and its thread has ended.
    pub fn disconnect(&self) {
        self.worker().disconnect();
        let mut control = self.control();
        control.memory = None;
        control.writeback = true;
        control.established = false;
        if let Some(fd) = control.exit.take() {
            // SAFETY: the event loop took the descriptor out of its owner (`into_raw_fd`) and has ended; nobody else has it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
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

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.control().memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) =
            new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
                .inspect_err(|e| log::error!("no exit event for a connection's thread: {e}"))
                .ok()?;
        self.control().exit = Some(consumer.as_raw_fd());
        Some((consumer, notifier))
    }

    fn stop_vring(&self, _queue_index: u32) -> io::Result<()> {
        self.worker().stop();
        Ok(())
    }

    /// Never an error: the crate's thread would end, in silence.
    fn handle_event(
        &self,
        event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.first() else { return Ok(()) };
        let Some(memory) = self.control().memory.clone() else { return Ok(()) };
        self.claims.give_way();
        let mut worker = self.lock();
        match event {
            e if e == Event::Flushed as u16 => worker.flushed(vring, &memory),
            e if e == Event::Bell as u16 => worker.rung(vring, &memory),
            e if e == Event::Timer as u16 => worker.timed_out(vring, &memory),
            _ => worker.kicked(vring, &memory),
        }
        Ok(())
    }
}
