//! A ring that a backend hands over: mapped here, shared with the guest behind the backend's guard.

mod link;
mod search;

use self::link::{Link, side_of};
use self::search::Search;
use super::lock::{holder_of, is_role_held};
use super::{
    BlockDevice, DeviceError, Forbidden, Operation, RingDevice, SharedSleep, Sleep, rights, shown,
};
use crate::error::Error;
use crate::format::{FLAG_AT, Geometry, POINTER_BYTES, Position, Side};
use crate::handover::{Reply, Request, Role, receive_words, send};
use crate::wait::{ANSWER_PATIENCE, Limits, Pauses, Woken, wait_readable};
use ring_os::{await_readable, persist};
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::Instant;

/// A region got from a backend. It outlives the backend: what is in it can be read to its end, and
/// the next backend is found again by [`Sleep::sleep`].
///
/// Reads are copies. [`lend_in_place`](Self::lend_in_place) avoids the copy, if the caller vouches
/// for the backend. A device writes what its role writes and nothing else: a producer the
/// data area and sector 1, a consumer sector 2; everything else is [`Forbidden`]. Without a role
/// the region is mapped for reading, by a descriptor that is open for reading, and the suspend flag
/// is changed by the backend.
///
/// ```no_run
/// use shared_block_ring::{Consumer, Role, UnixDevice};
///
/// let device = UnixDevice::connect("/run/vm1.out", Role::Consumer)?;
/// let mut consumer = Consumer::attach(device, "logs", "collector")?;
/// let item = consumer.pop(consumer.position())?;
/// # Ok::<(), shared_block_ring::Error>(())
/// ```
pub struct UnixDevice {
    path: PathBuf,
    name: String,
    role: Role,
    geometry: Geometry,
    /// Whether the caller vouches for this backend and the later ones: [`Self::lend_in_place`].
    in_place: bool,
    link: RwLock<Link>,
    /// The search for the next backend, for a sleep on many devices.
    search: Search,
}

impl fmt::Debug for UnixDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, role, geometry, .. } = self;
        write!(f, "UnixDevice({name}, {role:?}, {geometry:?})")
    }
}

impl Drop for UnixDevice {
    /// Closing alone would not end the role's lock while a process that another thread is starting
    /// has our descriptors too, up to its `exec`.
    fn drop(&mut self) {
        self.link().release();
    }
}

impl UnixDevice {
    /// Asks the backend at `path` for its ring, as the ring's only `role` or beside it. Gives up
    /// after 5 seconds without an answer.
    ///
    /// # Errors
    /// [`Error::RoleTaken`]; [`Error::Device`], also for a refusal, which says why.
    pub fn connect(path: impl AsRef<Path>, role: Role) -> crate::Result<Self> {
        Self::connect_within(path, role, &Limits::within(ANSWER_PATIENCE))
    }

    /// Does the same as [`connect`](Self::connect) within other limits.
    ///
    /// # Errors
    /// A [`DeviceError`] whose source is [`TimedOut`](io::ErrorKind::TimedOut) or
    /// [`Interrupted`](io::ErrorKind::Interrupted) when the limits have ended the wait.
    pub fn connect_within(
        path: impl AsRef<Path>,
        role: Role,
        limits: &Limits<'_>,
    ) -> crate::Result<Self> {
        let path = path.as_ref();
        let name = format!("unix:{}", shown(path));
        let connect = || Link::new(path, &name, role, limits);
        let (link, geometry) = persist(limits, connect, |e| match e {
            Error::Device(error) => Some(&mut error.source),
            _ => None,
        })?;
        let (path, link, search) = (path.to_owned(), RwLock::new(link), Search::default());
        Ok(Self { path, name, role, geometry, in_place: false, link, search })
    }

