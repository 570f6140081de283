//! A simulated disk as a guest's: a vhost-user-blk backend whose power can fail.
//!
//! What was answered is in the disk's cache, or on its medium; after the cut nothing is answered, and nothing is carried out.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use ring_simulation::{Adversary, Disk};
use shared_block_ring::wait::wait_readable;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_device_blockring::request::{Kind, MAX_SEGMENTS, Request};
use vhost_device_blockring::worker::{Memory, Vring};
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringT as _};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_S_IOERR,
    VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::QueueOwnedT as _;
use vm_memory::{Bytes as _, GuestAddressSpace as _, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::Result;
use super::stream::SOON;

/// What the guest finds the disk by.
const SERIAL: &[u8] = b"ring";

/// Sectors in front of the ring's data: those that the adversary likes.
const HEAD_SECTORS: u64 = 3;

/// Bytes of `struct virtio_blk_config` (virtio 1.3, 5.2.4) that are served; what is not filled in is zero.
const CONFIG_BYTES: usize = 256;

/// Whether a flush makes anything durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushes {
    /// As it should.
    Honest,
    /// It is answered, and that is all: for a campaign that has to fail.
    Lies,
}

/// A disk with a power supply.
pub(super) struct PoweredDisk {
    disk: Disk,
    flushes: Flushes,
    power: Mutex<Power>,
}

#[derive(Default)]
struct Power {
    on: bool,
    /// The requests that are still carried out, once the cut is near; and whether the last one of them is answered, too.
    left: Option<(u64, bool)>,
    request: Request,
    memory: Option<Memory>,
}

impl PoweredDisk {
    pub fn new(disk: Disk, flushes: Flushes) -> Arc<Self> {
        let power = Mutex::new(Power::default());
        Arc::new(Self { disk, flushes, power })
    }

    fn power(&self) -> MutexGuard<'_, Power> {
        // A panic in between is this test's failure anyway.
        self.power.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power is back. Serves the next front end at `socket`, until it goes away.
    pub fn serve(self: &Arc<Self>, socket: &Path) -> Result<JoinHandle<()>> {
        // The one that served the last boot is no listener any more.
        let _ = std::fs::remove_file(socket);
        let listener = UnixListener::bind(socket).map_err(crate::Error::file("binding", socket))?;
        *self.power() = Power { on: true, ..Power::default() };
        let served = Arc::clone(self);
        Ok(thread::spawn(move || {
            if let Err(e) = served.serve_one(listener) {
                eprintln!("crash-campaign: the simulated disk: {e}");
            }
        }))
    }

    fn serve_one(self: Arc<Self>, listener: UnixListener) -> io::Result<()> {
        if wait_readable(&[listener.as_fd()], Some(SOON))?.is_none() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let daemon = VhostUserDaemon::new("powered-disk".to_owned(), self, memory);
        let mut daemon = daemon.map_err(|e| io::Error::other(e.to_string()))?;
        let started = daemon.start(&mut Listener::from(listener));
        started.map_err(|e| io::Error::other(e.to_string()))?;
        // Its end is how a killed QEMU leaves, whatever it is called.
        let _ = daemon.wait();
        Ok(())
    }

    /// Lets the power fail after so many more requests: when the last one is answered, or is carried out and never answered.
    pub fn fail_after(&self, requests: u64, answered: bool) {
        self.power().left = Some((requests, answered));
    }

    /// Whether the power has failed.
    pub fn is_off(&self) -> bool {
        !self.power().on
    }

    /// What an adversary likes of what was not flushed is gone; to be called when QEMU is.
    pub fn lose(&self, seed: u64) {
        let mut adversary = Adversary::new(seed, HEAD_SECTORS);
        self.disk.crash(|sector, versions| adversary.choose(sector, versions));
    }

