//! A ring that a backend hands over: mapped here, shared with the guest behind the backend's guard.

use super::bell::{Bell, Sleeper};
use super::lock::{holder_of, release};
use super::{BlockDevice, DeviceError, MappedDevice, Mapping, Sleep};
use crate::error::{Error, Result as RingResult};
use crate::format::{Geometry, Position, SectorSize, Side};
use crate::handover::{Answer, DESCRIPTORS, Hello, Role, VERSION, receive, send};
use crate::wait::{Woken, wait_readable};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

/// Between attempts to find the backend again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(50);

/// A region got from a backend. It outlives the backend: what is in it can be read to its end, and the next backend is
/// found again by [`Sleep::sleep`].
pub struct UnixDevice {
    path: PathBuf,
    name: String,
    role: Role,
    geometry: Geometry,
    link: RwLock<Link>,
}

impl Drop for UnixDevice {
    /// Closing alone would not end the role's lock while a process that another thread is starting has our descriptors too, up to its
    /// `exec`.
    fn drop(&mut self) {
        self.link().release(self.role);
    }
}

/// What one connection gave us.
struct Link {
    connection: OwnedFd,
    region: MappedDevice,
    /// Whether the region's published bytes can be lent: the role is ours, and the backend guards them.
    lends: AtomicBool,
    /// Rung by the backend.
    ours: Bell,
    /// Rung by us.
    theirs: Bell,
    counters: serde_json::Value,
}

impl UnixDevice {
    /// Asks the backend at `path` for its region, as the ring's only `role` or beside it.
    pub fn connect(path: &Path, role: Role) -> RingResult<Self> {
        let name = format!("unix:{}", path.display());
        let (link, geometry) = Link::new(path, &name, role)?;
        Ok(Self { path: path.to_owned(), name, role, geometry, link: RwLock::new(link) })
    }

    /// The backend's counters, as of the connection.
    pub fn counters(&self) -> serde_json::Value {
        self.link().counters.clone()
    }

    /// The process that has `side` of the ring, as far as `/proc/*/fdinfo` lets this user see.
    pub fn holder(&self, side: Side) -> Option<i32> {
        holder_of(self.link().region.lock_file()?, self.geometry, side)
    }

