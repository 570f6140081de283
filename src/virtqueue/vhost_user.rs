//! The front end of vhost-user: a block device in another process, which works on our memory.

use super::disk::{CONFIG_BYTES, Config, WANTED};
use super::{Disk, DmaMemory, Layout, Pages, Transport};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How long a backend may take for an answer. One that serves another front end does not answer at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// The one queue that is used.
const QUEUE: usize = 0;

/// A connection, and the two events that go with its queue.
pub struct VhostUser {
    wire: Frontend,
    /// The wire's own socket: it says when the backend is gone.
    connection: UnixStream,
    disk: Disk,
    kick: EventFd,
    call: EventFd,
}

impl VhostUser {
    /// Connects to a backend and agrees on features with it. The queue does not run before [`start`](Self::start).
    pub fn connect(path: &Path) -> io::Result<Self> {
        let connection = UnixStream::connect(path)?;
        let mut wire = Frontend::from_stream(connection.try_clone()?, 1);
        let (features, config) = within_patience(&connection, || handshake(&mut wire))?;
        let disk = Disk::new(features, &config)?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self { wire, connection, disk, kick: event()?, call: event()? })
    }
}

impl Transport for VhostUser {
    fn disk(&self) -> Disk {
        self.disk
    }

    fn allocate(&self, bytes: u64) -> io::Result<DmaMemory> {
        DmaMemory::new(bytes, Pages::Small)
    }

    fn start(&mut self, memory: &DmaMemory, layout: Layout) -> io::Result<()> {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: memory.device_address(0),
            memory_size: memory.bytes(),
            userspace_addr: memory.host_address(0),
            mmap_offset: 0,
            mmap_handle: memory.fd().as_raw_fd(),
        };
        let rings = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            desc_table_addr: memory.host_address(layout.descriptors),
            avail_ring_addr: memory.host_address(layout.available),
            used_ring_addr: memory.host_address(layout.used),
            ..VringConfigData::default()
        };
        let Self { wire, connection, call, kick, .. } = self;
        within_patience(connection, || {
            // One region: the table says it in one message that every backend understands.
            wire.set_mem_table(&[region])?;
            wire.set_vring_num(QUEUE, layout.size)?;
            wire.set_vring_addr(QUEUE, &rings)?;
            wire.set_vring_base(QUEUE, 0)?;
            wire.set_vring_call(QUEUE, call)?;
            wire.set_vring_kick(QUEUE, kick)?;
            wire.set_vring_enable(QUEUE, true)
        })
    }

    fn notify(&self) -> io::Result<()> {
        match self.kick.write(1) {
            // A full counter says the same.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is the event's, which lives as long as the borrow.
        Some(unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) })
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        Some(self.connection.as_fd())
    }

    /// Its socket tells.
    fn present(&self) -> io::Result<()> {
        Ok(())
    }

    fn pass_on(&self) {
        // A full counter says the same.
        let _ = self.call.write(1);
    }

    fn acknowledge(&self) {
        // None is the common case of one that raced with another reason to wake up.
        let _ = self.call.read();
    }
}

/// Features that both sides have, and the configuration space.
fn handshake(wire: &mut Frontend) -> vhost::Result<(u64, Config)> {
    wire.set_owner()?;
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let features = wire.get_features()? & (WANTED | protocol);
    let wanted = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::MQ;
    let agreed = wire.get_protocol_features()? & wanted;
    wire.set_protocol_features(agreed)?;
    if agreed.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        // From here on what the backend refuses is an error of the message that it refuses.
        wire.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    let flags = VhostUserConfigFlags::empty();
    let mut config: Config = [0; _];
    let (_, answer) = wire.get_config(0, CONFIG_BYTES, flags, &config)?;
    config.copy_from_slice(&answer);
    wire.set_features(features)?;
    Ok((features, config))
}

/// Ends the connection of a backend that does not answer: the library below waits for ever.
fn within_patience<T>(
    connection: &UnixStream,
    talk: impl FnOnce() -> vhost::Result<T>,
) -> io::Result<T> {
    let (finished, watched) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let late = watched.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout);
            if late {
                let _ = connection.shutdown(Shutdown::Both);
            }
            late
        });
        let answer = talk();
        drop(finished);
        match (answer, watch.join()) {
            (Ok(answer), Ok(false)) => Ok(answer),
            (_, Ok(true)) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the backend does not answer (it may be serving another front end)",
            )),
            (Err(e), _) => Err(io::Error::other(e)),
            (Ok(_), Err(_)) => Err(io::Error::other("the watch over the backend has died")),
        }
    })
}
