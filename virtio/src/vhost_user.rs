//! The front end of vhost-user: a block device in another process, which works on our memory.

use crate::disk::{CONFIG_BYTES, Config, WANTED};
use crate::memory::{DmaMemory, Pages};
use crate::queue::Layout;
use crate::transport::{Link, Seal};
use crate::{Disk, Error, Refusal, ResumeError, Step, Transport};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use ring_os::{ANSWER_PATIENCE, Limits, SocketKind, await_readable, dial, persist};
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::bindings::virtio_blk::VIRTIO_BLK_F_RO;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The one queue that is used.
const QUEUE: usize = 0;

/// A vhost-user-blk backend: a block device in another process, which is given the queue's memory
/// by its descriptor.
///
/// The backend has a mapping of its own of that memory, and of no other memory of this process.
pub struct VhostUser {
    path: PathBuf,
    connection: Connection,
    /// The features that were agreed on with the first backend, and are with each that takes its
    /// place.
    features: u64,
    disk: Disk,
    kick: EventFd,
    call: EventFd,
    /// Readable when the connection's other end is gone. One descriptor for all connections, since
    /// others wait on it.
    gone: Epoll,
}

struct Connection {
    wire: Frontend,
    /// The wire's own socket.
    socket: UnixStream,
}

impl VhostUser {
    /// Connects to the backend that listens at `path`, and agrees on features with it. Gives up
    /// after 5 seconds without an answer.
    ///
    /// # Errors
    /// As [`connect_within`](Self::connect_within).
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_within(path, &Limits::within(ANSWER_PATIENCE))
    }

    /// Connects within other limits. A backend that serves another front end does not answer at
    /// all; one that goes away before it has answered everything is looked for again.
    ///
    /// # Errors
    /// [`Error::System`], whose source is of the kind [`TimedOut`](io::ErrorKind::TimedOut) or
    /// [`Interrupted`](io::ErrorKind::Interrupted) when the limits have ended the wait; a
    /// [`Refusal`] where the backend's device cannot be driven.
    pub fn connect_within(path: impl AsRef<Path>, limits: &Limits<'_>) -> Result<Self, Error> {
        let path = path.as_ref();
        let open = || Connection::open(path, WANTED, limits);
        let (connection, features, disk) = persist(limits, open, Error::system_error)?;
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        let events = || {
            let gone = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
            gone.add(&connection.socket, hang_up())?;
            Ok((gone, event()?, event()?))
        };
        let (gone, kick, call) = events().map_err(Step::Connect.failed())?;
        Ok(Self { path: path.to_owned(), connection, features, disk, kick, call, gone })
    }
}

impl fmt::Debug for VhostUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, disk) = (&self.path, self.disk);
        f.debug_struct("VhostUser").field("path", path).field("disk", &disk).finish_non_exhaustive()
    }
}

impl VhostUser {
    /// Connects to the backend in the place of the one that has gone, and has it go on with the
    /// queue in `memory` from the index `base` on.
    fn reconnect(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        base: u16,
        limits: &Limits<'_>,
    ) -> Result<(), ResumeError> {
        // If the other end has closed its half only, it waits for ours before it serves anybody
        // else.
        let _ = self.connection.socket.shutdown(Shutdown::Both);
        let wanted = self.features | 1 << VIRTIO_BLK_F_RO;
        let (mut connection, _, disk) =
            Connection::open(&self.path, wanted, limits).map_err(ResumeError::Later)?;
        if let Some(difference) = self.disk.difference(disk) {
            return Err(ResumeError::Never(Refusal::OtherDisk(difference).into()));
        }
        let events = [&self.call, &self.kick];
        connection.start(memory, layout, base, events, limits).map_err(ResumeError::Later)?;
        // Until here the old connection is the one that is gone.
        let watched = self
            .gone
            .delete(&self.connection.socket)
            .and_then(|()| self.gone.add(&connection.socket, hang_up()));
        watched.map_err(|e| ResumeError::Never(Step::Connect.failed()(e.into())))?;
        self.connection = connection;
        Ok(())
    }
}

/// The end of a connection. Not that it can be read: answers to the messages of a start would count
/// as an end.
fn hang_up() -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLRDHUP, 0)
}

impl Connection {
    /// Connects. Returns the connection, those of the features `wanted` that the backend has, and
    /// its disk.
    fn open(path: &Path, wanted: u64, limits: &Limits<'_>) -> Result<(Self, u64, Disk), Error> {
        let connect = || {
            let socket = UnixStream::from(dial(path, SocketKind::Stream, limits)?);
            // The library below waits for its answers.
            socket.set_nonblocking(false)?;
            let mut wire = Frontend::from_stream(socket.try_clone()?, 1);
            let answer = within(limits, &socket, || handshake(&mut wire, wanted))?;
            Ok((Self { wire, socket }, answer))
        };
        let (connection, (features, config)) = connect().map_err(Step::Connect.failed())?;
        let disk = Disk::new(features, &config)?;
        Ok((connection, features, disk))
    }