    /// Has [`lend`](RingDevice::lend) lend published items where they lie, as far as the backend
    /// says that it guards them: a [`Consumer`](crate::Consumer) over this device copies nothing.
    /// The same holds for each backend that the device connects to later.
    ///
    /// This is `unsafe`, since that the backend guards the ring is only a statement of another
    /// program:
    ///
    /// ```compile_fail,E0133
    /// # use shared_block_ring::UnixDevice;
    /// fn without_a_word(device: UnixDevice) -> UnixDevice {
    ///     device.lend_in_place()
    /// }
    /// ```
    ///
    /// # Safety
    /// For as long as this device lives,
    /// - whoever answers at the socket is a backend that keeps its word: where it says that the
    ///   ring is guarded ([`Answer::Welcome`](crate::handover::Answer::Welcome)), it lets nobody
    ///   change what is published and not consumed, lets the producer's position only grow, by at
    ///   most the ring's capacity ahead of the consumer, and stores it behind the bytes in front of
    ///   it, with release ordering;
    /// - no backend serves the ring without its guard;
    /// - nobody but the backend, and the consumer over this device, changes the ring's file: not by
    ///   its name or a descriptor, not by a mapping, not by making it shorter or punching holes.
    ///   The permissions of the file and its folder, and what else this program opens, are for the
    ///   caller to check.
    ///
    /// `vhost-device-blockring` keeps its word with `--guard on`, which is its default.
    #[must_use]
    pub unsafe fn lend_in_place(mut self) -> Self {
        self.in_place = true;
        // SAFETY: the caller vouches for this backend and the next ones.
        unsafe { self.link.get_mut().unwrap_or_else(PoisonError::into_inner).lend_in_place() };
        self
    }

    /// Returns the counters of the backend as of the connection, a JSON object as `blockring
    /// diagnostics` shows it: what it holds depends on the version of the backend.
    pub fn counters(&self) -> serde_json::Value {
        self.link().counters.clone()
    }

    /// Returns the process that has `side` of the ring, as far as `/proc/*/fdinfo` lets this user
    /// see.
    pub fn holder(&self, side: Side) -> Option<i32> {
        holder_of(self.link().region.lock_file()?, self.geometry, side)
    }

    /// Returns whether a process has `side` of the ring, the backend on behalf of a guest included.
    ///
    /// # Errors
    /// The operating system's.
    pub fn is_held(&self, side: Side) -> io::Result<bool> {
        let link = self.link();
        let Some(file) = link.region.lock_file() else { return Ok(false) };
        is_role_held(file, self.geometry, side)
    }

    fn link(&self) -> RwLockReadGuard<'_, Link> {
        self.link.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, for a write of `bytes` from sector `first` on, which the role covers and is
    /// held for.
    fn link_to_write(
        &self,
        first: u64,
        bytes: usize,
    ) -> Result<RwLockReadGuard<'_, Link>, DeviceError> {
        let sectors = bytes.div_ceil(self.geometry.sector_size().bytes()) as u64;
        rights::check(self.role, &(first..first.saturating_add(sectors)))
            .map_err(|forbidden| forbidden.error(&self.name, first))?;
        let link = self.link();
        if link.held.load(Ordering::Relaxed) {
            return Ok(link);
        }
        let text = "the role was given back while the backend was away, and is not held any more";
        Err(self.error(Operation::Write, io::Error::new(io::ErrorKind::PermissionDenied, text)))
    }

    fn error(&self, operation: Operation, source: io::Error) -> DeviceError {
        DeviceError::new(&*self.name, operation, source)
    }

    /// Has the backend change a pointer sector as `edit` does. A device without a role can change
    /// the suspend flag, and nothing else.
    fn ask_to_edit(
        &self,
        link: &Link,
        side: Side,
        edit: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), DeviceError> {
        let mut sector = vec![0; self.geometry.sector_size().bytes()];
        link.region.read(side.sector(), &mut [IoSliceMut::new(&mut sector)])?;
        let mut edited = sector.clone();
        edit(&mut edited[..POINTER_BYTES]);
        let suspend = edited[FLAG_AT] == 1;
        sector[FLAG_AT] = edited[FLAG_AT];
        if side != Side::Consumer || sector != edited {
            return Err(Forbidden::Role(self.role).error(&self.name, side.sector()));
        }
        let limits = Limits::within(ANSWER_PATIENCE);
        let connection = link.connection.as_fd();
        let ask = || {
            send(connection, &Request::Suspend(suspend), &[])
                .and_then(|()| await_readable(connection, &limits))
                .and_then(|()| receive_words(connection))
        };
        let kept = || {
            let text = "another process keeps the lock for changes of sector 2";
            self.error(Operation::Write, io::Error::new(io::ErrorKind::TimedOut, text))
        };
        let (mut pauses, mut busy) = (Pauses::default(), false);
        loop {
            let reply = match ask() {
                // The time was up during a question instead of between two.
                Err(e) if busy && e.kind() == io::ErrorKind::TimedOut => return Err(kept()),
                reply => reply.map_err(|e| self.error(Operation::SetSuspend, e))?,
            };
            match reply {
                Reply::Done => return Ok(()),
                Reply::Failed(reason) => {
                    return Err(self.error(Operation::Write, io::Error::other(shown(&reason))));
                }
                Reply::Busy => {
                    busy = true;
                    limits.pause(pauses.next_pause()).map_err(|_| kept())?;
                }
            }
        }
    }
}