    /// Everything in the available ring, in its order, while there is power.
    fn drain(&self, vring: &Vring) -> std::result::Result<(), virtio_queue::Error> {
        let mut power = self.power();
        let Some(memory) = power.memory.clone() else { return Ok(()) };
        let memory = memory.memory();
        let mut state = vring.get_mut();
        while power.on {
            let chain = state.get_queue_mut().iter(memory.clone())?.next();
            let Some(chain) = chain else {
                if state.enable_notification()? {
                    continue;
                }
                break;
            };
            let head = chain.head_index();
            let parsed = power.request.parse(&*memory, chain);
            let (status, len) = match parsed {
                Ok(()) => self.carry_out(&power.request, &memory),
                Err(_) => (VIRTIO_BLK_S_IOERR, 0),
            };
            let last = power.left.as_mut().and_then(|(left, answered)| {
                *left = left.saturating_sub(1);
                (*left == 0).then_some(*answered)
            });
            if last != Some(false)
                && let Some(address) = power.request.status()
            {
                // The constants are small, and generated as 32 bits wide.
                let status = u8::try_from(status).unwrap_or(u8::MAX);
                memory.write_obj(status, address).map_err(virtio_queue::Error::GuestMemory)?;
                state.add_used(head, len + 1)?;
            }
            if last.is_some() {
                power.on = false;
            }
        }
        // Without EVENT_IDX: a notification too many does no harm.
        state.signal_used_queue().map_err(|_| virtio_queue::Error::QueueNotReady)
    }

    fn carry_out(&self, request: &Request, memory: &GuestMemoryMmap) -> (u32, u32) {
        let mut written = 0;
        let outcome = match request.kind() {
            Kind::Read => self.read(request, memory).inspect(|&len| written = len).map(drop),
            Kind::Write => self.write(request, memory),
            Kind::Flush if self.flushes == Flushes::Lies => Ok(()),
            Kind::Flush => self.disk.flush(),
            Kind::GetId => get_id(request, memory).inspect(|&len| written = len).map(drop),
            Kind::Unsupported => return (VIRTIO_BLK_S_UNSUPP, 0),
        };
        (outcome.map_or(VIRTIO_BLK_S_IOERR, |()| VIRTIO_BLK_S_OK), written)
    }

    fn read(&self, request: &Request, memory: &GuestMemoryMmap) -> io::Result<u32> {
        let mut bytes = buffer(request);
        self.disk.read(request.sector, &mut bytes)?;
        scatter(request, memory, &bytes)
    }

    fn write(&self, request: &Request, memory: &GuestMemoryMmap) -> io::Result<()> {
        let mut bytes = buffer(request);
        let mut rest = &mut bytes[..];
        for segment in &request.data {
            let (now, later) = rest.split_at_mut(segment.len);
            memory.read_slice(now, segment.address).map_err(io::Error::other)?;
            rest = later;
        }
        self.disk.write(request.sector, &bytes)
    }
}

/// Its length is bounded by the parser.
fn buffer(request: &Request) -> Vec<u8> {
    vec![0; request.data.iter().map(|segment| segment.len).sum()]
}

/// Copies as much as the request has room for; how much that was.
fn scatter(request: &Request, memory: &GuestMemoryMmap, bytes: &[u8]) -> io::Result<u32> {
    let mut rest = bytes;
    for segment in &request.data {
        let (now, later) = rest.split_at(segment.len.min(rest.len()));
        memory.write_slice(now, segment.address).map_err(io::Error::other)?;
        rest = later;
    }
    u32::try_from(bytes.len() - rest.len()).map_err(io::Error::other)
}

fn get_id(request: &Request, memory: &GuestMemoryMmap) -> io::Result<u32> {
    let mut id = [0; 20];
    id[..SERIAL.len()].copy_from_slice(SERIAL);
    scatter(request, memory, &id)
}

impl VhostUserBackend for PoweredDisk {
    type Bitmap = ();
    type Vring = Vring;

    fn num_queues(&self) -> usize {
        1
    }

    fn max_queue_size(&self) -> usize {
        128
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let geometry = self.disk.geometry();
        let mut space = [0; CONFIG_BYTES];
        space[..8].copy_from_slice(&(geometry.total_bytes() / 512).to_le_bytes());
        space[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        space[20..24].copy_from_slice(&geometry.sector_size().get().to_le_bytes());
        space[34..36].copy_from_slice(&1u16.to_le_bytes());
        let start = offset as usize;
        space
            .get(start..start.saturating_add(size as usize))
            .map(<[u8]>::to_vec)
            .unwrap_or_default()
    }

    fn update_memory(&self, memory: Memory) -> io::Result<()> {
        self.power().memory = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        // The crate leaves one descriptor of it open: one a boot.
        new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC).ok()
    }

    /// Never an error: the crate's thread would end, in silence.
    fn handle_event(
        &self,
        _event: u16,
        _set: EventSet,
        vrings: &[Vring],
        _thread: usize,
    ) -> io::Result<()> {
        if let Some(Err(e)) = vrings.first().map(|vring| self.drain(vring)) {
            eprintln!("crash-campaign: the simulated disk's queue: {e}");
        }
        Ok(())
    }
}