    /// Has the backend serve the queue in `memory` from the index `base` on.
    fn start(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        base: u16,
        [call, kick]: [&EventFd; 2],
        limits: &Limits<'_>,
    ) -> Result<(), Error> {
        let failed = Step::Start.failed();
        // Of the memory that `allocate` makes it is always there.
        let Some(file) = memory.fd() else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        // Addresses of this process are names here, which the backend looks up in the table of
        // regions.
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: memory.device_start(),
            memory_size: memory.bytes(),
            userspace_addr: memory.host_address(0),
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
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
        within(limits, socket, || {
            // One region: the table says it in one message that every backend understands.
            wire.set_mem_table(&[region])?;
            wire.set_vring_num(QUEUE, layout.size)?;
            wire.set_vring_addr(QUEUE, &rings)?;
            wire.set_vring_base(QUEUE, base)?;
            wire.set_vring_call(QUEUE, call)?;
            wire.set_vring_kick(QUEUE, kick)?;
            wire.set_vring_enable(QUEUE, true)
        })
        .map_err(failed)
    }
}

impl Transport for VhostUser {
    fn disk(&self) -> Disk {
        self.disk
    }
    fn into_link(self, _: Seal) -> Box<dyn Link> {
        Box::new(self)
    }
}

impl Link for VhostUser {
    /// Takes huge pages where the administrator has set some aside: fewer entries of the
    /// translation caches, here and in the backend.
    fn allocate(&self, bytes: u64) -> Result<DmaMemory, Error> {
        DmaMemory::new(bytes, Pages::Huge)
            .or_else(|_| DmaMemory::new(bytes, Pages::Small))
            .map_err(Step::Allocate.failed())
    }

    unsafe fn start(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        limits: &Limits<'_>,
    ) -> Result<(), Error> {
        let started = self.connection.start(memory, layout, 0, [&self.call, &self.kick], limits);
        let mut first = Some(started);
        let start = || match first.take() {
            Some(started) => started.map_err(ResumeError::Later),
            None => self.reconnect(memory, layout, 0, limits),
        };
        let started = persist(limits, start, |error| match error {
            ResumeError::Later(error) => error.system_error(),
            ResumeError::Never(_) => None,
        });
        started.map_err(|(ResumeError::Later(error) | ResumeError::Never(error))| error)
    }

    /// Ends the connection. The backend may go on with what it has of the queue: in a mapping of
    /// its own, which lives as long as the backend wants. Nothing of it reaches memory that this
    /// process gives back.
    fn stop(&mut self) -> Result<(), Error> {
        let _ = self.connection.socket.shutdown(Shutdown::Both);
        Ok(())
    }

    fn notify(&self) -> Result<(), Error> {
        match self.kick.write(1) {
            // A full counter says the same.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other.map_err(Step::Notify.failed()),
        }
    }

    fn interrupt(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is the event's, which lives as long as the borrow.
        Some(unsafe { BorrowedFd::borrow_raw(self.call.as_raw_fd()) })
    }

    fn gone(&self) -> Option<BorrowedFd<'_>> {
        Some(self.gone.0.as_fd())
    }

    /// Always `Ok`: that the backend is gone shows by its socket, see `gone`.
    fn present(&self) -> Result<(), Error> {
        Ok(())
    }

    unsafe fn resume(
        &mut self,
        memory: &DmaMemory,
        layout: Layout,
        base: u16,
        limits: &Limits<'_>,
    ) -> Result<(), ResumeError> {
        self.reconnect(memory, layout, base, limits)?;
        // Whether the last backend wanted to be notified says nothing of this one.
        self.notify().map_err(ResumeError::Never)
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

/// Ends the connection when `limits` are over before `talk` is: the library below waits for ever.
fn within<T>(
    limits: &Limits<'_>,
    connection: &UnixStream,
    talk: impl FnOnce() -> vhost::Result<T>,
) -> io::Result<T> {
    let (over, finished) = UnixStream::pair()?;
    std::thread::scope(|scope| {
        let watch = scope.spawn(move || {
            let ended = await_readable(over.as_fd(), limits);
            if ended.is_err() {
                let _ = connection.shutdown(Shutdown::Both);
            }
            ended
        });
        let answer = talk();
        drop(finished);
        match (answer, watch.join()) {
            (Ok(answer), Ok(Ok(()))) => Ok(answer),
            (_, Ok(Err(e))) if e.kind() == io::ErrorKind::TimedOut => {
                let text = format!(
                    "{e}; it may be serving another front end, or, where a service manager holds the socket, not start: its log says why"
                );
                Err(io::Error::new(e.kind(), text))
            }
            (_, Ok(Err(e))) => Err(e),
            (Err(e), _) if is_broken_off(&e) => {
                let text = format!("the backend went away in the middle of the handshake: {e}");
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, text))
            }
            (Err(e), _) => Err(io::Error::other(e)),
            (Ok(_), Err(_)) => Err(io::Error::other("the watch over the backend has died")),
        }
    })
}

/// Whether the backend has ended the connection.
fn is_broken_off(error: &vhost::Error) -> bool {
    use vhost::vhost_user::Error::{Disconnected, PartialMessage, SocketBroken};
    let vhost::Error::VhostUserProtocol(error) = error else { return false };
    matches!(error, Disconnected | PartialMessage | SocketBroken(_))
}
