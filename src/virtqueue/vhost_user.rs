//! The front end of vhost-user: a block device in another process, which works on our memory.

use super::disk::{CONFIG_BYTES, Config, WANTED};
use super::{Away, Disk, DmaMemory, Layout, Pages, Transport};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_RO;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// How long a backend may take for an answer. One that serves another front end does not answer at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// The one queue that is used.
const QUEUE: usize = 0;

/// A backend, by the connection to it that there is, and the two events that go with its queue.
pub struct VhostUser {
    path: PathBuf,
    connection: Connection,
    /// What was agreed on with the first backend, and is with each that takes its place.
    features: u64,
    disk: Disk,
    kick: EventFd,
    call: EventFd,
    /// Readable when the connection's other end is gone. One descriptor for all connections, since others wait on it.
    gone: Epoll,
}

struct Connection {
    wire: Frontend,
    /// The wire's own socket.
    socket: UnixStream,
}

impl VhostUser {
    /// Connects to a backend and agrees on features with it. The queue does not run before [`start`](Self::start).
    pub fn connect(path: &Path) -> io::Result<Self> {
        let (connection, features, disk) = Connection::open(path, WANTED)?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let (path, gone) = (path.to_owned(), Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
        gone.add(&connection.socket, hang_up())?;
        Ok(Self { path, connection, features, disk, kick: event()?, call: event()?, gone })
    }
}

/// Not that it can be read: answers to the messages of a start would count as an end.
fn hang_up() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLRDHUP, 0)
}

impl Connection {
    /// With those of the features `wanted` that the backend has, and its disk.
    fn open(path: &Path, wanted: u64) -> io::Result<(Self, u64, Disk)> {
        let socket = UnixStream::connect(path)?;
        let mut wire = Frontend::from_stream(socket.try_clone()?, 1);
        let (features, config) = within_patience(&socket, || handshake(&mut wire, wanted))?;
        let disk = Disk::new(features, &config)?;
        Ok((Self { wire, socket }, features, disk))
    }

    /// Has the backend drive the queue in `memory` from the index `base` on.
    fn start(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        base: u16,
        [call, kick]: [&EventFd; 2],
    ) -> io::Result<()> {
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
        let Self { wire, socket } = self;
        within_patience(socket, || {
            // One region: the table says it in one message that every backend understands.
            wire.set_mem_table(&[region])?;
            wire.set_vring_num(QUEUE, layout.size)?;
            wire.set_vring_addr(QUEUE, &rings)?;
            wire.set_vring_base(QUEUE, base)?;
            wire.set_vring_call(QUEUE, call)?;
            wire.set_vring_kick(QUEUE, kick)?;
            wire.set_vring_enable(QUEUE, true)
        })
    }
}

impl Transport for VhostUser {
    fn disk(&self) -> Disk {
        self.disk
    }

    /// Of huge pages where the administrator has set some aside: fewer entries of the translation caches, here and in the backend.
    fn allocate(&self, bytes: u64) -> io::Result<DmaMemory> {
        DmaMemory::new(bytes, Pages::Huge).or_else(|_| DmaMemory::new(bytes, Pages::Small))
    }

    fn start(&mut self, memory: &DmaMemory, layout: Layout) -> io::Result<()> {
        self.connection.start(memory, layout, 0, [&self.call, &self.kick])
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
        Some(self.gone.0.as_fd())
    }

    /// Its socket tells.
    fn present(&self) -> io::Result<()> {
        Ok(())
    }

    fn resume(&mut self, memory: &DmaMemory, layout: Layout, base: u16) -> Result<(), Away> {
        // If the other end has closed its half only, it waits for ours before it serves anybody else.
        let _ = self.connection.socket.shutdown(Shutdown::Both);
        let wanted = self.features | 1 << VIRTIO_BLK_F_RO;
        let (mut connection, _, disk) =
            Connection::open(&self.path, wanted).map_err(Away::ForNow)?;
        if let Some(difference) = difference(self.disk, disk) {
            let text = format!("the backend has come back with another disk: {difference}");
            return Err(Away::ForGood(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        let events = [&self.call, &self.kick];
        connection.start(memory, layout, base, events).map_err(Away::ForNow)?;
        // Until here the old connection is the one that is gone.
        let failed = |e: Errno| Away::ForGood(e.into());
        self.gone.delete(&self.connection.socket).map_err(failed)?;
        self.gone.add(&connection.socket, hang_up()).map_err(failed)?;
        self.connection = connection;
        // Whether the last backend wanted to be notified says nothing of this one.
        self.notify().map_err(Away::ForGood)
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

/// What a queue that was made for the one disk would get wrong with the other.
fn difference(before: Disk, now: Disk) -> Option<String> {
    if now.bytes != before.bytes {
        Some(format!("{} bytes instead of {}", now.bytes, before.bytes))
    } else if now.sector_size != before.sector_size {
        Some(format!("sectors of {} bytes instead of {}", now.sector_size, before.sector_size))
    } else if now.read_only != before.read_only {
        Some(if now.read_only { "it is read-only" } else { "it is no longer read-only" }.to_owned())
    } else if now != before {
        Some(
            "it lacks a feature that is in use (flush, indirect descriptors or event indices)"
                .to_owned(),
        )
    } else {
        None
    }
}

/// Features that both sides have, and the configuration space.
fn handshake(wire: &mut Frontend, wanted: u64) -> vhost::Result<(u64, Config)> {
    wire.set_owner()?;
    let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
    let features = wire.get_features()? & (wanted | protocol);
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
