//! A [`PoweredDisk`] as a vhost-user-blk backend.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use shared_block_ring::wait::wait_readable;
use vhost::vhost_user::Listener;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_device_blockring::data_path::dirty::{Dirty, GuestMemory};
use vhost_device_blockring::data_path::request::MAX_SEGMENTS;
use vhost_device_blockring::data_path::shared_queue::Memory;
use vhost_user_backend::{VhostUserBackend, VhostUserDaemon, VringMutex};
use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::power::PoweredDisk;
use super::stream::SOON;
use super::{Result, unsound};

/// Bytes of `struct virtio_blk_config` (virtio 1.3, 5.2.4) that are served; what is not filled in
/// is zero.
const CONFIG_BYTES: usize = 256;

/// The event of the thread that is the disk's own; 0 is the queue's, 1 the thread's end.
const TIMER: u16 = 2;

/// A disk for one guest, served until that guest is gone.
pub(super) struct Served(JoinHandle<()>);

impl Served {
    /// Serves `disk`, with its power on, to the next front end at `socket`.
    pub fn start(disk: &Arc<PoweredDisk>, socket: &Path, seed: u64) -> Result<Self> {
        // The socket of the last guest's disk is stale.
        let _ = fs::remove_file(socket);
        let listener = UnixListener::bind(socket).map_err(crate::Error::file("binding", socket))?;
        disk.switch_on(seed).map_err(crate::Error::io("making a timer"))?;
        let disk = Arc::clone(disk);
        Ok(Self(thread::spawn(move || {
            if let Err(e) = serve(&disk, listener) {
                eprintln!("crash-campaign: the simulated disk: {e}");
            }
        })))
    }

    /// Waits until its front end has gone.
    pub fn join(self) -> Result<()> {
        self.0.join().or_else(|_| unsound("the simulated disk has panicked".to_owned()))
    }
}

fn serve(disk: &Arc<PoweredDisk>, listener: UnixListener) -> io::Result<()> {
    if wait_readable(&[listener.as_fd()], Some(SOON))?.is_none() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let other = |e: vhost_user_backend::Error| io::Error::other(e.to_string());
    let memory = GuestMemoryAtomic::new(GuestMemory::new());
    let daemon = VhostUserDaemon::new("powered-disk".to_owned(), Arc::clone(disk), memory);
    let mut daemon = daemon.map_err(other)?;
    for handler in daemon.get_epoll_handlers() {
        let timer = disk.power().timer.as_raw_fd();
        handler.register_listener(timer, EventSet::IN, TIMER.into())?;
    }
    daemon.start(&mut Listener::from(listener)).map_err(other)?;
    // A killed QEMU may end its connection in any way.
    let _ = daemon.wait();
    Ok(())
}

impl VhostUserBackend for PoweredDisk {
    type Bitmap = Dirty;
    type Vring = VringMutex<Memory>;

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
        let geometry = self.disk().geometry();
        let mut space = [0; CONFIG_BYTES];
        space[..8].copy_from_slice(&(geometry.total_bytes() / 512).to_le_bytes());
        space[12..16].copy_from_slice(&MAX_SEGMENTS.to_le_bytes());
        space[20..24].copy_from_slice(&geometry.sector_size().get().to_le_bytes());
        space[34..36].copy_from_slice(&1u16.to_le_bytes());
        let start = offset as usize;
        let end = start.saturating_add(size as usize);
        space.get(start..end).map(<[u8]>::to_vec).unwrap_or_default()
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
        event: u16,
        _set: EventSet,
        vrings: &[VringMutex<Memory>],
        _thread: usize,
    ) -> io::Result<()> {
        let Some(vring) = vrings.first() else { return Ok(()) };
        let outcome = if event == TIMER { self.finish_flush(vring) } else { self.drain(vring) };
        if let Err(e) = outcome {
            eprintln!("crash-campaign: the simulated disk's queue: {e}");
        }
        Ok(())
    }
}
