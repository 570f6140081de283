//! One connection to a backend: the region and the role that came with it.

use crate::device::bell::{Bell, Sleeper};
use crate::device::lock::release;
use crate::device::presence::{Displaced, bytes_of, unchanged_size};
use crate::device::{
    AlignedBuf, BlockDevice, DeviceError, MappedDevice, Mapping, Operation, RingDevice, shown,
};
use crate::error::Error;
use crate::format::{Geometry, SectorSize, Side};
use crate::handover::{Answer, DESCRIPTORS, Hello, Role, VERSION, receive, send};
use crate::wait::Limits;
use nix::sys::stat::fstat;
use nix::sys::uio::pread;
use ring_os::{SocketKind, await_readable, dial};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// The region, the wake-ups and the role of one connection.
pub(super) struct Link {
    pub connection: OwnedFd,
    pub region: MappedDevice,
    /// Whether this process holds the role's lock: without it nothing is written.
    pub held: AtomicBool,
    /// Whether published items are lent: this process holds the role, the backend guards the items,
    /// and the caller vouches for the backend.
    pub lends: AtomicBool,
    /// `None` for a client without a role, which polls.
    pub bells: Option<Bells>,
    pub counters: serde_json::Value,
    role: Role,
    /// Whether the backend says that nobody else changes what is published.
    guarded: bool,
    /// Whether the region's file had a name.
    named: bool,
    /// Bytes of the region's file or block device, where that can be seen.
    bytes: Option<u64>,
}

pub(super) struct Bells {
    /// Wake-ups from the backend to this process.
    pub ours: Bell,
    /// Wake-ups from this process to the backend.
    theirs: Bell,
}

/// Returns the side of the ring that a role is for; `None` for a client without a role.
pub(super) fn side_of(role: Role) -> Option<Side> {
    match role {
        Role::Producer => Some(Side::Producer),
        Role::Consumer => Some(Side::Consumer),
        Role::Control => None,
    }
}

/// A connection whose backend has not answered yet.
pub(super) struct Asked {
    connection: OwnedFd,
    role: Role,
}

impl Asked {
    /// Asks the backend at `path` for its region, as `role`. Only a backend that accepts no
    /// connections is waited for.
    pub fn new(path: &Path, name: &str, role: Role, limits: &Limits<'_>) -> crate::Result<Self> {
        let fail = |operation, source: io::Error| DeviceError::new(name, operation, source);
        let connection =
            dial(path, SocketKind::Messages, limits).map_err(|e| fail(Operation::Connect, e))?;
        // A new connection has room for the one message, so this never waits.
        send(connection.as_fd(), &Hello { version: VERSION, role }, &[])
            .map_err(|e| fail(Operation::RequestHandover, e))?;
        Ok(Self { connection, role })
    }

    /// Returns the descriptor that is readable when the backend has answered, or is gone.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }

    /// Takes the answer, once there is one.
    pub fn answer(self, name: &str) -> crate::Result<(Link, Geometry)> {
        Link::of(self.connection, self.role, name)
    }
}

impl Link {
    /// Asks the backend at `path` for its region, as `role`.
    pub fn new(
        path: &Path,
        name: &str,
        role: Role,
        limits: &Limits<'_>,
    ) -> crate::Result<(Self, Geometry)> {
        let asked = Asked::new(path, name, role, limits)?;
        await_readable(asked.connection.as_fd(), limits)
            .map_err(|e| DeviceError::new(name, Operation::ReceiveHandover, e))?;
        asked.answer(name)
    }