    fn link(&self) -> RwLockReadGuard<'_, Link> {
        self.link.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for the backend until it answers; `None` when it did.
    fn reconnect(
        &self,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Option<Woken>, DeviceError> {
        // The mapping keeps the old open file description, and with it the role's lock, alive: the new backend would
        // find the role taken, by ourselves.
        self.link().release(self.role);
        loop {
            match Link::new(&self.path, &self.name, self.role) {
                Ok((_, geometry)) if geometry != self.geometry => {
                    let text = "the backend is back with a ring of another shape";
                    return Err(self.error("reconnect", io::Error::other(text)));
                }
                Ok((link, _)) => {
                    *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
                    return Ok(None);
                }
                Err(e @ Error::Held { .. }) => {
                    return Err(self.error("reconnect", io::Error::other(e.to_string())));
                }
                Err(e) => log::debug!("{}: {e}", self.name),
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Ok(Some(Woken::TimedOut));
            }
            let readable = wait_readable(interrupts, Some(RECONNECT_PAUSE))
                .map_err(|e| self.error("wait", e))?;
            if let Some(index) = readable {
                return Ok(Some(Woken::Readable(index)));
            }
        }
    }

    fn error(&self, operation: &'static str, source: io::Error) -> DeviceError {
        DeviceError { name: self.name.clone(), operation, sector: None, source }
    }
}

impl Link {
    fn new(path: &Path, name: &str, role: Role) -> RingResult<(Self, Geometry)> {
        let fail = |operation, source| DeviceError {
            name: name.to_owned(),
            operation,
            sector: None,
            source,
        };
        let connection = dial(path).map_err(|e| fail("connect to", e))?;
        send(connection.as_fd(), &Hello { version: VERSION, role }, &[])
            .map_err(|e| fail("greet", e))?;
        let (answer, descriptors) =
            receive::<Answer>(connection.as_fd()).map_err(|e| fail("hear", e))?;
        let (sector_size, sectors, guarded, counters) = match answer {
            Answer::Welcome { sector_size, sectors, guarded, counters, .. } => {
                (sector_size, sectors, guarded, counters)
            }
            Answer::Refused { held: true, held_by: holder, .. } => {
                let role = if role == Role::Producer { Side::Producer } else { Side::Consumer };
                return Err(Error::Held { role, holder });
            }
            Answer::Refused { reason, .. } => {
                return Err(fail("attach to", io::Error::other(reason)).into());
            }
        };
        let geometry = Geometry::new(SectorSize::new(sector_size)?, sectors)?;
        let descriptors: [OwnedFd; DESCRIPTORS] = descriptors
            .try_into()
            .map_err(|_| fail("hear", io::Error::other("the backend sent no descriptors")))?;
        let [region, page, ours, theirs] = descriptors;
        let page = File::from(page);
        let bell = |event, sleeper| Bell::new(&page, event, sleeper).map_err(|e| fail("map", e));
        let (ours, theirs) = (bell(ours, Sleeper::Host)?, bell(theirs, Sleeper::Backend)?);
        let mut region =
            Mapping::new(File::from(region), geometry.total_bytes()).map_err(|e| fail("map", e))?;
        let lends = guarded && role == Role::Consumer;
        if lends {
            // SAFETY: the backend has said that its guard is on. It compares what the guest writes between the pointers and stores none of it, and lets
            // the producer's position only grow, up to a ring's capacity ahead of ours. The lock of the consumer's role is ours,
            // so that nobody else stores that pointer; nothing is lent once it is released.
            region = unsafe { region.guarded() };
        }
        let region = MappedDevice::over(region, name, geometry);
        let lends = AtomicBool::new(lends);
        Ok((Self { connection, region, lends, ours, theirs, counters }, geometry))
    }
}

impl Link {
    /// Gives the role back: others may free and overwrite from now on what we could lend.
    fn release(&self, role: Role) {
        self.lends.store(false, Ordering::Relaxed);
        let side = match role {
            Role::Producer => Side::Producer,
            Role::Consumer => Side::Consumer,
            Role::Control => return,
        };
        if let Some(file) = self.region.lock_file() {
            release(file, self.region.geometry(), side);
        }
    }
}

fn dial(path: &Path) -> io::Result<OwnedFd> {
    let connection =
        socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
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
        let link = self.link();
        link.region.write(first, bufs)?;
        if first <= Side::Consumer.sector() {
            link.theirs.ring();
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.link().region.flush()
    }

    fn reads_are_free(&self) -> bool {
        true
    }

    fn lend(&mut self, from: Position, to: Position) -> Option<&[u8]> {
        let link = self.link.get_mut().unwrap_or_else(PoisonError::into_inner);
        if *link.lends.get_mut() { link.region.lend(from, to) } else { None }
    }

    fn glance(&self, side: Side) -> Option<u64> {
        self.link().region.glance(side)
    }

    fn read_head(&self, side: Side, sector: &mut [u8]) -> Result<(), DeviceError> {
        self.link().region.read_head(side, sector)
    }

    /// None: the backend has taken the role's lock on our behalf.
    fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn detached(&self) {
        self.link().release(self.role);
    }

    fn edit_pointer(&self, side: Side, edit: &mut dyn FnMut(&mut [u8])) -> Result<(), DeviceError> {
        let link = self.link();
        link.region.edit_pointer(side, edit)?;
        link.theirs.ring();
        Ok(())
    }

    /// There is one bell, and it is the producer's or consumer's: who stands beside them polls.
    fn sleeper(&self) -> Option<&dyn Sleep> {
        if self.role == Role::Control { None } else { Some(self) }
    }
}

impl Sleep for UnixDevice {
    fn announce(&self) {
        self.link().ours.announce();
    }

    fn sleep(
        &self,
        interrupts: &[BorrowedFd<'_>],
        deadline: Option<Instant>,
    ) -> Result<Woken, DeviceError> {
        let link = self.link();
        let mut waited = vec![link.ours.fd(), link.connection.as_fd()];
        waited.extend_from_slice(interrupts);
        let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let readable = wait_readable(&waited, timeout);
        link.ours.awake();
        match readable.map_err(|e| self.error("wait", e))? {
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