impl BlockDevice for UnixDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn read(&self, first: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<(), DeviceError> {
        self.link().region.read(first, bufs)
    }

    fn write(&self, first: u64, bufs: &[IoSlice<'_>]) -> Result<(), DeviceError> {
        let link = self.link_to_write(first, bufs.iter().map(|buf| buf.len()).sum())?;
        link.region.write(first, bufs)?;
        if first <= Side::Consumer.sector() {
            link.ring();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.link().region.flush()
    }
}

impl RingDevice for UnixDevice {
    fn reads_are_free(&self) -> bool {
        true
    }

    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        let link = self.link.get_mut().unwrap_or_else(PoisonError::into_inner);
        if *link.lends.get_mut() { link.region.lend(from, to) } else { None }
    }

    fn peek_position(&self, side: Side) -> Option<u64> {
        self.link().region.peek_position(side)
    }

    fn read_pointer(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        self.link().region.read_pointer(side, sector)
    }

    /// `None`: the backend has taken the role's lock for this process.
    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn is_stored_in(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        self.link().region.is_stored_in(file)
    }

    fn release_role(&self) {
        self.link().release();
    }

    /// Nothing is lent after this until a backend has stated again that it guards the ring.
    fn ensure_role(&self) -> crate::Result<()> {
        match side_of(self.role) {
            Some(side) if !self.link().held.load(Ordering::Relaxed) => self.take_role_back(side),
            _ => Ok(()),
        }
    }

    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        if self.role == Role::Control {
            return self.ask_to_edit(&self.link(), side, edit);
        }
        let link = self.link_to_write(side.sector(), POINTER_BYTES)?;
        link.region.edit_pointer(side, edit)?;
        link.ring();
        Ok(())
    }

    fn check_presence(&self) -> Result<(), DeviceError> {
        self.link().check_presence().map_err(|displaced| displaced.error(&self.name))
    }

    /// `None` without a role: there is one bell, and it wakes the role's holder. A device without a
    /// role polls.
    fn sleeper(&self) -> Option<&dyn Sleep> {
        if self.role == Role::Control { None } else { Some(self) }
    }
}

impl Sleep for UnixDevice {
    fn shared(&self) -> Option<&dyn SharedSleep> {
        Some(self)
    }

    fn announce(&self) {
        if let Some(bells) = &self.link().bells {
            bells.ours.announce();
        }
    }

    fn sleep(
        &self,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Woken, DeviceError> {
        let link = self.link();
        // A device without a role does not sleep here.
        let Some(bells) = &link.bells else { return Ok(Woken::Elapsed) };
        let mut waited = vec![bells.ours.fd(), link.connection.as_fd()];
        waited.extend_from_slice(interrupts);
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let readable = wait_readable(&waited, timeout);
        bells.ours.awake();
        match readable.map_err(|e| self.error(Operation::Wait, e))? {
            Some(0) => Ok(Woken::Elapsed),
            Some(1) => {
                drop(link);
                log::info!("{}: the backend is gone, looking for it", self.name);
                Ok(self.reconnect(interrupts, deadline)?.unwrap_or(Woken::Elapsed))
            }
            Some(index) => Ok(Woken::Readable(index - 2)),
            // A signal, or the deadline: the caller looks once more in either case.
            None if deadline.is_some_and(|deadline| deadline <= Instant::now()) => {
                Ok(Woken::TimedOut)
            }
            None => Ok(Woken::Elapsed),
        }
    }
}