    /// Takes the backend's answer.
    fn of(connection: OwnedFd, role: Role, name: &str) -> crate::Result<(Self, Geometry)> {
        let fail = |operation, source: io::Error| DeviceError::new(name, operation, source);
        let (answer, descriptors) = receive::<Answer>(connection.as_fd())
            .map_err(|e| fail(Operation::ReceiveHandover, e))?;
        let (sector_size, sectors, guarded, counters) = match answer {
            Answer::Welcome { sector_size, sectors, guarded, counters, .. } => {
                (sector_size, sectors, guarded, counters)
            }
            Answer::Refused { held: true, held_by: holder, .. } => {
                let role = side_of(role).unwrap_or(Side::Consumer);
                return Err(Error::RoleTaken { role, holder });
            }
            Answer::Refused { reason, .. } => {
                // Another process's words.
                return Err(fail(Operation::Attach, io::Error::other(shown(&reason))).into());
            }
        };
        let geometry = Geometry::new(SectorSize::new(sector_size)?, sectors)?;
        let lacks = || {
            fail(Operation::ReceiveHandover, io::Error::other("the backend sent no descriptors"))
        };
        let map = |e| fail(Operation::Map, e);
        let bytes = geometry.total_bytes();
        let (region, bells) = if role == Role::Control {
            (descriptors.into_iter().next().ok_or_else(lacks)?, None)
        } else {
            let descriptors: [OwnedFd; DESCRIPTORS] =
                descriptors.try_into().map_err(|_| lacks())?;
            let [region, page, ours, theirs] = descriptors;
            let page = File::from(page);
            let bell = |event, sleeper| Bell::new(&page, event, sleeper).map_err(map);
            let (ours, theirs) = (bell(ours, Sleeper::Host)?, bell(theirs, Sleeper::Backend)?);
            (region, Some(Bells { ours, theirs }))
        };
        let region = File::from(region);
        let region = match role {
            Role::Producer => Mapping::new(region, bytes),
            // The consumer writes its pointer sector, which lies in front of the data area.
            Role::Consumer => Mapping::writable_to(region, bytes, geometry.data_start()),
            Role::Control => Mapping::read_only(region, bytes),
        };
        let region = MappedDevice::over(region.map_err(map)?, name, geometry);
        let about = region.lock_file().map(fstat).transpose();
        let about = about.map_err(|e| fail(Operation::Map, e.into()))?;
        let named = about.is_some_and(|about| about.st_nlink > 0);
        let bytes = region.lock_file().and_then(|file| bytes_of(file).ok());
        let (held, lends) = (AtomicBool::new(true), AtomicBool::new(false));
        let link =
            Self { connection, region, held, lends, bells, counters, role, guarded, named, bytes };
        Ok((link, geometry))
    }

    /// Has published items lent where they lie, if the backend says that it guards them for its
    /// consumer.
    ///
    /// # Safety
    /// The backend keeps its word, and nobody else changes the region's file: see
    /// [`UnixDevice::lend_in_place`](super::UnixDevice::lend_in_place).
    pub unsafe fn lend_in_place(&mut self) {
        if self.guarded && self.role == Role::Consumer {
            // SAFETY: the guard keeps what is published as it is, and the producer's position as it
            // has to be, by the caller's word. The consumer's position is for the holder of the
            // consumer's lock, which came with the region; once that is released, `lends` keeps
            // anything from being lent.
            unsafe { self.region.start_lending() };
            *self.lends.get_mut() = true;
        }
    }

    /// Wakes the backend if it sleeps on behalf of the guest.
    pub fn ring(&self) {
        if let Some(bells) = &self.bells {
            bells.theirs.ring();
        }
    }

    /// Whether the ring is that of `other`: the same file, or one with the same first sector. They
    /// are not read where they are mapped: a file that was truncated would be SIGBUS.
    pub fn same_ring(&self, other: &Self) -> io::Result<bool> {
        let (Some(ours), Some(others)) = (self.region.lock_file(), other.region.lock_file()) else {
            return Ok(false);
        };
        let (one, another) = (fstat(ours)?, fstat(others)?);
        if (one.st_dev, one.st_ino) == (another.st_dev, another.st_ino) {
            return Ok(true);
        }
        let size = self.region.geometry().sector_size().bytes();
        let (mut mine, mut theirs) = (AlignedBuf::zeroed(size), AlignedBuf::zeroed(size));
        let read = [pread(ours, &mut mine, 0)?, pread(others, &mut theirs, 0)?];
        Ok(read == [size; 2] && mine[..] == theirs[..])
    }

    /// Whether the region still has a name, if it had one, and is as large as it was.
    pub fn check_presence(&self) -> Result<(), Displaced> {
        let Some(file) = self.region.lock_file() else { return Ok(()) };
        let Ok(now) = fstat(file) else { return Ok(()) };
        if now.st_nlink == 0 && self.named {
            return Err(Displaced::Removed);
        }
        match (self.bytes, bytes_of(file)) {
            (Some(before), Ok(now)) => unchanged_size(before, now),
            _ => Ok(()),
        }
    }

    /// Gives the role back. From now on another consumer may free what this one could lend, so
    /// nothing is lent or written any more.
    pub fn release(&self) {
        let Some(side) = side_of(self.role) else { return };
        self.lends.store(false, Ordering::Relaxed);
        self.held.store(false, Ordering::Relaxed);
        if let Some(file) = self.region.lock_file() {
            release(file, self.region.geometry(), side);
        }
    }
}
